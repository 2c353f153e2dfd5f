"""What a format of an export is, and the table of all formats: one file each in `tunewise.export.formats`."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from tunewise.core.errors import SettingError, TechniqueError
from tunewise.core.plug_ins import plug_ins, refuse_taken
from tunewise.engine.configuration import path_of
from tunewise.engine.model import DTYPES
from tunewise.export.parity_record import FormatFigures

_WIDELY_READ = ("merged", "peft")  # by transformers and what builds on it, without a further package

if TYPE_CHECKING:
    from torch import Tensor

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base
    from tunewise.export.readers import Reader


@dataclass(frozen=True)
class ExportOptions:
    """How an export is written: the type of its weights, and how exact an approximation must be.

    `error` is the relative Frobenius error that each changed weight may have; a `rank` other than 0 is used instead.
    `quantised` names a type of blocks with a scale each, such as "q8_0", for the weights that can have it; the others
    are stored in `dtype`.
    """

    dtype: torch.dtype
    error: float = 0.01
    rank: int = 0
    quantised: str = ""

    @property
    def type_name(self) -> str:
        """Return the name of the weights' type, as `--dtype` takes it."""
        return self.quantised or str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Written:
    """What a format reports of an export that it wrote: `notes` for people, `figures` for the record.

    `slack` is the share of what training moved that the export's logits may be off by (an approximation).
    """

    notes: tuple[str, ...] = ()
    figures: FormatFigures = field(default_factory=FormatFigures)
    slack: float = 0.0


class Format(ABC):
    """One format of an export."""

    name: ClassVar[str]
    summary: ClassVar[str]
    on_base: ClassVar[bool] = False  # whether it is read on the base, which it does not hold
    quantised: ClassVar[tuple[str, ...]] = ()  # what it can quantise weights to

    @abstractmethod
    def why_not(self, attachment: Attachment) -> str | None:
        """Return why the format cannot express an attachment, or None; neither is changed."""

    def obstacle(self, attachment: Attachment) -> str | None:
        """Return why an attachment on its base cannot be exported to this format, or None."""
        rows = attachment.base.embedding_rows
        if self.on_base and rows is not None:
            return f"its base was given embeddings for added tokens ({rows} rows), which an adapter does not hold"
        return self.why_not(attachment)

    @abstractmethod
    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Write the export into an empty folder. `Base.release()` undoes what this does to the base.

        A format that holds a whole model leaves the base's weights merged.

        Raises:
            TechniqueError: this model or change cannot be expressed after all.
        """

    def default_dtype(self, base: Base) -> torch.dtype:
        """Return the type that weights are stored in unless one is chosen.

        A whole model has the type of the base's checkpoint, and what is read on the base that of the loaded base.
        """
        return base.model.dtype if self.on_base else checkpoint_dtype(base)

    def stored_dtype(self, name: str, tensor: Tensor, options: ExportOptions) -> torch.dtype:
        """Return the type that a whole model's tensor of this full name is stored in."""
        return options.dtype if tensor.is_floating_point() else tensor.dtype

    def as_stored(self, base: Base, name: str, options: ExportOptions) -> Tensor:
        """Return the values of a merged base's parameter after it was stored and read back, in its own type."""
        tensor = base.model.get_parameter(name).detach()
        dtype = self.stored_dtype(name, tensor, options)
        return tensor if torch.promote_types(dtype, tensor.dtype) == dtype else tensor.to(dtype).to(tensor.dtype)

    @abstractmethod
    def read(self, folder: Path, base: Base) -> Reader:
        """Load the export back; the base is bare."""


def checkpoint_dtype(base: Base) -> torch.dtype:
    """Return the type of the base's weights on disk, as its configuration says; of the loaded base, if that is silent.

    A base that was not loaded from a folder or the Hub's cache has no other type than in memory.
    """
    from transformers import AutoConfig

    path = path_of(base.name)
    try:
        config = AutoConfig.from_pretrained(
            path if path.exists() else base.name,
            revision=base.revision,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError):
        return base.model.dtype
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return DTYPES.get(name, base.model.dtype)


@cache
def formats() -> dict[str, Format]:
    """Return every format by name: those of this package, and those that plug-ins add.

    Raises:
        SettingError: a plug-in cannot be imported, or has the name of another format.
    """
    package = importlib.import_module("tunewise.export.formats")
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
        if not module.name.rpartition(".")[2].startswith("_")
    ]
    own = {module.FORMAT.name: module.FORMAT for module in modules}
    further = plug_ins("tunewise.export_formats", Format)  # type: ignore[type-abstract]
    refuse_taken([each.name for each in further], "the export format", set(own))
    return own | {each.name: each for each in further}


def format_named(name: str) -> Format:
    """Look up a format.

    Raises:
        SettingError: there is no format of this name.
    """
    if name not in formats():
        raise SettingError(f'there is no format "{name}"; there are {", ".join(formats())}')
    return formats()[name]


def format_for(name: str, attachment: Attachment) -> Format:
    """Look up a format and check that it can express an attachment.

    Raises:
        SettingError: there is no format of this name.
        TechniqueError: it cannot express the attachment; the message names those that can.
    """
    chosen = format_named(name)
    reason = chosen.obstacle(attachment)
    if reason is None:
        return chosen
    able = [other for other, candidate in formats().items() if candidate.obstacle(attachment) is None]
    remedy = (
        f"it can be exported to {', '.join(able)}" if able else "keep the adaptation and serve that: tunewise serve"
    )
    raise TechniqueError(f"{attachment.recipe.name} cannot be exported to {name}: {reason}; {remedy}")


def most_readable(attachment: Attachment) -> str | None:
    """Return the name of the format that most programs read among those that can express an attachment, or None."""
    names = sorted(formats(), key=lambda name: (name not in _WIDELY_READ, name))
    return next((name for name in names if formats()[name].obstacle(attachment) is None), None)


def not_in_weights(attachment: Attachment) -> str | None:
    """Return why an attachment is not a change of the model's weights alone, or None where it is."""
    if attachment.recipe.mergeable:
        return None
    parts = [part for part in getattr(attachment, "parts", [attachment]) if not part.recipe.mergeable]
    names = " and ".join(part.recipe.name for part in parts)
    if all(part.recipe.sides <= {"prompt"} for part in parts):
        return f"{names} changes the prompt and no weight"
    return f"{names} adds to the model what its weights cannot hold"
