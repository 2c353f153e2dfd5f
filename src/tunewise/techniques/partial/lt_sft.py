"""LT-SFT: find the weights that move most, rewind, and train these alone (Ansell, Ponti, Korhonen, Vulic 2022).

    1. train all eligible weights from theta_0 to theta_1
    2. mu = 1 on the K entries with the largest |theta_1 - theta_0|, over all tensors together
    3. back to theta_0; train with gradients mu * g:   phi = theta_2 - theta_0

Half of the steps go to each phase. The first runs at full fine-tuning's rate: at a higher one all entries move about as
far, and the choice is left to noise. The paper also adds up the differences of several runs; here one run's difference
is an adaptation of its own. Eligible are the blocks' linears alone: norms stay frozen as in the reference scripts, and
embeddings too, which is the scripts' way for language differences only. An optional L1 term (the scripts use 0.1 for
language differences, 0 for tasks) pulls both phases towards theta_0; it is a mean over the eligible entries, in the
reference over all of the model's.
Differs from the paper: biases stay frozen too, and half of the steps go to each phase.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, ParamGroup
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique
from tunewise.engine.memory import release_pages
from tunewise.techniques.building.sparse_entries import Sparse, largest, rate_of_full, weights_of

if TYPE_CHECKING:
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class LTSFT(Technique):
    """The entries that full training moves most, trained alone."""

    name = "lt_sft"
    family = "partial"
    summary = "the weights that full training moves most, retrained alone"
    citation = Citation(
        "Composable Sparse Fine-Tuning for Cross-Lingual Transfer",
        "Ansell, Ponti, Korhonen, Vulic",
        2022,
        "https://arxiv.org/abs/2110.07560",
        "section 3",
    )
    equation = "theta = theta_0 + phi, phi nonzero where |theta_1 - theta_0| was largest"
    sides = frozenset({"weights"})
    needs = "memory for full fine-tuning in the first half"
    mergeable = True
    needs_whole_weights = "it chooses the entries that moved most among all of them"
    needs_whole_rows = ""
    reference_rate = 4e-4  # few entries need larger steps than all: PEFT's comparison takes 3e-4 at width 3072 (SHiRA)
    width_exponent = 1.0
    differs = "linears alone"

    density: float = setting(
        0.01, "Share of the eligible entries that is trained.", low=1e-6, high=1.0, search=(0.05, 0.002)
    )
    target_modules: tuple[str, ...] = setting((), "Roles of the eligible linears (q, k, v, ...); default: all.")
    l1: float = setting(0.0, "Weight of the mean |theta - theta_0| in the loss.", low=0.0, high=10.0)
    dense_learning_rate: float | None = setting(
        None, "Step size of the first phase, which trains all; default: that of full.", low=0.0, high=100.0
    )
    learning_rate: float | None = learning_rate()

    def resolved(self, base: Base) -> Self:
        """Return the same recipe with both learning rates for this base filled in."""
        recipe = super().resolved(base)
        if recipe.dense_learning_rate is not None:
            return recipe
        return replace(recipe, dense_learning_rate=rate_of_full(base))

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach without parameters; the first phase adds them."""
        return _Lottery(base, self)


class _Lottery(Sparse):
    phases = 2

    def __init__(self, base: Base, recipe: LTSFT) -> None:
        super().__init__(base, recipe, weights_of(base, recipe, recipe.target_modules))
        self.recipe: LTSFT = recipe
        self._whole = False  # whether all entries are trained

    def start_phase(self, phase: int) -> None:
        self._whole = phase == 0
        if self._whole:
            self.rewind()
            for name, parameter in self.eligible.items():
                self.train_existing(name, parameter)
            return
        moved = {name: self._moved(parameter) for name, parameter in self.eligible.items()}
        self.choose(largest(moved, self.budget(self.recipe.density)))

    def param_groups(self) -> list[ParamGroup]:
        groups, rate = super().param_groups(), self.recipe.dense_learning_rate
        if not self._whole:
            return groups
        return [{**group, "lr": rate_of_full(self.base) if rate is None else rate} for group in groups]

    def _moved(self, parameter: nn.Parameter) -> Tensor:
        original = self.original(parameter)
        distance = (self.trained(parameter).detach().float() - original.float()).abs_()
        release_pages(original)
        return distance

    def penalty(self) -> Tensor | None:
        if not self.recipe.l1:
            return None
        if self._whole:
            eligible = self.eligible.values()
            parts = [(self.trained(p) - self.original(p)).abs().sum() for p in eligible]
        else:
            parts = [value.abs().sum() for value in self.params().values()]
        return self.recipe.l1 * torch.stack(parts).sum() / self.size
