"""Full fine-tuning: every parameter of the model follows the gradient.

theta <- theta - lr * AdamW(d loss / d theta)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunewise.technique import Attachment, Citation, Technique, learning_rate

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunewise.model import Base


@dataclass(frozen=True, kw_only=True)
class Full(Technique):
    """All parameters trained."""

    name = "full"
    family = "full"
    summary = "every parameter trained"
    citation = Citation(
        "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        "Devlin et al.",
        2018,
        "https://arxiv.org/abs/1810.04805",
        "section 3.2",
    )
    equation = "theta <- theta - lr * AdamW(d loss / d theta)"
    sides = frozenset({"weights", "biases", "norms", "embeddings"})
    mergeable = True
    reference_rate = 1e-5
    width_exponent = 1.0

    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Unfreeze everything; tied tensors are one parameter."""
        return _Everything(base, self)


class _Everything(Attachment):
    def __init__(self, base: Base, recipe: Full) -> None:
        super().__init__(base, recipe)
        for name, parameter in base.model.named_parameters():
            self.train_existing(name, parameter)

    def merge(self) -> nn.Module:
        return self.base.model
