"""Threshold mask: weights stay, a learned binary mask switches some of them off (Zhao et al. 2020).

    y = (M * W) x + b,   M = 1[S > tau],   dL/dS := dL/d(M * W) * W     (straight-through)

One bit per weight is stored. `init="ones"` starts every score above the threshold (Piggyback, Mallya et al. 2018), so
that training starts at the base itself; `init="uniform"` is Zhao's: scores uniform in (-0.02, b), with b such that a
share `sparsity` starts off. As there, the lowest sixth of the blocks is left alone, and norms, biases, embeddings and
head too.
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
from tunewise.techniques.building.generated import GeneratedAttachment
from tunewise.techniques.building.sparse_entries import weights_of

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_ONES = {"tau": 5e-3, "start": 1e-2}  # Piggyback
_UNIFORM = {"tau": 1e-2, "low": -0.02}  # Zhao et al.


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
    reference_rate = 1e-3

    init: str = setting(
        "ones", "Scores at the start: all on (the base itself), or a random share off.", choices=("ones", "uniform")
    )
    sparsity: float = setting(0.05, "Share of the weights that init=uniform starts off.", low=0.001, high=0.9)
    target_modules: tuple[str, ...] = setting((), "Roles of the masked linears (q, k, v, ...); default: all.")
    learning_rate: float | None = learning_rate()

    @fact(default=True)
    def identity_at_start(self) -> bool:
        """Say whether all weights start switched on."""
        return self.init == "ones"

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put scores over the weights."""
        return _Masked(base, self, generator)


class _Masked(GeneratedAttachment):
    def __init__(self, base: Base, recipe: ThresholdMask, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.tau = (_ONES if recipe.init == "ones" else _UNIFORM)["tau"]
        first = math.ceil(len(base.anatomy.blocks) / 6)
        self.masked = weights_of(base, recipe, recipe.target_modules, first)
        self.weights: dict[str, Tensor] = {}
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

    def after_step(self, step: int, total: int) -> None:
        self._write()

    def param_groups(self) -> list[ParamGroup]:
        return [{**group, "weight_decay": 0.0} for group in super().param_groups()]

    def changed_entries(self) -> dict[str, Tensor]:
        return {name: torch.arange(weight.numel(), device=weight.device) for name, weight in self.weights.items()}

    def make(self) -> dict[str, Tensor]:
        return {f"{name}.mask": pack(self._params[f"{name}.score"] > self.tau) for name in self.masked}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        strict(self.state(), state)
        for name, weight in self.weights.items():
            on = unpack(state[f"{name}.mask"].to(weight.device), weight.numel()).view_as(weight)
            score = self._params[
                f"{name}.score"
            ]  # unchanged where it gives the same mask, as training may go on from it
            score.copy_(torch.where(on == (score > self.tau), score, torch.where(on, 2 * self.tau, 0.0)))
        self._write()

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_training_state(state)
        self._write()

    def fold(self) -> None:
        for parameter in self.masked.values():
            parameter.requires_grad_(False)


def _start(recipe: ThresholdMask, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if recipe.init == "ones":
        return torch.full_like(parameter, _ONES["start"], dtype=torch.promote_types(parameter.dtype, torch.float32))
    low, tau = _UNIFORM["low"], _UNIFORM["tau"]
    high = low + (tau - low) / recipe.sparsity  # so that P(S <= tau) = sparsity
    return low + (high - low) * torch.rand(parameter.shape, generator=generator)


def pack(mask: Tensor) -> Tensor:
    """Pack eight entries into a byte, the first in the lowest bit."""
    flat = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8))
    # (bytes, 8), of which each row is shifted into one byte
    return (flat.view(-1, 8) << torch.arange(8, device=mask.device, dtype=torch.uint8)).sum(1).to(torch.uint8)


def unpack(bits: Tensor, count: int) -> Tensor:
    """Return the first `count` entries of `pack`'s bytes."""
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    # (bytes, 1) >> (8,): (bytes, 8)
    return ((bits[:, None] >> shifts) & 1).flatten()[:count].bool()
