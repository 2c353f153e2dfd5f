"""P-tuning: virtual tokens around the question, made by a small encoder (Liu et al. 2021, "GPT Understands, Too").

    [h_1 .. h_a; E(x); h_{a+1} .. h_{a+b}; E(y)],   h = MLP(BiLSTM(e)),   e in R^{(a+b) x d}

The template is the paper's for GPT: `before` tokens, the question, `after` tokens, the answer. The encoder's output
does not depend on the input; after training the h_i alone are stored. The backbone is frozen, as in the paper's LAMA
experiments (its SuperGLUE figures tune it too). P-tuning v2 is prefix_tuning with prefix_projection=false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique
from tunewise.techniques.building.generated import GeneratedAttachment
from tunewise.techniques.building.virtual_tokens import Placeholders

if TYPE_CHECKING:
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class PTuning(Technique):
    """Virtual tokens from a prompt encoder, before and after the question."""

    name = "p_tuning"
    family = "additive"
    summary = "virtual tokens around the question, made by a small encoder"
    citation = Citation("GPT Understands, Too", "Liu et al.", 2021, "https://arxiv.org/abs/2103.10385", "section 2")
    equation = "[h_<=a; E(x); h_>a; E(y)], h = MLP(BiLSTM(e))"
    sides = frozenset({"virtual tokens"})
    needs = "room for the virtual tokens in the window"
    identity_at_start = False
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 2e-3
    width_exponent = 0.5

    before: int = setting(3, "Virtual tokens before the question.", low=0, high=1024, search=(8,))
    after: int = setting(3, "Virtual tokens between question and answer.", low=0, high=1024)
    encoder: str = setting(
        "lstm", "Prompt encoder: a BiLSTM with an MLP, or the MLP alone.", choices=("lstm", "mlp"), search=("mlp",)
    )
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put the virtual tokens around the question.

        Raises:
            TechniqueError: the virtual tokens leave no room in the model's context, or there are none.
        """
        return _Encoded(base, self, generator)


class _BiLSTM(nn.LSTM):
    """(n, d) to (n, d): two layers with d / 2 units per direction, rounded up."""

    def __init__(self, width: int) -> None:
        super().__init__(width, (width + 1) // 2, 2, bidirectional=True)

    def forward(self, table: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = super().forward(table)[0][:, : self.input_size]
        return output


_MIXERS = {"lstm": _BiLSTM, "mlp": nn.Identity}


def _encoder(kind: str, width: int) -> nn.Sequential:
    """Build the encoder, (n, d) to (n, d): the mixer, then d -> d, ReLU, d -> d."""
    return nn.Sequential(_MIXERS[kind](width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class _Encoded(GeneratedAttachment):
    def __init__(self, base: Base, recipe: PTuning, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.virtual_tokens, self.virtual_suffix = recipe.before, recipe.after
        count, width = recipe.before + recipe.after, base.anatomy.width
        Placeholders(self, count, lambda: self.made()["embeddings"])
        self.table = self.add("table", torch.randn(count, width, generator=generator))
        self.encoder = self.adopt("encoder", lambda: _encoder(recipe.encoder, width), generator)

    def make(self) -> dict[str, Tensor]:
        """Return the virtual tokens' embeddings, (a + b, d)."""
        return {"embeddings": self.encoder(self.table)}
