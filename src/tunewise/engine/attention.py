"""Attention over a packed row: many sequences side by side, no padding, no N-by-N mask.

A row is described by its `Segment`s, trees of tokens: what several sequences begin with stands in the row once, and
their continuations see it and not one another. A query's attention to a shared beginning and to its own continuation
are two kernel calls, merged by their log-sum-exp:

    out = sum_i exp(l_i - l) out_i        l = log sum_i exp(l_i)

On a GPU with flash attention, in half precision, the whole row is one kernel call over sequences of any lengths
(`_varlen`), in which a continuation's keys are gathered: those of its beginning, then its own.

Inside `packed(model, segments)` every attention layer of a Hugging Face model works like that; outside it the model is
untouched. The layout travels beside the model and not through its arguments, because several architectures drop
unknown arguments on the way to their attention layers.

Shapes: query (1, H, T, D), key and value (1, G, T, D) with G key/value heads; out (1, T, H, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from tunewise.core.seeds import strictly
from tunewise.engine.device import on_gpu

_NAME = "tunewise_packed"
_WIDEST = 256  # features of a head that flash attention takes
_SMALL = 256  # tokens up to which a tree is one kernel call with a mask
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Segment:
    """A tree of tokens: `prefix` in causal order, then branches that each see them and themselves.

    Branches are the sequences that begin alike, or continuations of one prompt to be scored.
    """

    prefix: int
    branches: tuple[Segment, ...] = ()

    @cached_property
    def length(self) -> int:
        """Tokens of this tree in the row."""
        return self.prefix + sum(branch.length for branch in self.branches)


@dataclass(frozen=True)
class _Call:
    """One kernel call: the queries of a part of the row on the keys of another.

    `tree` is the order within a part that looks at itself; None where all queries come after all keys. `before` are
    the parts of the row that a part which looks at itself comes after.
    """

    queries: slice
    keys: slice
    tree: Segment | None
    before: tuple[slice, ...] = ()


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
    gpu, same = on_gpu(query), query.shape[-1] == value.shape[-1]
    kind = query.device.type
    if (gpu or kind != "cpu") and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)  # as torch's own attention does; rotary leaves float32 behind
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if gpu and same and _flashes(query):
        return _varlen(query, key, value, _row, scale, sliding_window), None
    if kind == "cpu" and same:
        # In bfloat16 the processor's backward kernel takes two and a half times as long as in float32.
        exact = torch.promote_types(query.dtype, torch.float32)
        out = _PerSegment.apply(query.to(exact), key.to(exact), value.to(exact), _row, scale, sliding_window)
        return out.to(value.dtype), None
    outputs = []
    for call in _calls(_row, sliding_window):
        if call.tree is None:
            continue
        parts = (*call.before, call.keys)
        keys, values = (torch.cat([whole[:, :, part] for part in parts], dim=2) for whole in (key, value))
        mask = _mask(call.tree, sliding_window, query.device)
        past = keys.shape[2] - call.tree.length
        if mask is not None and past:
            mask = torch.cat([mask.new_ones(len(mask), past), mask], dim=1)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, call.queries],
                keys,
                values,
                attn_mask=causal_lower_right(call.tree.length, keys.shape[2]) if mask is None and past else mask,
                is_causal=mask is None and not past,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _flashes(query: Tensor) -> bool:
    """Whether torch's flash kernel takes these heads on this GPU; one that is only planned for is taken to have it."""
    fits = query.element_size() == 2 and query.shape[-1] % 8 == 0 and query.shape[-1] <= _WIDEST
    return fits and (not query.is_cuda or _has_flash(query.device))


@lru_cache
def _has_flash(device: torch.device) -> bool:
    """NVIDIA's from Ampere on; what torch was built without is not there either."""
    new = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return new and torch.backends.cuda.is_flash_attention_available()


@dataclass(frozen=True)
class _Paths:
    """A row as sequences of any lengths: where each part's queries and keys end, and which tokens its keys are."""

    queries: Tensor  # (N + 1,) cumulative, int32
    keys: Tensor  # (N + 1,) cumulative, int32
    most: tuple[int, int]  # queries and keys of the longest
    gather: Tensor | None  # (sum of keys,) places in the row; None where these are the row itself


@lru_cache(maxsize=8)
def _paths(row: tuple[Segment, ...], device: torch.device) -> _Paths:
    """Each part of a tree comes after what it continues: its queries are the last of its keys."""
    found: list[tuple[int, list[range]]] = []

    def walk(tree: Segment, start: int, before: list[range]) -> None:
        path = [*before, range(start, start + tree.prefix)] if tree.prefix else before
        if tree.prefix:
            found.append((tree.prefix, path))
        start += tree.prefix
        for branch in tree.branches:
            walk(branch, start, path)
            start += branch.length

    start = 0
    for segment in row:
        walk(segment, start, [])
        start += segment.length
    queries, keys = [length for length, _ in found], [sum(map(len, path)) for _, path in found]
    ends = torch.tensor([[0, *queries], [0, *keys]]).cumsum(1).to(device, torch.int32)
    places = [place for _, path in found for part in path for place in part]
    gather = None if keys == queries else torch.tensor(places, device=device)
    return _Paths(ends[0], ends[1], (max(queries), max(keys)), gather)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, row: tuple[Segment, ...], scale: float, window: int | None
) -> Tensor:
    """The whole row in one kernel call; causal order counts from the end, so that it holds for gathered keys."""
    paths = _paths(row, query.device)
    query, key, value = (whole[0].transpose(0, 1) for whole in (query, key, value))
    if paths.gather is not None:
        key, value = key.index_select(0, paths.gather), value.index_select(0, paths.gather)
    out: Tensor = _Varlen.apply(query, key, value, paths, scale, window)
    return out[None]


class _Varlen(torch.autograd.Function):
    """Flash attention of torch over sequences of any lengths; query (T, H, D), key and value (S, G, D)."""

    @staticmethod
    def forward(ctx, query, key, value, paths, scale, window):  # type: ignore[no-untyped-def]
        ctx.given = (paths.queries, paths.keys, *paths.most, 0.0, window is None)
        left = -1 if window is None else window - 1
        ctx.named = {"scale": scale, "window_size_left": left, "window_size_right": 0}
        attend = torch.ops.aten._flash_attention_forward
        out, total, seed, unused, _ = attend(query, key, value, *ctx.given, return_debug_mask=False, **ctx.named)
        ctx.save_for_backward(query, key, value, out, total, seed, unused)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, out, total, seed, unused = ctx.saved_tensors
        attend = torch.ops.aten._flash_attention_backward
        with strictly():
            grads = attend(grad, query, key, value, out, total, *ctx.given, seed, unused, **ctx.named)
        return *grads, None, None, None


@lru_cache(maxsize=64)
def _calls(row: tuple[Segment, ...], window: int | None) -> tuple[_Call, ...]:
    """The kernel calls of a row in its order; those of a part on itself come before those on what precedes it."""
    found: list[_Call] = []

    def split(tree: Segment, start: int, before: tuple[slice, ...]) -> None:
        end, inner = start + tree.length, start + tree.prefix
        slides = window is not None and tree.length > window
        if not tree.branches or tree.length <= _SMALL or slides:
            found.append(_Call(slice(start, end), slice(start, end), tree, before))
            return
        if tree.prefix:
            found.append(_Call(slice(start, inner), slice(start, inner), Segment(tree.prefix), before))
        own = (*before, slice(start, inner)) if tree.prefix else before
        for group in _groups(tree.branches):
            split(group, inner, own)
            inner += group.length
        if tree.prefix:
            found.append(_Call(slice(start + tree.prefix, end), slice(start, start + tree.prefix), None))

    start = 0
    for segment in row:
        split(segment, start, ())
        start += segment.length
    return tuple(sorted(found, key=lambda call: call.tree is None))


def _groups(branches: Sequence[Segment]) -> Iterator[Segment]:
    """Neighbours that are small enough together for one call, as branches of nothing."""
    group: list[Segment] = []
    for branch in branches:
        if group and sum(other.length for other in group) + branch.length > _SMALL:
            yield group[0] if len(group) == 1 else Segment(0, tuple(group))
            group = []
        group.append(branch)
    if group:
        yield group[0] if len(group) == 1 else Segment(0, tuple(group))


@lru_cache(maxsize=256)
def _mask(tree: Segment, window: int | None, device: torch.device) -> Tensor | None:
    """Boolean mask (length, length) of one tree, or None where plain causal order says it all."""
    window = window if window is not None and tree.length > window else None
    if not tree.branches and window is None:
        return None
    mask = torch.zeros(tree.length, tree.length, dtype=torch.bool)
    position = torch.zeros(tree.length, dtype=torch.long)

    def fill(part: Segment, start: int, depth: int) -> None:
        inner, end = start + part.prefix, start + part.length
        mask[start:inner, start:inner] = torch.ones(part.prefix, part.prefix, dtype=torch.bool).tril()
        mask[inner:end, start:inner] = True
        position[start:inner] = torch.arange(depth, depth + part.prefix)
        for branch in part.branches:
            fill(branch, inner, depth + part.prefix)
            inner += branch.length

    fill(tree, 0, 0)
    if window is not None:
        mask &= position[:, None] - position[None] < window
    return mask.to(device)


class _PerSegment(torch.autograd.Function):
    """CPU flash kernels that write into one output, so that no slice gradient is ever zero-filled.

    A kernel's backward pass needs the output and log-sum-exp of whole rows of attention only, so that the merged ones
    give each call's exact share of the gradients.
    """

    @staticmethod
    def forward(ctx, query, key, value, row, scale, window):  # type: ignore[no-untyped-def]
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        total = query.new_empty(1, query.shape[1], query.shape[2])  # log-sum-exp of each query's scores
        for call in _calls(row, window):
            mask = _additive(call.tree, window, query)
            piece, logsumexp = _flash(
                query[:, :, call.queries],
                key[:, :, call.keys],
                value[:, :, call.keys],
                0.0,
                mask is None and call.tree is not None,
                attn_mask=mask,
                scale=scale,
            )
            piece = piece.transpose(1, 2)
            if call.tree is not None:
                out[:, call.queries], total[:, :, call.queries] = piece, logsumexp
                continue
            before, own = total[:, :, call.queries], out[:, call.queries]
            whole = torch.logaddexp(before, logsumexp)
            own.mul_(_share(before, whole)).addcmul_(piece, _share(logsumexp, whole))
            before.copy_(whole)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.row, ctx.scale, ctx.window = row, scale, window
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, out, total = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for call in _calls(ctx.row, ctx.window):
            mask = _additive(call.tree, ctx.window, query)
            pieces = _flash_backward(
                grad[:, call.queries].transpose(1, 2),
                query[:, :, call.queries],
                key[:, :, call.keys],
                value[:, :, call.keys],
                out[:, call.queries].transpose(1, 2),
                total[:, :, call.queries].contiguous(),
                0.0,
                mask is None and call.tree is not None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            for whole, piece, part in zip(grads, pieces, (call.queries, call.keys, call.keys), strict=True):
                if call.tree is not None:
                    whole[:, :, part] = piece
                else:
                    whole[:, :, part] += piece
        return *grads, None, None, None


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """What each query (1, H, T) gives to a part of its keys, as (1, T, H, 1)."""
    return (part - whole).exp().transpose(1, 2)[..., None]


def _additive(tree: Segment | None, window: int | None, like: Tensor) -> Tensor | None:
    mask = _mask(tree, window, like.device) if tree is not None else None
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, float("-inf"))


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
