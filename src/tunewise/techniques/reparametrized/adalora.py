"""AdaLoRA: low-rank updates that share a budget of ranks by importance (Zhang et al. 2023).

    W + s P Lambda Q,   s = lora_alpha / init_r,   P (out, r), Q (r, in), Lambda diagonal, zero at the start
    loss + orth_reg_weight * mean over all P, Q of ||P^T P - I||_F, ||Q Q^T - I||_F          in training only
    importance of rank i:   S_i = s(lambda_i) + mean_j s(P_ji) + mean_j s(Q_ij),   s(w) = I U
        I <- beta1 I + (1 - beta1) |w dL/dw|,   U <- beta2 U + (1 - beta2) | |w dL/dw| - I |
    budget:   b(t) = b_0 for t <= t_i;   int(b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3) until T - t_f;   b_T

At every multiple of delta_t steps the ranks below the budget's, over all matrices together, have their lambda set to
zero. From step T - t_f on the choice stays, and importance is of the steps before it. It is taken before the update, as
in the paper's algorithm; the authors' trainer takes it after the update, of the new weights and the old gradient. The
regulariser is the authors' code's (norms not squared, averaged). The budget is the code's too: equation 14, as printed,
is not continuous. The artifact holds the surviving ranks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, Findings, strict
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.engine.anatomy import features
from tunewise.techniques.building.generated import GeneratedAttachment
from tunewise.techniques.building.lowrank import ALL_LINEAR, LowRank, targets
from tunewise.techniques.building.peft_lora import Factors

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_PARTS = ("lora_E", "lora_B", "lora_A")


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Technique):
    """Low-rank updates whose ranks follow importance."""

    name = "adalora"
    family = "reparametrized"
    summary = "low-rank updates whose ranks follow importance"
    citation = Citation(
        "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "Zhang et al.",
        2023,
        "https://arxiv.org/abs/2303.10512",
        "section 3",
    )
    equation = "W + s P Lambda Q, the least important entries of Lambda zeroed down to a budget"
    sides = frozenset({"weights"})
    mergeable = True
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 1e-3
    width_exponent = 0.5

    target_r: int = setting(8, "Average rank at the end.", low=1, high=4096, search=(4,))
    init_r: int = setting(12, "Rank of every matrix at the start.", low=1, high=4096)
    lora_alpha: float = setting(32.0, "The update is multiplied by lora_alpha / init_r.", low=0.0, high=1e6)
    tinit: float = setting(0.1, "Steps before ranks are removed, or below 1 a share of all.", low=0.0, high=1e9)
    tfinal: float = setting(0.3, "Steps after the last removal, or below 1 a share of all.", low=0.0, high=1e9)
    delta_t: int = setting(1, "Ranks are removed at the multiples of so many steps.", low=1, high=1_000_000)
    beta1: float = setting(0.85, "Smoothing of the sensitivity I.", low=0.0, high=1.0)
    beta2: float = setting(0.85, "Smoothing of its uncertainty U.", low=0.0, high=1.0)
    orth_reg_weight: float = setting(0.1, "Weight of the orthogonality of P and Q.", low=0.0, high=1000.0)
    target_modules: tuple[str, ...] = setting(
        (ALL_LINEAR,), "Linears adapted: all-linear, roles (q, k, v, o, gate, up, down), or ends of module names."
    )
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put updates on the targeted linears.

        Raises:
            SettingError: a target that names no linear, or a target rank above the first.
        """
        if self.target_r > self.init_r:
            raise SettingError(
                f"adalora.target_r is {self.target_r}, but every matrix starts at init_r = {self.init_r}"
            )
        return _Adaptive(base, self, generator)

    def budget(self, step: int, total: int, matrices: int) -> int:
        """b(t): return how many ranks all matrices have together after optimiser step `step` (from 1) of `total`."""
        first, last = self.init_r * matrices, self.target_r * matrices
        begin, end = self.span(total)
        if step <= begin:
            return first
        if step >= end:
            return last
        return int(last + (first - last) * (1 - (step - begin) / (end - begin)) ** 3)

    def span(self, total: int) -> tuple[int, int]:
        """Return the steps t_i and T - t_f, between which ranks are removed."""
        begin, after = (round(part * total) if part < 1 else int(part) for part in (self.tinit, self.tfinal))
        return begin, max(total - after, 0)


class _Adaptive(GeneratedAttachment, LowRank):
    def __init__(self, base: Base, recipe: AdaLoRA, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: AdaLoRA = recipe
        self.triplets: dict[str, tuple[nn.Parameter, nn.Parameter, nn.Parameter]] = {}
        for path, (_, module) in targets(base, recipe.target_modules, "adalora.target_modules").items():
            size_in, size_out = features(module)
            e = self.add(f"{path}.lora_E", torch.zeros(recipe.init_r))
            p = self.add(f"{path}.lora_B", torch.randn(size_out, recipe.init_r, generator=generator) * 0.02)
            q = self.add(f"{path}.lora_A", torch.randn(recipe.init_r, size_in, generator=generator) * 0.02)
            self.triplets[path] = e, p, q
            self.place(path, module)
        self.averages = {
            f"{name}.{kind}": torch.zeros_like(p) for name, p in self._params.items() for kind in ("I", "U")
        }
        self.alive = {f"{path}.alive": torch.ones(recipe.init_r, dtype=torch.bool) for path in self.layers}
        self.final = torch.zeros((), dtype=torch.bool)  # whether the choice of ranks is final

    @property
    def complete(self) -> bool:
        """Whether the ranks are chosen for good; before that, removed ones can still come back."""
        return bool(self.final)

    def make(self) -> dict[str, Tensor]:
        """Return Lambda, P and Q of the surviving ranks."""
        tensors: dict[str, Tensor] = {}
        for path in self.triplets:
            tensors |= {f"{path}.{part}": tensor for part, tensor in zip(_PARTS, self._living(path), strict=True)}
        return tensors

    def _living(self, path: str) -> tuple[Tensor, Tensor, Tensor]:
        e, p, q = self.triplets[path]
        rows = self.alive[f"{path}.alive"].nonzero()[:, 0].to(e.device)
        return e[rows], p[:, rows], q[rows]  # (alive,), (out, alive), (alive, in)

    def factors(self, path: str) -> Factors:
        scale = self.recipe.lora_alpha / self.recipe.init_r
        if self.stored is not None:
            e, p, q = (self.stored[f"{path}.{part}"] for part in _PARTS)
        elif self.final:
            e, p, q = self._living(path)
        else:
            e, p, q = self.triplets[path]
        return Factors(e[:, None] * q, p, scale)

    def penalty(self) -> Tensor:
        terms = []
        for _, p, q in self.triplets.values():
            one = torch.eye(p.shape[1], device=p.device, dtype=p.dtype)  # (r, r)
            terms += [(p.T @ p - one).norm(), (q @ q.T - one).norm()]  # (r, out) @ (out, r), (r, in) @ (in, r)
        return self.recipe.orth_reg_weight * torch.stack(terms).mean()

    @torch.no_grad()
    def after_backward(self, step: int, total: int) -> None:
        _, end = self.recipe.span(total)
        if step + 1 >= end:
            return
        for name, parameter in self._params.items():
            if parameter.grad is None:
                continue
            mean, doubt = self.averages[f"{name}.I"], self.averages[f"{name}.U"]
            now = (parameter * parameter.grad).abs()
            mean.lerp_(now, 1 - self.recipe.beta1)
            doubt.lerp_((now - mean).abs(), 1 - self.recipe.beta2)

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        done = step + 1
        begin, end = self.recipe.span(total)
        if not self.final and (done >= end or (done > begin and done % self.recipe.delta_t == 0)):
            self._choose(self.recipe.budget(done, total, len(self.triplets)))
            self._zero_removed()
            self.final.fill_(done >= end)
        elif self.final:
            self._zero_removed()

    def _choose(self, budget: int) -> None:
        """Keep the `budget` most important ranks of all matrices; of equal ones the first."""
        scores = torch.cat([self._scores(path) for path in self.triplets])
        best = scores.sort(descending=True, stable=True).indices[:budget]
        alive = torch.zeros(len(scores), dtype=torch.bool)
        alive[best.cpu()] = True
        self.alive = dict(zip(self.alive, alive.split(self.recipe.init_r), strict=True))

    def _scores(self, path: str) -> Tensor:
        e, p, q = (self.averages[f"{path}.{part}.I"] * self.averages[f"{path}.{part}.U"] for part in _PARTS)
        return e + p.mean(0) + q.mean(1)  # (r,) of (r,), (out, r), (r, in)

    def _zero_removed(self) -> None:
        for path, (e, _, _) in self.triplets.items():
            e.mul_(self.alive[f"{path}.alive"].to(e))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state()`, with any number of ranks up to init_r for each matrix."""
        full = {name: parameter.detach() for name, parameter in self._params.items()}
        vectors = {path: state.get(f"{path}.lora_E") for path in self.triplets}
        ranks = {path: vector.numel() if vector is not None else 0 for path, vector in vectors.items()}
        if max(ranks.values()) > self.recipe.init_r:
            raise ArtifactError(f"the weights hold ranks above init_r = {self.recipe.init_r}")
        expected: dict[str, Tensor] = {}
        for path, rank in ranks.items():
            e, p, q = (full[f"{path}.{part}"] for part in _PARTS)
            expected |= {f"{path}.lora_E": e[:rank], f"{path}.lora_B": p[:, :rank], f"{path}.lora_A": q[:rank]}
        strict(expected, state)
        self.stored = {name: tensor.to(self.base.device) for name, tensor in state.items()}

    def training_state(self) -> dict[str, Tensor]:
        return super().training_state() | self.averages | self.alive | {"final": self.final}

    def findings(self, validation_loss: Callable[[], float]) -> Findings:
        """Return the rank of every matrix."""
        return {"ranks": {path: int(self.alive[f"{path}.alive"].sum()) for path in self.triplets}}
