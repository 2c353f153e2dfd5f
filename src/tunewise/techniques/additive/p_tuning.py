"""P-tuning: virtual tokens around the question, made by a small encoder (Liu et al. 2021, "GPT Understands, Too").

    [h_1 .. h_a; E(x); h_{a+1} .. h_{a+b}; E(y)],   h = MLP(BiLSTM(e)),   e in R^{(a+b) x d}

The template is the paper's for GPT: `before` tokens, the question, `after` tokens, the answer. The encoder's output
does not depend on the input; after training the h_i alone are stored. The backbone is frozen, as in the paper's LAMA
experiments (its SuperGLUE figures tune it too). P-tuning v2 is prefix_tuning with prefix_projection=false.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.placeholders import Placeholders
from tunewise.technique import Attachment, Citation, Technique, learning_rate, setting, strict

if TYPE_CHECKING:
    from tunewise.model import Base


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
    reference_rate = 1e-3

    before: int = setting(3, "Virtual tokens before the question.", low=0, high=1024)
    after: int = setting(3, "Virtual tokens between question and answer.", low=0, high=1024)
    encoder: str = setting("lstm", "Prompt encoder: a BiLSTM with an MLP, or the MLP alone.", choices=("lstm", "mlp"))
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put the virtual tokens around the question.

        Raises:
            TechniqueError: the virtual tokens leave no room in the model's context, or there are none.
        """
        return _Encoded(base, self, generator)


class _Mix(nn.Module):
    """(n, d) to (n, d): BiLSTM of two layers with d / 2 a direction, then d -> d, ReLU, d -> d."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width // 2, 2, bidirectional=True) if kind == "lstm" else None
        entry = 2 * (width // 2) if kind == "lstm" else width
        self.mlp = nn.Sequential(nn.Linear(entry, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, table: Tensor) -> Tensor:
        mixed = self.lstm(table)[0] if self.lstm is not None else table
        found: Tensor = self.mlp(mixed)
        return found


class _Encoded(Attachment):
    def __init__(self, base: Base, recipe: PTuning, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.virtual_tokens, self.virtual_suffix = recipe.before, recipe.after
        count, width = recipe.before + recipe.after, base.anatomy.width
        Placeholders(self, count, self._made)
        self.table = self.add("table", torch.randn(count, width, generator=generator))
        self.encoder = self.adopt("encoder", lambda: _Mix(width, recipe.encoder), generator)
        self.stored: Tensor | None = None

    def _made(self) -> Tensor:
        """The virtual tokens' embeddings, (a + b, d)."""
        found: Tensor = self.stored if self.stored is not None else self.encoder(self.table)
        return found

    def before_step(self, step: int, total: int) -> None:
        self.stored = None  # training goes on from the encoder, of which the stored table was made

    def state(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"embeddings": self._made().detach().clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        strict(self.state(), state)
        self.stored = state["embeddings"].to(self.base.device)

    def training_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.params().items()}

    @torch.no_grad()
    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        strict(self.training_state(), state)
        for name, parameter in self.params().items():
            parameter.copy_(state[name])
