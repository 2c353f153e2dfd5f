"""DyLoRA: one training gives a LoRA of every rank (Valipour et al. 2023, algorithm 1).

    each step draws b from 1..r, one for all layers:   h = W x + s_b B[:, :b] A[:b] x,   s_b = lora_alpha / b

`update=full` moves the first b rows of A and columns of B, `frozen` the b-th alone. The authors' script uses frozen,
their best results are of full.
Differs from the paper: what a step does not move keeps its bits (AdamW's momentum moves it on in the authors' code),
and every linear of every block is adapted, not only queries and values.
`scaling=constant` takes s = lora_alpha / r for every b; under lora_alpha / b the ranks disagree about what the first
directions should be.

`rank` says which of the ranks counts, in scoring, merging and export: give it when loading, as
`--set dylora.rank=4`. Nothing else depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment, Findings
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import SettingError
from tunewise.engine.anatomy import features, oriented
from tunewise.techniques.building.lowrank import ALL_LINEAR, LowRank, start, targets
from tunewise.techniques.building.peft_lora import Factors

if TYPE_CHECKING:
    from torch import nn

    from tunewise.engine.model import Base

_GEOMETRIC = 0.15  # the paper's p


@dataclass(frozen=True, kw_only=True)
class DyLoRA(Technique):
    """Low-rank updates that work at every rank."""

    name = "dylora"
    family = "reparametrized"
    summary = "low-rank updates that work at every rank"
    citation = Citation(
        "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank Adaptation",
        "Valipour, Rezagholizadeh, Kobyzev, Ghodsi",
        2023,
        "https://arxiv.org/abs/2210.07558",
        "algorithm 1",
    )
    equation = "h = W x + (lora_alpha / b) B[:, :b] A[:b] x, with b drawn anew each step"
    sides = frozenset({"weights"})
    mergeable = True
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 2e-4
    width_exponent = 0.5
    late_settings = frozenset({"rank"})
    differs = "no momentum outside the ranks of a step"

    r: int = setting(16, "Largest rank.", low=1, high=4096, search=(8, 32))
    lora_alpha: float = setting(32.0, "The update is multiplied by lora_alpha / b.", low=0.0, high=1e6)
    rank: int = setting(0, "Rank that counts outside training; 0: r.", low=0, high=4096)
    distribution: str = setting("uniform", "How b is drawn.", choices=("uniform", "geometric"))
    update: str = setting(
        "full", "What a step moves: the first b ranks, or the b-th alone.", choices=("full", "frozen")
    )
    scaling: str = setting(
        "alpha_over_b", "lora_alpha / b, or lora_alpha / r for every b.", choices=("alpha_over_b", "constant")
    )
    target_modules: tuple[str, ...] = setting(
        (ALL_LINEAR,), "Linears adapted: all-linear, roles (q, k, v, o, gate, up, down), or ends of module names."
    )
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put updates on the targeted linears.

        Raises:
            SettingError: a target that names no linear, or a rank above r.
        """
        if self.rank > self.r:
            raise SettingError(f"dylora.rank is {self.rank}, but the largest rank is r = {self.r}")
        return _Nested(base, self, generator)


class _Nested(LowRank):
    def __init__(self, base: Base, recipe: DyLoRA, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: DyLoRA = recipe
        self.rank = self.b = recipe.rank or recipe.r
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self.before: list[Tensor] = []
        for path, (_, module) in targets(base, recipe.target_modules, "dylora.target_modules").items():
            size_in, size_out = features(module)
            a = self.add(f"{path}.lora_A", torch.zeros(recipe.r, size_in))
            b = self.add(f"{path}.lora_B", torch.zeros(size_out, recipe.r))
            start("kaiming", oriented(module), Factors(a, b, 1.0), generator)
            self.pairs[path] = a, b
            self.place(path, module)

    def factors(self, path: str) -> Factors:
        a, b = self.pairs[path]
        rank = self.b if self.recipe.scaling == "alpha_over_b" else self.recipe.r
        return Factors(a[: self.b], b[:, : self.b], self.recipe.lora_alpha / rank)  # (b, in), (out, b)

    def before_step(self, step: int, total: int) -> None:
        """Draw b; the loop has seeded the generator with this step."""
        weights = torch.ones(self.recipe.r)
        if self.recipe.distribution == "geometric":
            weights = (1 - _GEOMETRIC) ** torch.arange(self.recipe.r)
        self.b = int(torch.multinomial(weights, 1)) + 1

    @torch.no_grad()
    def after_backward(self, step: int, total: int) -> None:
        if self.recipe.update == "frozen":
            for a, b in self.pairs.values():
                if a.grad is not None and b.grad is not None:
                    a.grad[: self.b - 1] = 0
                    b.grad[:, : self.b - 1] = 0
        self.before = [part.clone() for pair in self.pairs.values() for part in pair]

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """Restore the bits of what this step does not train."""
        first = self.b - 1 if self.recipe.update == "frozen" else 0
        for (a, b), old_a, old_b in zip(self.pairs.values(), self.before[::2], self.before[1::2], strict=True):
            for rows in (slice(0, first), slice(self.b, None)):
                a[rows] = old_a[rows]
                b[:, rows] = old_b[:, rows]
        self.b = self.rank

    def findings(self, validation_loss: Callable[[], float]) -> Findings:
        """Return the validation loss at some ranks: 1, 2, 4 and so on, and r."""
        losses = {}
        for rank in sorted({*(1 << power for power in range(self.recipe.r.bit_length())), self.recipe.r}):
            self.b = rank
            losses[str(rank)] = validation_loss()
        self.b = self.rank
        return {"validation loss by rank": losses}
