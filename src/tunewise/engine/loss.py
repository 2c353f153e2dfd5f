"""Cross-entropy at labelled positions only, in chunks, with its gradient made in the forward pass.

    nll_i = logsumexp(W h_i + b) - (W h_i + b)[y_i]        d nll_i / d logits = softmax - onehot(y_i)

The logits of all positions never exist at once: for a vocabulary of 32k they are the largest tensor of a plain
training step. Shapes: hidden (N, d), weight (V, d), targets (N,); V vocabulary, N labelled positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MB in float32


def head_loss(head: nn.Module, hidden: Tensor, targets: Tensor, scale: float | None = None) -> Tensor:
    """Sum of negative log-likelihoods (nats) of `targets` under `head(hidden)`; differentiable, fp32 or better.

    With `scale` it is the sum times that, and `backward()` must be called on it as it is: the gradient of a plain
    head's weight is added to its `grad` already here, since one as large as a vocabulary should not exist twice.
    """
    if _is_plain(head):
        return _LinearLoss.apply(hidden, head.weight, head.bias, targets, scale)
    rows = _rows(head)
    parts = [
        checkpoint(_chunk_loss, head, part, target, use_reentrant=False)
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    total = torch.stack(parts).sum() if parts else hidden.sum() * 0.0
    return total if scale is None else total * scale


@torch.no_grad()
def token_nll(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (nats) of each target, shape (N,)."""
    rows = _rows(head)
    parts = [
        nn.functional.cross_entropy(_at_least_float32(head(part)), target, reduction="none")
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _chunk_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(_at_least_float32(head(hidden)), targets, reduction="sum")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _is_plain(head: nn.Module) -> bool:
    """Whether the head is nothing but its weight and bias: no hook, no subclass, no parametrisation."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


def _rows(head: nn.Module) -> int:
    return max(16, _CHUNK_ELEMENTS // next(head.parameters()).shape[0])


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, scale):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        total = torch.zeros((), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        total = total.to(hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        at_once = scale is not None and needs_weight and _is_unwatched(weight)
        grad_weight = (_grad(weight) if at_once else torch.zeros_like(weight)) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        matrix = weight.to(hidden.dtype)  # under autocast the states are bf16 over fp32 weights
        offset = bias.to(hidden.dtype) if bias is not None else None
        rows = max(16, _CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, len(targets), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows, None]
            logits = _at_least_float32(nn.functional.linear(part, matrix, offset))
            top, wanted = logits.amax(1, keepdim=True), logits.gather(1, target)
            mass = logits.sub_(top).exp_().sum(1, keepdim=True)  # one exponential for value and gradient
            total += (mass.log() + top - wanted).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            logits.scatter_add_(1, target, -mass)  # mass * (softmax - onehot); divided where the tensor is small
            slope = logits.to(hidden.dtype)
            each = (mass.reciprocal() * (1.0 if scale is None else scale)).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(slope, matrix, out=grad_hidden[start : start + rows])
                grad_hidden[start : start + rows] *= each
            if grad_weight is not None:
                grad_weight.addmm_(slope.T.to(weight.dtype), (part * each).to(weight.dtype))
            if grad_bias is not None:
                grad_bias += (slope.T.to(bias.dtype) @ each.to(bias.dtype))[:, 0]
        ctx.save_for_backward(grad_hidden, None if at_once else grad_weight, grad_bias)
        return total if scale is None else total * scale

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # In place, for a head's gradient is large; autograd refuses a second backward through a changed tensor.
        return *(None if g is None else g.mul_(grad.to(g.dtype)) for g in ctx.saved_tensors), None, None


def _is_unwatched(weight: Tensor) -> bool:
    """Whether nobody waits for this gradient to come out of a backward pass."""
    return weight.is_leaf and not weight._backward_hooks and not weight._post_accumulate_grad_hooks


def _grad(weight: Tensor) -> Tensor:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
