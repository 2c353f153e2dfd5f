"""Attachments that search texts and train nothing: they store the texts' embeddings and what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment, Findings
from tunewise.contract.technique import Technique
from tunewise.core.errors import ArtifactError

if TYPE_CHECKING:
    from tunewise.contract.study import Study
    from tunewise.engine.model import Base
    from tunewise.techniques.building.count_choice import CountChoice


class TextSearchAttachment(Attachment):
    """Stores `vectors` (texts, size) in half precision where texts have embeddings.

    `facts` are for the report, and `untried` what choices on validation left untried, with the reasons.
    """

    def __init__(self, base: Base, recipe: Technique) -> None:
        super().__init__(base, recipe)
        self.vectors: Tensor | None = None
        self.facts: Findings = {}
        self.untried: list[str] = []

    def describe_choices(self, study: Study) -> None:
        """Say in the findings what the choices on validation read, and what they left untried."""
        allowance = study.allowance
        if allowance.spent:
            self.facts["tokens read to choose"] = f"{allowance.spent:,} of {allowance.tokens:,}"
        if self.untried:
            self.facts["left untried"] = "; ".join(self.untried)

    def take_count(self, choice: CountChoice, what: str) -> int:
        """Put a choice of a number into the findings and return it."""
        if choice.losses:
            self.facts[f"validation loss by {what}"] = choice.means
        if choice.reason:
            self.facts[f"{what} chosen"] = choice.reason
        if choice.untried:
            self.untried.append(choice.untried)
        return choice.chosen

    def findings(self, validation_loss: Callable[[], float]) -> Findings:
        """Return what was chosen on validation, and the losses there."""
        return self.facts

    def state(self) -> dict[str, Tensor]:
        """Return the embeddings, where there are any."""
        return {"vectors": self.vectors} if self.vectors is not None else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the embeddings; refuse anything else."""
        if set(state) - {"vectors"} or any(t.dim() != 2 or t.dtype != torch.float16 for t in state.values()):
            raise ArtifactError(f"the weights are not embeddings of texts as {self.recipe.name} writes them")
        self.vectors = state.get("vectors")
