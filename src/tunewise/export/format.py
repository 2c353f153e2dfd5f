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

from tunewise.core.errors import SettingError, TechniqueError
from tunewise.export.parity_record import FormatFigures

if TYPE_CHECKING:
    import torch

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base
    from tunewise.export.readers import Reader


@dataclass(frozen=True)
class ExportOptions:
    """How an export is written: the type of its weights, and how exact an approximation must be.

    `error` is the relative Frobenius error that each changed weight may have; a `rank` other than 0 is used instead.
    """

    dtype: torch.dtype
    error: float = 0.01
    rank: int = 0


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

    @abstractmethod
    def why_not(self, attachment: Attachment) -> str | None:
        """Return why the format cannot express an attachment, or None; neither is changed."""

    @abstractmethod
    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Write the export into an empty folder. `Base.release()` undoes what this does to the base.

        Raises:
            TechniqueError: this model or change cannot be expressed after all.
        """

    @abstractmethod
    def read(self, folder: Path, base: Base) -> Reader:
        """Load the export back; the base is bare."""


@cache
def formats() -> dict[str, Format]:
    """Return every format by name."""
    package = importlib.import_module("tunewise.export.formats")
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
        if not module.name.rpartition(".")[2].startswith("_")
    ]
    return {module.FORMAT.name: module.FORMAT for module in modules}


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
    reason = chosen.why_not(attachment)
    if reason is None:
        return chosen
    able = [other for other, candidate in formats().items() if candidate.why_not(attachment) is None]
    remedy = (
        f"it can be exported to {', '.join(able)}" if able else "keep the adaptation and serve that: tunewise serve"
    )
    raise TechniqueError(f"{attachment.recipe.name} cannot be exported to {name}: {reason}; {remedy}")


def not_in_weights(attachment: Attachment) -> str | None:
    """Return why an attachment is not a change of the model's weights alone, or None where it is."""
    if attachment.recipe.mergeable:
        return None
    parts = [part for part in getattr(attachment, "parts", [attachment]) if not part.recipe.mergeable]
    names = " and ".join(part.recipe.name for part in parts)
    if all(part.recipe.sides <= {"prompt"} for part in parts):
        return f"{names} changes the prompt and no weight"
    return f"{names} adds to the model what its weights cannot hold"


def require_package(package: str, extra: str) -> None:
    """Refuse a format whose package is not installed.

    Raises:
        SettingError: names the extra of tunewise that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise SettingError(f"this format needs {package}, which is not installed: pip install 'tunewise[{extra}]'")
