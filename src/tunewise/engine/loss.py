"""Cross-entropy at labelled positions only, in chunks, with its gradient computed in the forward pass.

    nll_i = logsumexp(W h_i + b) - (W h_i + b)[y_i]        d nll_i / d logits = softmax - onehot(y_i)

The logits of all positions never exist at once: for a vocabulary of 32k they are the largest tensor of a plain
training step. Shapes: hidden (N, d), weight (V, d), targets (N,); V vocabulary, N labelled positions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunewise.engine.device import on_gpu

_CHUNK_ELEMENTS = 1 << 22  # logits that exist at once: 16 MB in float32
_GPU_CHUNK_ELEMENTS = 1 << 26  # 512 rows of a vocabulary of 128k: a GPU is slow on products of few rows


def head_loss(head: nn.Module, hidden: Tensor, targets: Tensor, scale: float | None = None) -> Tensor:
    """Return the sum of the negative log-likelihoods (nats) of `targets` under `head(hidden)`.

    It is differentiable, and in float32 or better. With `scale` the sum is multiplied by it, and `backward()` must be
    called on the result as it is: the gradient of a plain head's weight is added to `weight.grad` already here, since a
    gradient as large as the vocabulary should not exist twice.
    """
    if _is_plain(head):
        return _LinearLoss.apply(hidden, head.weight, head.bias, targets, scale)
    rows = _chunk_rows(hidden, _vocabulary(head))
    parts = [
        checkpoint(_chunk_loss, head, part, target, use_reentrant=False)
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    total = torch.stack(parts).sum() if parts else hidden.sum() * 0.0
    return total if scale is None else total * scale


@torch.no_grad()
def token_nll(head: nn.Module, hidden: Tensor, targets: Tensor, sources: Sequence[int]) -> Tensor:
    """Return the negative log-likelihood (nats) of each target, shape (N,).

    `sources` says for each target from which of the rows of `hidden` (P, d) it is predicted, in ascending order.
    """
    rows, parts = _chunk_rows(hidden, _vocabulary(head)), list[Tensor]()
    for start in range(0, len(hidden), rows):
        first, end = bisect_left(sources, start), bisect_left(sources, start + rows)
        log_p = _at_least_float32(head(hidden[start : start + rows])).log_softmax(-1)  # (rows, V)
        local = torch.tensor(sources[first:end], device=hidden.device) - start
        parts.append(-log_p[local, targets[first:end]])
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _chunk_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(_at_least_float32(head(hidden)), targets, reduction="sum")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _is_plain(head: nn.Module) -> bool:
    """Whether the head computes W h + b and nothing else: no hook, no subclass, no parametrisation."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


def _chunk_rows(hidden: Tensor, vocabulary: int) -> int:
    """Return how many positions are computed at once."""
    return max(16, (_GPU_CHUNK_ELEMENTS if on_gpu(hidden) else _CHUNK_ELEMENTS) // vocabulary)


def _vocabulary(head: nn.Module) -> int:
    return int(next(head.parameters()).shape[0])


class _LinearLoss(torch.autograd.Function):
    """Computes the loss of a plain linear head, and its gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, scale):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        total = torch.zeros((), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        total = total.to(hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # In half precision, sums over many chunks would lose the small ones: they are taken in float32.
        exact = torch.promote_types(weight.dtype, torch.float32)
        accumulate = scale is not None and needs_weight and weight.dtype == exact and _has_no_hooks(weight)
        grad_weight = (_grad(weight) if accumulate else torch.zeros_like(weight, dtype=exact)) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and needs_bias else None
        matrix = weight.to(hidden.dtype)  # under autocast the states are bf16 over fp32 weights
        offset = bias.to(hidden.dtype) if bias is not None else None
        rows = _chunk_rows(hidden, weight.shape[0])
        for start in range(0, len(targets), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows, None]  # (n, d), (n, 1)
            logits = _at_least_float32(nn.functional.linear(part, matrix, offset))  # (n, V)
            top, target_logit = logits.amax(1, keepdim=True), logits.gather(1, target)  # (n, 1) each
            mass = logits.sub_(top).exp_().sum(1, keepdim=True)  # one exponential for value and gradient
            total += (mass.log() + top - target_logit).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            # This makes logits = mass * (softmax - onehot). The division by mass is left to smaller tensors.
            logits.scatter_add_(1, target, -mass)
            slope = logits.to(hidden.dtype)
            factor = (mass.reciprocal() * (1.0 if scale is None else scale)).to(hidden.dtype)  # (n, 1)
            if grad_hidden is not None:
                torch.mm(slope, matrix, out=grad_hidden[start : start + rows])
                grad_hidden[start : start + rows] *= factor
            if grad_weight is not None:
                grad_weight.addmm_(slope.T.to(exact), (part * factor).to(exact))
            if grad_bias is not None:
                grad_bias += (slope.T.to(exact) @ factor.to(exact))[:, 0]
        ctx.save_for_backward(grad_hidden, None if accumulate else grad_weight, grad_bias)
        return total if scale is None else total * scale

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # In place, since a head's gradient is large. A second backward pass is refused by autograd, which sees that the
        # saved tensors were changed.
        return *(None if g is None else g.mul_(grad.to(g.dtype)) for g in ctx.saved_tensors), None, None


def _has_no_hooks(weight: Tensor) -> bool:
    """Whether this is a leaf whose gradient no hook waits for in the backward pass."""
    return weight.is_leaf and not weight._backward_hooks and not weight._post_accumulate_grad_hooks


def _grad(weight: Tensor) -> Tensor:
    """Return the weight's gradient, which is made of zeros where there is none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
