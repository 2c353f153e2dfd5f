"""Builds optimisers by name: torch's AdamW, Adafactor, those of bitsandbytes in 8 bits, and others that save memory.

adamw_bf16   AdamW on bf16 weights and moments with stochastic rounding, so that small updates are right on average
galore       AdamW in the r largest singular directions of each matrix's gradient (Zhao et al. 2024)
lomo         SGD inside the backward pass, each gradient freed at once (Lv et al. 2023)
adalomo      LOMO with Adafactor's second moments and update clipping (Lv et al. 2023, algorithm 1)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from tunewise.core.errors import TechniqueError

ParamGroup: TypeAlias = dict[str, Any]  # "params" and the options of one of an optimiser's groups, as in torch
Groups: TypeAlias = list[ParamGroup]
OptimizerState: TypeAlias = dict[str, Any]  # as `state_dict` returns it: "state" and "param_groups"
IN_BACKWARD = ("lomo", "adalomo")  # they update in the backward pass: no gradient is left to clip or accumulate


def build(name: str, groups: Groups, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Build the optimiser of this name.

    Args:
        name: "adamw", "adafactor", one of the names above, or "adamw8bit", "paged_adamw8bit", "paged_adamw".
        groups: torch's parameter groups, with their learning rates, weight decays and Adam's `eps`.
        betas: decay rates of Adam's two moments; ignored by optimisers without them.

    Raises:
        TechniqueError: the optimiser needs bitsandbytes, which is not installed.
    """
    if name == "adamw":
        tensors = [p for group in groups for p in group["params"]]
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in tensors)
        return torch.optim.AdamW(groups, betas=betas, fused=fused)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        groups = [{key: value for key, value in group.items() if key != "eps"} for group in groups]  # it has two
        return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)
    classes: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw_bf16": StochasticAdamW,
        "galore": GaLore,
        "lomo": Lomo,
        "adalomo": AdaLomo,
    }
    return classes[name](groups, betas) if name in classes else _bitsandbytes(name, groups, betas)


def _bitsandbytes(name: str, groups: Groups, betas: tuple[float, float]) -> torch.optim.Optimizer:
    try:
        import bitsandbytes
    except ImportError as error:
        raise TechniqueError(
            f"the optimizer {name} needs bitsandbytes; install tunewise[bitsandbytes], or use adamw"
        ) from error
    kind = {"adamw8bit": "AdamW8bit", "paged_adamw8bit": "PagedAdamW8bit", "paged_adamw": "PagedAdamW32bit"}[name]
    return cast(torch.optim.Optimizer, getattr(bitsandbytes.optim, kind)(groups, betas=betas))


class _PerParameter(torch.optim.Optimizer, ABC):
    """Updates one parameter at a time: `move` is called for each that has a gradient, with its group and state."""

    def __init__(self, groups: Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, group, self.state[parameter])

    @abstractmethod
    def move(self, parameter: Tensor, gradient: Tensor, group: ParamGroup, state: dict[str, Tensor]) -> None:
        """Update one parameter."""


def _adam(gradient: Tensor, group: ParamGroup, state: dict[str, Tensor]) -> Tensor:
    """Return m / (sqrt(v) + eps), Adam's bias-corrected direction, in fp32.

    The moments m and v are kept in `state`, in the gradient's shape and type.
    """
    if "exp_avg" not in state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    (beta1, beta2), g = group["betas"], gradient.float()
    state["step"] += 1
    count = float(state["step"])
    mean = state["exp_avg"].float().lerp(g, 1 - beta1)
    square = state["exp_avg_sq"].float().lerp(g * g, 1 - beta2)
    _write_rounded(state["exp_avg"], mean)
    _write_rounded(state["exp_avg_sq"], square)
    return mean / (1 - beta1**count) / ((square / (1 - beta2**count)).sqrt() + group["eps"])


def _write_rounded(target: Tensor, values: Tensor) -> None:
    """Write fp32 values into a tensor; bf16 is rounded up or down at random, so that it is right on average."""
    if target.dtype != torch.bfloat16:
        target.copy_(values)
        return
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    bits = (values.contiguous().view(torch.int32) + noise) & -(1 << 16)  # the upper half of an fp32 is a bf16
    target.copy_(bits.view(torch.float32))


class StochasticAdamW(_PerParameter):
    """Runs AdamW with stochastic rounding of bf16 weights and moments."""

    def move(self, parameter: Tensor, gradient: Tensor, group: ParamGroup, state: dict[str, Tensor]) -> None:
        """Set theta <- theta (1 - lr wd) - lr m / (sqrt(v) + eps), rounded stochastically."""
        direction = _adam(gradient, group, state)
        _write_rounded(
            parameter, parameter.float() * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * direction
        )


class GaLore(_PerParameter):
    """Runs AdamW in a low-rank projection of each gradient, for groups that have a `rank`; others are not projected.

    For a tall gradient G (m, n), m >= n, the update is scale * Adam(G P) P^T with P (n, r); for a wide one it is
    scale * P Adam(P^T G) with P (m, r). Every `update_proj_gap` steps P becomes the first r right (tall) or left (wide)
    singular vectors of G. The moments are not rotated when P changes, as in the authors' code.
    """

    def move(self, parameter: Tensor, gradient: Tensor, group: ParamGroup, state: dict[str, Tensor]) -> None:
        """Set theta <- theta (1 - lr wd) - lr scale P Adam(P^T G), or its transpose for a tall gradient."""
        rank = group.get("rank", 0)
        if rank and gradient.dim() == 2:
            tall = gradient.shape[0] >= gradient.shape[1]
            if "projector" not in state or int(state["step"]) % group["update_proj_gap"] == 0:
                u, _, v = torch.linalg.svd(gradient.float(), full_matrices=False)
                state["projector"] = (v[:rank].T if tall else u[:, :rank]).contiguous()
            p = state["projector"]
            low_rank = _adam(gradient.float() @ p if tall else p.T @ gradient.float(), group, state)  # (m, r) or (r, n)
            direction = group["scale"] * (low_rank @ p.T if tall else p @ low_rank)  # (m, n)
        else:
            direction = _adam(gradient, group, state)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction.to(parameter.dtype))


class Lomo(_PerParameter):
    """Runs SGD in the backward pass: a parameter is updated once its gradient is complete, which is then freed."""

    def __init__(self, groups: Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, betas)
        self.handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))
            for index, group in enumerate(self.param_groups)
            for parameter in group["params"]
        ]

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def move(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            group = self.param_groups[index]  # looked up now, since loading a state replaces the groups
            self.move(parameter, cast(Tensor, gradient), group, self.state[parameter])

        return move

    def move(self, parameter: Tensor, gradient: Tensor, group: ParamGroup, state: dict[str, Tensor]) -> None:
        """Set theta <- theta (1 - lr wd) - lr g."""
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * gradient)


class AdaLomo(Lomo):
    """Runs LOMO with Adafactor's factored second moments and update clipping; steps are relative to RMS(theta)."""

    def move(self, parameter: Tensor, gradient: Tensor, group: ParamGroup, state: dict[str, Tensor]) -> None:
        """Set theta <- theta (1 - a wd) - a u / max(1, RMS(u)) with a = lr max(1e-3, RMS(theta)), u = g / sqrt(v)."""
        square = gradient.float().square() + 1e-30
        matrix = gradient.dim() > 1
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["row"] = torch.zeros_like(square.mean(-1) if matrix else square)
            state["column"] = torch.zeros_like(square.mean(-2) if matrix else square)
        state["step"] += 1
        weight = float(state["step"]) ** -0.8  # of the newest gradient in the moving average
        state["row"].lerp_(square.mean(-1) if matrix else square, weight)
        if matrix:
            state["column"].lerp_(square.mean(-2), weight)
            row = state["row"] / state["row"].mean(-1, keepdim=True)
            update = gradient.float() * row.rsqrt()[..., None] * state["column"].rsqrt()[..., None, :]
        else:
            update = gradient.float() * state["row"].rsqrt()
        update /= _rms(update).clamp(min=1.0)
        rate = group["lr"] * _rms(parameter.float()).clamp(min=1e-3)
        parameter.mul_(1 - rate * group["weight_decay"]).sub_((rate * update).to(parameter.dtype))


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


class Combined(torch.optim.Optimizer):
    """Several optimisers, each over groups of its own, that a loop, a schedule and a checkpoint see as one.

    Groups and states stay with the members, in their order; nothing is copied.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:  # no state of its own, so no super()
        self.members = tuple(members)

    @property
    def param_groups(self) -> Groups:  # type: ignore[override]
        """The members' groups, themselves: a schedule writes its rates into them."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """The members' states by parameter."""
        return {parameter: slots for member in self.members for parameter, slots in member.state.items()}

    @property
    def defaults(self) -> ParamGroup:  # type: ignore[override]
        """None: every group has its own values."""
        return {}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let each member move its parameters."""
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> OptimizerState:
        """The members' dictionaries in one; parameters are counted through all groups."""
        states, groups, first = dict[int, Any](), Groups(), 0
        for member in self.members:
            member_state = member.state_dict()
            states |= {first + place: slots for place, slots in member_state["state"].items()}
            for group in member_state["param_groups"]:
                groups.append({**group, "params": [first + place for place in group["params"]]})
            first += _count(member.param_groups)
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, state_dict: OptimizerState) -> None:
        """Give each member its part of `state_dict()`."""
        groups, first = list(state_dict["param_groups"]), 0
        for member in self.members:
            own, groups = groups[: len(member.param_groups)], groups[len(member.param_groups) :]
            last = first + _count(own)
            states = {place - first: slots for place, slots in state_dict["state"].items() if first <= place < last}
            shifted = [{**group, "params": [place - first for place in group["params"]]} for group in own]
            member.load_state_dict({"state": states, "param_groups": shifted})
            first = last


def _count(groups: Groups) -> int:
    return sum(len(group["params"]) for group in groups)
