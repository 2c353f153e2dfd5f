"""Attention over a packed row: many sequences side by side, no padding, no N-by-N mask.

A row is described by its `Segment`s. Inside `packed(model, segments)` every attention layer of a Hugging Face
model runs one call of scaled dot product attention per segment; outside it the model is untouched. The layout
travels beside the model and not through its arguments, because several architectures drop unknown arguments
on the way to their attention layers.

Shapes: query (1, H, T, D), key and value (1, G, T, D) with G key/value heads; out (1, T, H, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

_NAME = "tunewise_packed"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Segment:
    """One sequence of a row: `prefix` tokens in causal order, then branches that each see the prefix and themselves.

    Branches score several continuations of one prompt while the prompt is computed once.
    """

    prefix: int
    branches: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of this segment in the row."""
        return self.prefix + sum(self.branches)


_row: tuple[Segment, ...] = ()


@contextmanager
def packed(model: PreTrainedModel, segments: Sequence[Segment]) -> Iterator[None]:
    """Run `model` on a packed row of these segments; keep the backward pass inside too (checkpointing re-runs it)."""
    global _row
    before, implementation = _row, model.config._attn_implementation
    _row, model.config._attn_implementation = tuple(segments), _NAME
    try:
        yield
    finally:
        _row, model.config._attn_implementation = before, implementation


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **other: object,
) -> tuple[Tensor, None]:
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if other.get(name) is not None]
    if unsupported or dropout or query.shape[0] != 1:
        raise NotImplementedError(f"packed attention has no {', '.join(unsupported) or 'dropout or batches'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and not any(s.branches for s in _row):
        # In bfloat16 the processor's backward kernel takes two and a half times as long as in float32.
        exact = torch.promote_types(query.dtype, torch.float32)
        out = _PerSegment.apply(query.to(exact), key.to(exact), value.to(exact), _row, scale, sliding_window)
        return out.to(value.dtype), None
    if torch.is_autocast_enabled(query.device.type):  # as torch's own attention does; rotary leaves float32 behind
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    outputs, start = [], 0
    for segment in _row:
        part = slice(start, start + segment.length)
        mask = _mask(segment, sliding_window, query.device)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
        start += segment.length
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _mask(segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
    """Boolean mask (length, length) of one segment, or None where plain causal order says it all."""
    window = window if window is not None and segment.length > window else None
    if not segment.branches and window is None:
        return None
    sizes = torch.tensor((segment.prefix, *segment.branches), device=device)
    branch = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    order = torch.arange(segment.length, device=device)
    starts = torch.cumsum(sizes, 0) - sizes
    position = torch.where(branch == 0, order, order - starts[branch] + segment.prefix)
    seen = (branch[None] == 0) | (branch[None] == branch[:, None])
    mask = seen & (position[None] <= position[:, None])
    return mask if window is None else mask & (position[:, None] - position[None] < window)


class _PerSegment(torch.autograd.Function):
    """One CPU flash kernel per segment, writing into one output, so that no slice gradient is ever zero-filled."""

    @staticmethod
    def forward(ctx, query, key, value, row, scale, window):  # type: ignore[no-untyped-def]
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        stored, start = [], 0
        for segment in row:
            part = slice(start, start + segment.length)
            mask = _additive(segment, window, query)
            piece, logsumexp = _flash(
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scale,
            )
            out[:, part] = piece.transpose(1, 2)
            stored.append(logsumexp)
            start += segment.length
        ctx.save_for_backward(query, key, value, out, *stored)
        ctx.row, ctx.scale, ctx.window = row, scale, window
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, out, *stored = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        start = 0
        for segment, logsumexp in zip(ctx.row, stored, strict=True):
            part = slice(start, start + segment.length)
            mask = _additive(segment, ctx.window, query)
            pieces = _flash_backward(
                grad[:, part].transpose(1, 2),
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                out[:, part].transpose(1, 2),
                logsumexp,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            for whole, piece in zip(grads, pieces, strict=True):
                whole[:, :, part] = piece
            start += segment.length
        return *grads, None, None, None


def _additive(segment: Segment, window: int | None, like: Tensor) -> Tensor | None:
    mask = _mask(segment, window, like.device)
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, float("-inf"))


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
