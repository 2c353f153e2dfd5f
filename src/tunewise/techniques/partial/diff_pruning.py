"""Diff pruning: learn a difference and, by relaxed L0 gates, where it may be nonzero (Guo, Rush, Kim 2021).

    theta = theta_0 + z z_g w,   z = clamp(s (r - l) + l, 0, 1),   s = sigmoid(log u - log(1 - u) + alpha)
    loss  = task + l0_weight * sum_g sum_{i in g} sigmoid(alpha_i - log(-l/r)) sigmoid(alpha_g - log(-l/r))

A group g is one weight matrix. In the first half of the steps w moves at full fine-tuning's rate, as in the paper, and
alpha at a constant rate, as in the reference: 0.1 there, over epochs of thousands of steps. A first phase of fewer than
200 steps takes 20 over its number of steps, at most 1, as gates could not close otherwise. Then the difference is
projected to the exact budget, by the gates' means, and its surviving entries are trained with the mask fixed. w starts
at 0 and alpha at 5. z is drawn once per optimiser step, so that micro-batches see one model (the reference draws per
micro-batch and uses the last). The penalty is the paper's product; the reference code adds the groups' gates instead.
Here only the blocks' linear weights are eligible; the paper's difference covers all parameters, and its head is trained
whole.
Differs from the paper: gates stand over the blocks' linears alone, the projection takes the gates' means and not one
draw of them, and half of the steps go to each phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, ParamGroup
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique
from tunewise.techniques.building.sparse_entries import Sparse, largest, rate_of_full, weights_of

if TYPE_CHECKING:
    from tunewise.engine.model import Base

LOW, HIGH, ALPHA = -1.5, 1.5, 5.0  # l and r, the ends of the stretched gate, and the gates' start
_RATE = 0.1  # the gates' step size in the reference, over epochs of thousands of steps
_FASTEST = 1.0  # a few steps at a higher one would close all gates
_TRAVEL = 4 * ALPHA  # how far a gate can move in a short first phase, where it seldom moves one way for long
_BEHIND = 1e-6  # of w, by which closed gates are ranked, behind all others
_SHIFT = math.log(-LOW / HIGH)


def gate(alpha: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (z, dz/dalpha) of hard-concrete gates; without noise the mean gate, clamp(sigmoid(alpha) (r - l) + l)."""
    logit = alpha if noise is None else alpha + noise.log() - (-noise).log1p()
    s = torch.sigmoid(logit)
    stretched = s * (HIGH - LOW) + LOW
    inside = (stretched > 0) & (stretched < 1)
    return stretched.clamp(0, 1), inside * (HIGH - LOW) * s * (1 - s)


@dataclass(frozen=True, kw_only=True)
class DiffPruning(Technique):
    """A difference with learned L0 gates, projected to a budget and trained on."""

    name = "diff_pruning"
    family = "partial"
    summary = "a difference whose few places are learned by L0 gates"
    citation = Citation(
        "Parameter-Efficient Transfer Learning with Diff Pruning",
        "Guo, Rush, Kim",
        2021,
        "https://arxiv.org/abs/2012.07463",
        "sections 3 and 4",
    )
    equation = "theta = theta_0 + z z_g w, min task + lambda E|z z_g|_0"
    sides = frozenset({"weights"})
    needs = "memory for nine times the eligible weights in the first half"
    mergeable = True
    needs_whole_weights = "it trains a gate for every entry of them"
    needs_whole_rows = ""
    reference_rate = 1e-4
    width_exponent = 1.0
    differs = "linears alone, projected by mean gates"

    density: float = setting(0.005, "Share of the eligible entries that survives.", low=1e-6, high=1.0)
    l0_weight: float = setting(
        1.25e-7, "Weight of the expected number of open gates.", low=0.0, high=1.0, search=(1.25e-08, 1.25e-06)
    )
    structured: bool = setting(True, "A gate for each weight matrix too.")
    alpha_learning_rate: float | None = setting(
        None,
        "Constant step size of the gates; default: 20 over the first phase's steps, from 0.1 to 1.",
        low=0.0,
        high=100.0,
    )
    dense_learning_rate: float | None = setting(
        None, "Step size of w in the first phase, which trains all; default: that of full.", low=0.0, high=100.0
    )
    fixed_mask_factor: float = setting(5.0, "Second phase's step size over `learning_rate`.", low=0.0, high=1000.0)
    restart: str = setting(
        "zw", "Surviving entries go on from the gated difference or from w (reference code).", choices=("zw", "w")
    )
    target_modules: tuple[str, ...] = setting((), "Roles of the eligible linears (q, k, v, ...); default: all.")
    learning_rate: float | None = learning_rate()

    def resolved(self, base: Base) -> Self:
        """Return the same recipe with both learning rates for this base filled in."""
        recipe = super().resolved(base)
        if recipe.dense_learning_rate is not None:
            return recipe
        return replace(recipe, dense_learning_rate=rate_of_full(base))

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach without parameters; the first phase adds them."""
        return _Gated(base, self)


class _Gated(Sparse):
    phases = 2

    def __init__(self, base: Base, recipe: DiffPruning) -> None:
        super().__init__(base, recipe, weights_of(base, recipe, recipe.target_modules))
        self.recipe: DiffPruning = recipe
        self._start: dict[str, Tensor] = {}
        self._gates: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def start_phase(self, phase: int) -> None:
        if phase == 0:
            self.rewind()  # in case it was trained before
            for name, parameter in self.eligible.items():
                self._gated(name, parameter)
            return
        differences = {name: self._mean_difference(name) for name in self.eligible}
        scores = {name: self._ranking(name, difference) for name, difference in differences.items()}
        places = largest(scores, self.budget(self.recipe.density))
        source = differences if self.recipe.restart == "zw" else {n: self._params[f"{n}.w"] for n in places}
        values = {name: source[name].detach().flatten()[place].clone() for name, place in places.items()}
        self._start, self._gates = {}, {}
        self.choose(places, values)

    def _gated(self, name: str, parameter: nn.Parameter) -> None:
        self._start[name] = parameter.detach().clone()
        self.keep(parameter)
        zero = torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
        self.add(f"{name}.w", zero)
        self.add(f"{name}.alpha", torch.full_like(zero, ALPHA))
        if self.recipe.structured:
            self.add(f"{name}.group", torch.full((), ALPHA, dtype=zero.dtype))
        self.divert(parameter, lambda g: self._chain(name, g))

    def _parts(self, name: str) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
        return self._params[f"{name}.w"], self._params[f"{name}.alpha"], self._params.get(f"{name}.group")

    @torch.no_grad()
    def _mean_gates(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, alpha, group = self._parts(name)
        whole = (torch.ones(()), torch.zeros(())) if group is None else gate(group)
        return (*gate(alpha), *whole)

    @torch.no_grad()
    def _mean_difference(self, name: str) -> Tensor:
        z, _, zg, _ = self._mean_gates(name)
        return self._params[f"{name}.w"] * z * zg

    @torch.no_grad()
    def _ranking(self, name: str, difference: Tensor) -> Tensor:
        """Return the sizes of the differences; of those that closed gates hold at zero, the larger w comes first."""
        return difference.abs() + _BEHIND * self._params[f"{name}.w"].abs()

    @torch.no_grad()
    def before_step(self, step: int, total: int) -> None:
        """Draw the gates of this step, write the weights that they give, and set the gates' step size."""
        if self._start and self._optimizer is not None:
            self._optimizer.param_groups[1]["lr"] = self._gate_rate(total)  # whatever the schedule says
        for name, start in self._start.items():
            w, alpha, group = self._parts(name)
            z, dz = gate(alpha, _uniform(alpha))  # like w: (out, in); zg and dzg are one number per matrix
            zg, dzg = gate(group, _uniform(group)) if group is not None else (torch.ones(()), torch.zeros(()))
            self._gates[name] = z, dz, zg, dzg
            self.eligible[name].copy_((start.to(w.dtype) + z * zg * w).to(start.dtype))

    def _gate_rate(self, total: int) -> float:
        """Return the gates' step size: of a run of so many steps, half, rounded up, are the first phase's."""
        rate = self.recipe.alpha_learning_rate
        default = min(max(_RATE, _TRAVEL / math.ceil(total / self.phases)), _FASTEST)
        return default if rate is None else rate

    def optimizer(self, groups: list[ParamGroup], betas: tuple[float, float]) -> torch.optim.Optimizer:
        self._optimizer = super().optimizer(groups, betas)
        return self._optimizer

    @torch.no_grad()
    def _chain(self, name: str, whole: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Return the gradients of w, alpha and the group: g z z_g, g w z_g dz, sum(g w z) dz_g."""
        w, alpha, group = self._parts(name)
        g = whole.to(w.dtype)
        z, dz, zg, dzg = self._gates[name]
        shares = [(w, g * z * zg), (alpha, g * w * zg * dz)]
        return shares if group is None else [*shares, (group, (g * w * z).sum() * dzg)]

    def drift(self) -> Tensor:
        """Return the squared norm of the difference that the gates of this step let through."""
        if not self._start:
            return super().drift()
        terms = []
        for name in self._start:
            w, alpha, group = self._parts(name)
            z, dz, zg, dzg = self._gates[name] if name in self._gates else self._mean_gates(name)
            through = w * (z + dz * (alpha - alpha.detach()))  # the gates' values, with their slopes as gradients
            terms.append((through * (zg if group is None else zg + dzg * (group - group.detach()))).square().sum())
        return torch.stack(terms).sum()

    def penalty(self) -> Tensor | None:
        if not self._start:
            return None
        terms = []
        for name in self._start:
            _, alpha, group = self._parts(name)
            open_group = torch.sigmoid(group - _SHIFT) if group is not None else 1.0
            terms.append(torch.sigmoid(alpha - _SHIFT).sum() * open_group)
        return self.recipe.l0_weight * torch.stack(terms).sum()

    def param_groups(self) -> list[ParamGroup]:
        if not self._start:
            later = (self.recipe.learning_rate or 0.0) * self.recipe.fixed_mask_factor
            return [{**group, "lr": later} for group in super().param_groups()]
        differences = [p for name, p in self.params().items() if name.endswith(".w")]
        gates = [p for name, p in self.params().items() if not name.endswith(".w")]
        dense = self.recipe.dense_learning_rate
        speeds = ((differences, rate_of_full(self.base) if dense is None else dense), (gates, _RATE))
        return [{"params": params, "lr": speed, "weight_decay": 0.0} for params, speed in speeds]


def _uniform(like: Tensor) -> Tensor:
    return torch.rand_like(like).clamp(1e-6, 1 - 1e-6)
