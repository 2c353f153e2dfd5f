"""Low-rank updates of frozen linears: the layer that LoRA and the techniques made of it share.

    y = W x + bias + scale * B A x          A (r, in), B (out, r)

One autograd function computes it: the update is added in place, its input gradient is added to the base's, and no
gradient of W is ever formed. W may be made anew for each pass (from 4 bits, say), so that it is not kept for backward.

In shapes: N tokens (all leading dimensions of x in one), in and out the linear's sides, r the rank, V the vocabulary, d
the model's width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, embedding, linear

from tunewise.contract.attachment import Attachment, PeftConfig
from tunewise.core.errors import SettingError
from tunewise.engine.anatomy import add_to_weight, oriented
from tunewise.techniques.building.peft_lora import Factors, portable

if TYPE_CHECKING:
    from tunewise.engine.model import Base

ALL_LINEAR = "all-linear"


class LowRank(Attachment):
    """Adds an update to each of several frozen linears; a technique's `factors` returns the current update."""

    dropout_rate: float = 0.0

    def __init__(self, base: Base, recipe: Any) -> None:
        super().__init__(base, recipe)
        self.layers: dict[str, nn.Module] = {}

    @abstractmethod
    def factors(self, path: str) -> Factors:
        """Return the current update of this linear."""

    def matrix(self, path: str) -> Tensor:
        """Return the frozen weight, (out, in)."""
        return oriented(self.layers[path])

    def place(self, path: str, module: nn.Module) -> None:
        """Put an update on a linear."""
        self.layers[path] = module
        module.forward = lambda x: self.forward(path, x)
        self._undo.append(lambda: vars(module).pop("forward", None))

    def place_end(self, path: str, modules: list[nn.Module]) -> None:
        """Put an update (V, d) on the input embeddings, on the head, or on both where they are one tensor."""
        self.layers[path] = modules[0]
        for module in modules:
            hook = self._at_head if isinstance(module, nn.Linear) else self._at_embedding
            self.hook(module.register_forward_hook(partial(hook, path)))

    def _at_head(self, path: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        a, b, scale = self.factors(path)  # (r, d), (V, r)
        return output + linear(linear(args[0].to(a.dtype), a), b * scale).to(output.dtype)  # (..., V)

    def _at_embedding(self, path: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        a, b, scale = self.factors(path)  # (r, d), (V, r)
        # (B, T); the ids of virtual tokens lie beyond the vocabulary, and their rows are overwritten later
        ids = args[0].clamp(max=len(b) - 1)
        scale = scale * getattr(module, "scalar_embed_scale", 1.0)  # Gemma multiplies its embeddings
        return output + (embedding(ids, b) @ a * scale).to(output.dtype)  # (B, T, r) @ (r, d)

    def forward(self, path: str, x: Tensor) -> Tensor:
        """Compute the linear with its update: (..., in) to (..., out)."""
        return self.updated(path, x, cast("Tensor | None", self.layers[path].bias))

    def updated(self, path: str, x: Tensor, bias: Tensor | None) -> Tensor:
        """(W + update) x + bias: compute the updated linear with this bias."""
        a, b, scale = self.factors(path)
        matrix = lambda: self.matrix(path)  # noqa: E731
        if (
            self.dropout_rate and torch.is_grad_enabled()
        ):  # the base stays in evaluation mode, so its `training` flag says nothing
            frozen = frozen_linear(x, matrix, bias, len(b))
            projected = linear(dropout(x, self.dropout_rate).to(a.dtype), a)  # (..., in) to (..., r)
            return frozen + linear(projected, b * scale).to(frozen.dtype)
        return cast(Tensor, _Updated.apply(x, a, b, bias, scale, matrix))

    def delta(self, path: str) -> Tensor:
        """Return what merging adds to the weight, (out, in)."""
        return self.factors(path).delta

    def drift(self) -> Tensor:
        """s^2 tr((B^T B)(A A^T)), summed: return the squared norm of all updates without forming them."""
        terms = [
            scale**2 * ((b.T @ b) * (a @ a.T)).sum() for a, b, scale in (self.factors(path) for path in self.layers)
        ]
        return torch.stack(terms).sum()

    def fold(self) -> None:
        """Add the updates to the weights; all updates are computed before the first weight changes."""
        deltas = {path: self.delta(path) for path in self.layers}
        for path, module in self.layers.items():
            vars(module).pop("forward", None)
            self.add_delta(path, deltas[path])

    def add_delta(self, path: str, delta: Tensor) -> None:
        """Add an update (out, in) to its weight."""
        self.keep(cast(nn.Parameter, self.layers[path].weight))
        add_to_weight(self.layers[path], delta)

    def peft(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Return the updates as a plain LoRA."""
        return portable({path: self.factors(path) for path in self.layers}, self.base, self.layers)


def frozen_linear(x: Tensor, matrix: Callable[[], Tensor], bias: Tensor | None, size_out: int) -> Tensor:
    """W x + bias, for a W (size_out, in) that is made anew in backward; W gets no gradient."""
    nothing = x.new_zeros(0, x.shape[-1])
    return cast(Tensor, _Updated.apply(x, nothing, x.new_zeros(size_out, 0), bias, 0.0, matrix))


class _Updated(torch.autograd.Function):
    """Computes in one type: autocast's, or that of the states, to which the float32 factors are rounded."""

    @staticmethod
    def forward(ctx, x, a, b, bias, scale, matrix):  # type: ignore[no-untyped-def]
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, in)
            weight = matrix().to(dtype)  # (out, in)
            out = rows @ weight.T if bias is None else torch.addmm(bias.to(dtype), rows, weight.T)  # (N, out)
            low = rows @ a.T.to(dtype)  # (N, in) @ (in, r)
            out.addmm_(low, b.T.to(dtype), alpha=scale)  # += (N, r) @ (r, out)
        keep = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(*((rows, low) if keep else (None, None)), a, b)
        ctx.scale, ctx.matrix, ctx.shape, ctx.dtypes = scale, matrix, x.shape, (x.dtype, dtype)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        rows, low, a, b = ctx.saved_tensors
        x_dtype, dtype = ctx.dtypes
        needs_x, needs_a, needs_b, needs_bias, _, _ = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            g = grad.reshape(-1, grad.shape[-1]).to(dtype)  # (N, out)
            down = (g @ b.to(dtype)).mul_(ctx.scale)  # (N, out) @ (out, r)
            grad_x = None
            if needs_x:
                grad_x = g @ ctx.matrix().to(dtype)  # (N, out) @ (out, in)
                grad_x = grad_x.addmm_(down, a.to(dtype)).to(x_dtype).view(ctx.shape)  # += (N, r) @ (r, in)
            grad_a = (down.T @ rows).to(a.dtype) if needs_a else None  # (r, N) @ (N, in)
            grad_b = (g.T @ low).mul_(ctx.scale).to(b.dtype) if needs_b else None  # (out, N) @ (N, r)
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needs_bias else None
        return grad_x, grad_a, grad_b, grad_bias, None, None


def targets(base: Base, names: Iterable[str], setting: str) -> dict[str, tuple[str, nn.Module]]:
    """Return (role, linear) of the blocks' linears that `names` selects, by path.

    Raises:
        SettingError: a name that is no role, no path and no end of a path, or no name at all.
    """
    linears_by_path: dict[str, tuple[str, nn.Module]] = {}
    linears = list(base.anatomy.linears())
    for name in names:
        matches = {
            path: (role, module) for path, role, module in linears if name == ALL_LINEAR or named(name, path, role)
        }
        if not matches:
            last_names = sorted({path.rsplit(".", 1)[-1] for path, _, _ in linears})
            roles = f"{', '.join(last_names)} (roles {', '.join(base.anatomy.roles)})"
            raise SettingError(f'{setting} names "{name}", but the linears here are {roles}')
        linears_by_path |= matches
    if not linears_by_path:
        raise SettingError(f"{setting} is empty, so nothing would be adapted; name linears, or leave it out for all")
    return linears_by_path


def named(name: str, path: str, role: str) -> bool:
    """Return whether a name means this linear: its role, its path, or the end of its path."""
    return name in (role, path) or path.endswith("." + name)


def ends(base: Base, names: Iterable[str]) -> dict[str, list[nn.Module]]:
    """Return what is named of input embeddings and head, by path; tied ones are one entry, whichever is named."""
    anatomy = base.anatomy
    embeddings = [(anatomy.embedding_path, anatomy.embedding), (anatomy.head_path, anatomy.head)]
    matches = [(path, module) for path, module in embeddings if any(named(name, path, "") for name in names)]
    if anatomy.tied and matches:
        return {embeddings[0][0]: [module for _, module in embeddings]}
    return {path: [module] for path, module in matches}


STARTED = ("pissa", "olora")  # the starts in which B is not zero


@torch.no_grad()
def start(kind: str, weight: Tensor, update: Factors, generator: torch.Generator) -> None:
    """Fill A, and with pissa and olora B too, of an update of this weight (out, in).

    kaiming: uniform within 1/sqrt(in), as the authors' code and PEFT; gaussian: with deviation 1/r, as PEFT;
    orthogonal: columns at right angles; pissa: the largest singular vectors of W, with the roots of their values over
    the scale on both sides; olora: the first columns and rows of its QR factors. Both are as in PEFT, which the authors
    of both use.

    Raises:
        SettingError: pissa or olora with a rank larger than the weight's smaller side, or with a scale of 0.
    """
    a, b, scale = update
    rank, size = a.shape
    if kind == "kaiming":
        bound = 1 / math.sqrt(size)
        a.copy_(torch.rand(rank, size, generator=generator) * 2 * bound - bound)
    elif kind == "gaussian":
        a.copy_(torch.randn(rank, size, generator=generator) / rank)
    elif kind == "orthogonal":
        a.copy_(torch.nn.init.orthogonal_(torch.empty(rank, size), generator=generator))
    elif rank > min(weight.shape):
        raise SettingError(f"init_lora_weights={kind} takes r up to {min(weight.shape)} for this model, not {rank}")
    elif not scale:
        raise SettingError(f"init_lora_weights={kind} needs lora_alpha above 0: the update takes over a part of W")
    elif kind == "pissa":
        u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
        root = (s[:rank] / scale).sqrt()
        a.copy_(root[:, None] * v[:rank])
        b.copy_(u[:, :rank] * root)
    else:
        q, upper = torch.linalg.qr(weight.float())
        a.copy_(upper[:rank])
        b.copy_(q[:, :rank])
