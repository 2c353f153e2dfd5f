"""Threshold mask: weights stay, a learned binary mask switches some of them off (Zhao et al. 2020).

    y = (M * W) x + b,   M = 1[S > tau],   dL/dS := dL/d(M * W) * W     (straight-through)

One bit per weight is stored. `init="uniform"` is Zhao's start: scores uniform in (-0.02, b), with b such that a share
`sparsity` of the weights starts off. That breaks a language model before it learns, so by default (`spread`) all start
on, which is the base itself: scores are uniform in (0, b] with tau 0, and b grows with the number of steps. No score
moves much farther than its rate times the steps, so no more than a share `reach` gets to tau in any budget, and about
half of that under a schedule that decays. `init="ones"` is Piggyback's start (Mallya et al. 2018): all scores are
equal. Adam moves them alike, and at this rate a third of the weights goes off together; lower it to 1e-4, as there, for
many steps. As in Zhao et al., the lowest sixth of the blocks is left alone, and norms, biases, embeddings and head too.
Differs from the paper: all weights are on at the start, and there is no new head, which there is trained beside the
masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, ParamGroup, strict
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.techniques.building.bitmap import pack, unpack
from tunewise.techniques.building.generated import GeneratedAttachment
from tunewise.techniques.building.sparse_entries import weights_of

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_RATE = 1e-3  # the step size of Zhao et al.
_TAU = {"spread": 0.0, "ones": 5e-3, "uniform": 1e-2}  # the last two are those of Piggyback and of Zhao et al.
_ONE = 1e-2  # Piggyback's score at the start
_LOW = -0.02  # the lowest score at the start in Zhao et al.


@dataclass(frozen=True, kw_only=True)
class ThresholdMask(Technique):
    """A binary mask over frozen weights."""

    name = "threshold_mask"
    family = "partial"
    summary = "frozen weights switched on and off by a learned mask"
    citation = Citation(
        "Masking as an Efficient Alternative to Finetuning for Pretrained Language Models",
        "Zhao, Lin, Mi, Jaggi, Schütze",
        2020,
        "https://arxiv.org/abs/2004.12406",
        "section 3",
    )
    equation = "y = (1[S > tau] * W) x + b, S trained straight through"
    sides = frozenset({"weights"})
    mergeable = True
    needs_whole_weights = "it masks their entries bit by bit"
    needs_whole_rows = ""
    reference_rate = _RATE

    init: str = setting(
        "spread",
        "Scores at the start: all on and spread evenly, all on and equal, or a random share off.",
        choices=("spread", "ones", "uniform"),
    )
    reach: float = setting(
        0.1,
        "Largest share of the weights that training at the default rate can switch off, for init=spread.",
        low=0.0001,
        high=1.0,
    )
    sparsity: float = setting(0.05, "Share of the weights that init=uniform starts off.", low=0.001, high=0.9)
    target_modules: tuple[str, ...] = setting((), "Roles of the masked linears (q, k, v, ...); default: all.")
    learning_rate: float | None = learning_rate()

    @fact(default="all on at the start")
    def differs(self) -> str:
        """Name the start, where it is not the paper's."""
        return {"spread": "all on at the start", "ones": "Piggyback's start"}.get(self.init, "")

    @fact(default=True)
    def identity_at_start(self) -> bool:
        """Say whether all weights start switched on."""
        return self.init != "uniform"

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put scores over the weights."""
        return _Masked(base, self, generator)


class _Masked(GeneratedAttachment):
    def __init__(self, base: Base, recipe: ThresholdMask, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: ThresholdMask = recipe
        self.tau = _TAU[recipe.init]
        first = math.ceil(len(base.anatomy.blocks) / 6)
        self.masked = weights_of(base, recipe, recipe.target_modules, first)
        self.weights: dict[str, Tensor] = {}
        self._highest = 1.0  # the top of the scores of init=spread
        for name, parameter in self.masked.items():
            self.weights[name] = parameter.detach().clone()
            self.keep(parameter)
            self.add(f"{name}.score", _start(recipe, parameter, generator))
            self.divert(parameter, lambda g, name=name: self._straight_through(name, g))  # type: ignore[misc]
        self._write()

    def _straight_through(self, name: str, g: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        score = self._params[f"{name}.score"]
        return [(score, g.to(score.dtype) * self.weights[name].to(score.dtype))]

    @torch.no_grad()
    def _write(self) -> None:
        """Bring the base's tensors up to date with the scores."""
        for name, parameter in self.masked.items():
            parameter.copy_(self.weights[name] * (self._params[f"{name}.score"] > self.tau))

    @torch.no_grad()
    def before_step(self, step: int, total: int) -> None:
        """Spread the scores so far that a run of so many steps takes no more than `reach` of them down to tau."""
        if step or self.recipe.init != "spread":
            return
        highest = _RATE * total / self.recipe.reach
        for score in self._params.values():
            score.mul_(highest / self._highest)
        self._highest = highest

    def after_step(self, step: int, total: int) -> None:
        self._write()

    def param_groups(self) -> list[ParamGroup]:
        return [{**group, "weight_decay": 0.0} for group in super().param_groups()]

    def changed_entries(self) -> dict[str, Tensor | None]:
        return dict.fromkeys(self.weights)

    def make(self) -> dict[str, Tensor]:
        return {f"{name}.mask": pack(self._params[f"{name}.score"] > self.tau) for name in self.masked}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        strict(self.state(), state)
        for name, weight in self.weights.items():
            on = unpack(state[f"{name}.mask"].to(weight.device), weight.numel()).view_as(weight)
            score = self._params[f"{name}.score"]
            # Unchanged where it gives the same mask, as training may go on from it.
            beside = torch.where(on, self.tau + _RATE, self.tau - _RATE)
            score.copy_(torch.where(on == (score > self.tau), score, beside))
        self._write()

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_training_state(state)
        self._write()

    def fold(self) -> None:
        for parameter in self.masked.values():
            parameter.requires_grad_(False)


def _start(recipe: ThresholdMask, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if recipe.init == "ones":
        return torch.full_like(parameter, _ONE, dtype=torch.promote_types(parameter.dtype, torch.float32))
    shares = 1 - torch.rand(parameter.shape, generator=generator)  # above 0, up to 1
    if recipe.init == "spread":
        return shares
    tau = _TAU["uniform"]
    highest = _LOW + (tau - _LOW) / recipe.sparsity  # so that P(S <= tau) = sparsity
    return highest - (highest - _LOW) * shares
