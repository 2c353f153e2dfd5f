"""Optimisers by name: torch's AdamW, Adafactor, bitsandbytes' in eight bits, and those that save memory otherwise.

adamw_bf16   AdamW on bf16 weights and moments, each rounded up or down at random in proportion, so that small
             updates are not lost on average
galore       AdamW in the r largest singular directions of each matrix's gradient (Zhao et al. 2024)
lomo         SGD inside the backward pass, each gradient freed at once (Lv et al. 2023)
adalomo      the same with Adafactor's second moments and update clipping (Lv et al. 2023, algorithm 1)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from tunewise.core.errors import TechniqueError

Groups = list[dict[str, Any]]
IN_BACKWARD = ("lomo", "adalomo")  # no gradient is left to be clipped or accumulated


def build(name: str, groups: Groups, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """The optimiser of this name over parameter groups with their learning rates and weight decays.

    Raises:
        TechniqueError: bitsandbytes is wanted and not installed.
    """
    if name == "adamw":
        tensors = [p for group in groups for p in group["params"]]
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in tensors)
        return torch.optim.AdamW(groups, betas=betas, fused=fused)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)
    own: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw_bf16": StochasticAdamW,
        "galore": GaLore,
        "lomo": Lomo,
        "adalomo": AdaLomo,
    }
    return own[name](groups, betas) if name in own else _eight_bits(name, groups, betas)


def _eight_bits(name: str, groups: Groups, betas: tuple[float, float]) -> torch.optim.Optimizer:
    try:
        import bitsandbytes
    except ImportError as error:
        raise TechniqueError(
            f"the optimizer {name} needs bitsandbytes; install tunewise[bitsandbytes], or use adamw"
        ) from error
    kind = {"adamw8bit": "AdamW8bit", "paged_adamw8bit": "PagedAdamW8bit", "paged_adamw": "PagedAdamW32bit"}[name]
    return cast(torch.optim.Optimizer, getattr(bitsandbytes.optim, kind)(groups, betas=betas))


class _Own(torch.optim.Optimizer, ABC):
    """The loop over parameters that have a gradient; `move` is given each with its group and state."""

    def __init__(self, groups: Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, group, self.state[parameter])

    @abstractmethod
    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """One parameter's update."""


def _adam(gradient: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> Tensor:
    """Adam's direction in fp32, bias-corrected; the moments are kept in `state`, of the gradient's shape."""
    if "exp_avg" not in state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    (beta1, beta2), g = group["betas"], gradient.float()
    state["step"] += 1
    count = float(state["step"])
    mean = state["exp_avg"].float().lerp(g, 1 - beta1)
    square = state["exp_avg_sq"].float().lerp(g * g, 1 - beta2)
    _put(state["exp_avg"], mean)
    _put(state["exp_avg_sq"], square)
    return mean / (1 - beta1**count) / ((square / (1 - beta2**count)).sqrt() + group["eps"])


def _put(target: Tensor, values: Tensor) -> None:
    """Write fp32 values, into bf16 by rounding at random, right on average."""
    if target.dtype != torch.bfloat16:
        target.copy_(values)
        return
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    bits = (values.contiguous().view(torch.int32) + noise) & -(1 << 16)  # the upper half of an fp32 is a bf16
    target.copy_(bits.view(torch.float32))


class StochasticAdamW(_Own):
    """AdamW with stochastic rounding where weights are bf16."""

    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Theta <- theta (1 - lr wd) - lr m / (sqrt(v) + eps), rounded at random."""
        direction = _adam(gradient, group, state)
        _put(parameter, parameter.float() * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * direction)


class GaLore(_Own):
    """AdamW in a low-rank projection of each gradient; groups with a `rank` are projected, others are not.

    Every `update_proj_gap` steps: P = the first r right (of tall matrices) or left singular vectors of G; the update is
    scale * Adam(G P) P^T. The moments are not turned when P changes, as in the authors' code.
    """

    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Theta <- theta (1 - lr wd) - lr scale P Adam(P^T G)."""
        rank = group.get("rank", 0)
        if rank and gradient.dim() == 2:
            tall = gradient.shape[0] >= gradient.shape[1]
            if "projector" not in state or int(state["step"]) % group["update_proj_gap"] == 0:
                u, _, v = torch.linalg.svd(gradient.float(), full_matrices=False)
                state["projector"] = (v[:rank].T if tall else u[:, :rank]).contiguous()
            p = state["projector"]  # (in, r) of a tall gradient (out, in), else (out, r)
            low = _adam(gradient.float() @ p if tall else p.T @ gradient.float(), group, state)
            direction = group["scale"] * (low @ p.T if tall else p @ low)
        else:
            direction = _adam(gradient, group, state)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction.to(parameter.dtype))


class Lomo(_Own):
    """SGD in the backward pass: a parameter moves as soon as its gradient is whole, which is then freed."""

    def __init__(self, groups: Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, betas)
        self.handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(place))
            for place, group in enumerate(self.param_groups)
            for parameter in group["params"]
        ]

    def _hook(self, place: int) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def move(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            group = self.param_groups[place]  # loading a state puts new groups here
            self.move(parameter, cast(Tensor, gradient), group, self.state[parameter])

        return move

    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Theta <- theta (1 - lr wd) - lr g."""
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * gradient)


class AdaLomo(Lomo):
    """Adafactor's factored second moments and update clipping in the backward pass, the rate in parts of RMS(theta)."""

    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """U = g / sqrt(v), u / max(1, RMS(u)); theta <- theta - lr max(1e-3, RMS(theta)) u."""
        square = gradient.float().square() + 1e-30
        matrix = gradient.dim() > 1
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["row"] = torch.zeros_like(square.mean(-1) if matrix else square)
            state["column"] = torch.zeros_like(square.mean(-2) if matrix else square)
        state["step"] += 1
        share = float(state["step"]) ** -0.8
        state["row"].lerp_(square.mean(-1) if matrix else square, share)
        if matrix:
            state["column"].lerp_(square.mean(-2), share)
            row = state["row"] / state["row"].mean(-1, keepdim=True)
            update = gradient.float() * row.rsqrt()[..., None] * state["column"].rsqrt()[..., None, :]
        else:
            update = gradient.float() * state["row"].rsqrt()
        update /= _rms(update).clamp(min=1.0)
        rate = group["lr"] * _rms(parameter.float()).clamp(min=1e-3)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_((rate * update).to(parameter.dtype))


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
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
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

    def state_dict(self) -> dict[str, Any]:
        """The members' dictionaries in one; parameters are counted through all groups."""
        states, groups, first = dict[int, Any](), Groups(), 0
        for member in self.members:
            held = member.state_dict()
            states |= {first + place: slots for place, slots in held["state"].items()}
            for group in held["param_groups"]:
                groups.append({**group, "params": [first + place for place in group["params"]]})
            first += _count(member.param_groups)
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
