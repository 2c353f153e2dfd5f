"""The unadapted model: the row that every other row is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique

if TYPE_CHECKING:
    import torch

    from tunewise.engine.model import Base as Model


@dataclass(frozen=True, kw_only=True)
class Base(Technique):
    """No adaptation: the prompt goes to the model as it is."""

    name = "base"
    family = "nonparametric"
    summary = "the unadapted model, for comparison"
    equation = "p(y | x)"
    needs_whole_weights = ""
    needs_whole_rows = ""
    trains = False
    seeded = False
    adapts = False
    mergeable = True

    def attach(self, base: Model, generator: torch.Generator) -> Attachment:
        """Change nothing."""
        return Attachment(base, self)
