"""What a format of an export is, and the table of those there are: one file each in `tunewise.export.formats`."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunewise.core.errors import SettingError, TechniqueError

if TYPE_CHECKING:
    import torch

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base
    from tunewise.export.readers import Reader


@dataclass(frozen=True)
class Asked:
    """What an export is asked for: the type its weights are stored in, and how exact an approximation must be.

    `error` is the relative Frobenius error that each changed weight may have, `rank` (0: by `error`) the rank instead.
    """

    dtype: torch.dtype
    error: float = 0.01
    rank: int = 0


@dataclass(frozen=True)
class Written:
    """What was written: `notes` for people, `facts` for the record.

    `slack` is the share of what training changed that the export is allowed to be off by (an approximation).
    """

    notes: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    slack: float = 0.0


class Format(ABC):
    """One form of an export."""

    name: ClassVar[str]
    summary: ClassVar[str]
    on_base: ClassVar[bool] = False  # whether it is read on the base, which it does not hold

    @abstractmethod
    def why_not(self, attachment: Attachment) -> str | None:
        """Why it cannot express this attachment, or None; nothing is changed by asking."""

    @abstractmethod
    def write(self, loaded: Adaptation, folder: Path, asked: Asked) -> Written:
        """Fill the empty folder. What it does to the base is undone by `Base.release()` after it.

        Raises:
            TechniqueError: this model or change cannot be expressed after all.
        """

    @abstractmethod
    def read(self, folder: Path, base: Base) -> Reader:
        """The export, loaded back; the base is bare."""


@cache
def formats() -> dict[str, Format]:
    """Every format by name."""
    package = importlib.import_module("tunewise.export.formats")
    found = []
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.rpartition(".")[2].startswith("_"):
            found.append(importlib.import_module(module.name).FORMAT)
    return {own.name: own for own in found}


def known(name: str) -> Format:
    """The format of this name.

    Raises:
        SettingError: there is none.
    """
    if name not in formats():
        raise SettingError(f'there is no format "{name}"; there are {", ".join(formats())}')
    return formats()[name]


def find(name: str, attachment: Attachment) -> Format:
    """The format of this name, for this attachment.

    Raises:
        SettingError: there is none.
        TechniqueError: it cannot express the attachment; the message names those that can.
    """
    form = known(name)
    reason = form.why_not(attachment)
    if reason is None:
        return form
    can = [other for other, own in formats().items() if own.why_not(attachment) is None]
    instead = f"it can be exported to {', '.join(can)}" if can else "keep the adaptation and serve that: tunewise serve"
    raise TechniqueError(f"{attachment.recipe.name} cannot be exported to {name}: {reason}; {instead}")


def not_in_weights(attachment: Attachment) -> str | None:
    """Why an attachment is not a change of the model's weights alone, or None."""
    if attachment.recipe.mergeable:
        return None
    parts = getattr(attachment, "parts", [attachment])
    names = " and ".join(part.recipe.name for part in parts if not part.recipe.mergeable)
    if all(part.recipe.sides <= {"prompt"} for part in parts if not part.recipe.mergeable):
        return f"{names} changes the prompt and no weight"
    return f"{names} adds to the model what is no change of its weights"


def needs(package: str, extra: str) -> None:
    """Refuse where a package is not installed.

    Raises:
        SettingError: names the extra that brings it.
    """
    if importlib.util.find_spec(package) is None:
        raise SettingError(f"this format needs {package}, which is not installed: pip install 'tunewise[{extra}]'")
