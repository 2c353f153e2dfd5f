"""Attention over a packed row: many sequences side by side, without padding and without an N-by-N mask.

A row is described by its `Segment`s, which are trees of tokens. A prefix that several sequences share stands in the row
once. Their continuations attend to it and not to one another. A query's attention to a shared prefix and to its own
continuation are two kernel calls, merged by their log-sum-exp:

    out = sum_i exp(l_i - l) out_i        l = log sum_i exp(l_i)

On a GPU with flash attention, in half precision, the whole row is one kernel call over sequences of varying length
(`_varlen`). There the keys of a continuation are gathered: those of its prefix, then its own.

Inside `packed(model, segments)` every attention layer of a Hugging Face model works like that. Outside it the model is
untouched. The segments are kept in a global and not passed as an argument, because several architectures drop unknown
arguments on the way to their attention layers.

Shapes: query (1, H, T, D), key and value (1, G, T, D) with G key/value heads; out (1, T, H, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunewise.core.seeds import strictly
from tunewise.engine.device import on_gpu

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewise.engine.context import Division

_NAME = "tunewise_packed"
_MAX_HEAD_SIZE = 256  # of torch's flash attention
_MAX_MASKED_TOKENS = 256  # a tree of up to so many tokens is one kernel call with a mask
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Segment:
    """Describes a tree of tokens: `prefix` tokens in causal order, then branches.

    Each branch attends to the prefix and to itself. The branches are sequences with a shared prefix, or answers to one
    prompt that are scored against each other.
    """

    prefix: int
    branches: tuple[Segment, ...] = ()

    @cached_property
    def length(self) -> int:
        """Number of tokens that this tree takes up in the row."""
        return self.prefix + sum(branch.length for branch in self.branches)


@dataclass(frozen=True)
class _Call:
    """Describes one kernel call: the queries of one part of the row attend to the keys of another part.

    Where a part attends to itself, `tree` is its structure, and `prefixes` are the parts of the row that it comes
    after. `tree` is None where all queries come after all keys.
    """

    queries: slice
    keys: slice
    tree: Segment | None
    prefixes: tuple[slice, ...] = ()


@dataclass(frozen=True)
class Reach:
    """Says which of K kept tokens n tokens of a row attend to: `keys` (K,) numbers those, `mask` (n, K) is Boolean."""

    keys: Tensor
    mask: Tensor


class Past:
    """Keeps keys and values of the tokens of one row after the other, so that later rows attend to earlier ones.

    A first row is read as any other. What the tokens of later rows attend to is set in `reaches`, in the order of the
    row, and `positions` (S,) holds the position ids of all tokens, those of the row that is read included.
    """

    def __init__(self) -> None:
        self.reaches: tuple[Reach, ...] = ()
        self.positions = torch.empty(0, dtype=torch.long)
        self._layers: dict[torch.nn.Module, tuple[Tensor, Tensor]] = {}

    def extended(self, layer: torch.nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a row's keys and values of one attention layer, and return all that are kept of it."""
        if layer in self._layers:
            kept = self._layers[layer]
            key, value = torch.cat([kept[0], key], dim=2), torch.cat([kept[1], value], dim=2)
        self._layers[layer] = key, value
        return key, value


_row: tuple[Segment, ...] = ()  # the row on which the model runs now; set by `packed`
_division: Division | None = None  # how devices share that row out; set by `packed`
_past: Past | None = None  # what it attends to besides; set by `keeping`


@contextmanager
def keeping(past: Past) -> Iterator[None]:
    """Keep the keys and values of packed rows that are run inside, and let these attend to what is kept already."""
    global _past
    before, _past = _past, past
    try:
        yield
    finally:
        _past = before


@contextmanager
def packed(model: PreTrainedModel, segments: Sequence[Segment], division: Division | None = None) -> Iterator[None]:
    """Run `model` on a packed row of these segments; run backward inside too, since checkpointing re-runs the model.

    With a `division` the model is given a stretch of the row, and the segments are those of the whole.
    """
    global _row, _division
    _register()
    before, implementation_before = (_row, _division), model.config._attn_implementation
    _row, _division, model.config._attn_implementation = tuple(segments), division, _NAME
    try:
        yield
    finally:
        (_row, _division), model.config._attn_implementation = before, implementation_before


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
        raise NotImplementedError(f"packed attention does not support {', '.join(unsupported) or 'dropout or batches'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    device_type = query.device.type
    if (on_gpu(query) or device_type != "cpu") and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)  # as torch's own attention does: rotary returns float32
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if _past is not None:
        kept_keys, kept_values = _past.extended(module, key, value)
        if _past.reaches:
            return _attend_to_past(query, kept_keys, kept_values, _past, scale, sliding_window), None
    if _division is None:
        return _attend_in_row(query, key, value, scale, sliding_window), None
    out = _attend_in_row(*_division.by_heads(query, key, value), scale, sliding_window)
    return _division.by_positions(out), None


def _attend_in_row(query: Tensor, key: Tensor, value: Tensor, scale: float, sliding_window: int | None) -> Tensor:
    """Return the output (1, T, H, D) of the row that `packed` describes."""
    gpu, same_size = on_gpu(query), query.shape[-1] == value.shape[-1]
    if gpu and same_size and _supports_flash(query):
        return _varlen(query, key, value, _row, scale, sliding_window)
    if query.device.type == "cpu" and same_size:
        # In bfloat16 the CPU's backward kernel takes two and a half times as long as in float32.
        exact = torch.promote_types(query.dtype, torch.float32)
        out: Tensor = _PerSegment.apply(query.to(exact), key.to(exact), value.to(exact), _row, scale, sliding_window)
        return out.to(value.dtype)
    from torch.nn.attention.bias import causal_lower_right

    outputs = []
    for call in _kernel_calls(_row, sliding_window):
        if call.tree is None:  # its keys are among the `prefixes` of other calls
            continue
        parts = (*call.prefixes, call.keys)
        keys, values = (torch.cat([tensor[:, :, part] for part in parts], dim=2) for tensor in (key, value))
        mask = _tree_mask(call.tree, sliding_window, query.device)
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
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _attend_to_past(query: Tensor, key: Tensor, value: Tensor, past: Past, scale: float, window: int | None) -> Tensor:
    """Return the output (1, T, H, D) of a row that attends to kept tokens, whose keys and values are (1, G, S, D)."""
    exact = torch.promote_types(query.dtype, torch.float32)  # as where a row is read at once
    outputs, positions = list[Tensor](), past.positions[-query.shape[2] :]
    rows = [len(reach.mask) for reach in past.reaches]
    for reach, queries, own in zip(past.reaches, query.split(rows, dim=2), positions.split(rows), strict=True):
        mask = reach.mask
        if window is not None:
            mask = mask & (own[:, None] - past.positions[reach.keys] < window)
        outputs.append(
            scaled_dot_product_attention(
                queries.to(exact),
                key.index_select(2, reach.keys).to(exact),
                value.index_select(2, reach.keys).to(exact),
                attn_mask=mask,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).to(value.dtype)


def _supports_flash(query: Tensor) -> bool:
    """Whether torch's flash kernel supports these heads on this GPU; a simulated GPU is assumed to have the kernel."""
    fits = query.element_size() == 2 and query.shape[-1] % 8 == 0 and query.shape[-1] <= _MAX_HEAD_SIZE
    return fits and (not query.is_cuda or _has_flash(query.device))


@lru_cache
def _has_flash(device: torch.device) -> bool:
    """Whether this is an NVIDIA GPU from Ampere on, and torch was built with flash attention."""
    recent = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return recent and torch.backends.cuda.is_flash_attention_available()


@dataclass(frozen=True)
class _VarlenLayout:
    """Describes a row as N sequences of varying length, as flash attention takes them.

    Each part of a tree is one such sequence of queries. Its keys are those of all its prefixes, then its own.
    """

    queries: Tensor  # (N + 1,) cumulative, int32
    keys: Tensor  # (N + 1,) cumulative, int32
    longest: tuple[int, int]  # the largest number of queries, and of keys
    gather: Tensor | None  # (sum of keys,) each key's position in the row; None where the keys are the row as it is


@lru_cache(maxsize=8)
def _varlen_layout(row: tuple[Segment, ...], device: torch.device) -> _VarlenLayout:
    parts: list[tuple[int, list[range]]] = []  # (number of queries, the ranges of the row that are its keys)

    def walk(tree: Segment, start: int, prefixes: list[range]) -> None:
        path = [*prefixes, range(start, start + tree.prefix)] if tree.prefix else prefixes
        if tree.prefix:
            parts.append((tree.prefix, path))
        start += tree.prefix
        for branch in tree.branches:
            walk(branch, start, path)
            start += branch.length

    start = 0
    for segment in row:
        walk(segment, start, [])
        start += segment.length
    queries, keys = [length for length, _ in parts], [sum(map(len, path)) for _, path in parts]
    ends = torch.tensor([[0, *queries], [0, *keys]]).cumsum(1).to(device, torch.int32)
    positions = [position for _, path in parts for span in path for position in span]
    gather = None if keys == queries else torch.tensor(positions, device=device)
    return _VarlenLayout(ends[0], ends[1], (max(queries), max(keys)), gather)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, row: tuple[Segment, ...], scale: float, window: int | None
) -> Tensor:
    """Compute the whole row in one kernel call.

    The kernel aligns the causal order at the end of each sequence, so that it is right for gathered keys too.
    """
    layout = _varlen_layout(row, query.device)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, H, D), (T, G, D)
    if layout.gather is not None:
        key, value = key.index_select(0, layout.gather), value.index_select(0, layout.gather)  # (S, G, D)
    out: Tensor = _Varlen.apply(query, key, value, layout, scale, window)
    return out[None]


class _Varlen(torch.autograd.Function):
    """Runs torch's flash attention over sequences of varying length; query (T, H, D), key and value (S, G, D)."""

    @staticmethod
    def forward(ctx, query, key, value, layout, scale, window):  # type: ignore[no-untyped-def]
        ctx.positional = (layout.queries, layout.keys, *layout.longest, 0.0, window is None)
        left = -1 if window is None else window - 1
        ctx.keywords = {"scale": scale, "window_size_left": left, "window_size_right": 0}
        attend = torch.ops.aten._flash_attention_forward
        out, logsumexp, seed, unused, _ = attend(
            query, key, value, *ctx.positional, return_debug_mask=False, **ctx.keywords
        )
        ctx.save_for_backward(query, key, value, out, logsumexp, seed, unused)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, out, logsumexp, seed, unused = ctx.saved_tensors
        attend = torch.ops.aten._flash_attention_backward
        with strictly():
            grads = attend(grad, query, key, value, out, logsumexp, *ctx.positional, seed, unused, **ctx.keywords)
        return *grads, None, None, None


@lru_cache(maxsize=64)
def _kernel_calls(row: tuple[Segment, ...], window: int | None) -> tuple[_Call, ...]:
    """List a row's kernel calls in its order, calls of a part on itself before calls on a part's prefix."""
    calls: list[_Call] = []

    def split(tree: Segment, start: int, prefixes: tuple[slice, ...]) -> None:
        end, inner = start + tree.length, start + tree.prefix
        window_slides = window is not None and tree.length > window
        if not tree.branches or tree.length <= _MAX_MASKED_TOKENS or window_slides:
            calls.append(_Call(slice(start, end), slice(start, end), tree, prefixes))
            return
        if tree.prefix:
            calls.append(_Call(slice(start, inner), slice(start, inner), Segment(tree.prefix), prefixes))
        inner_prefixes = (*prefixes, slice(start, inner)) if tree.prefix else prefixes
        for group in _merge_small(tree.branches):
            split(group, inner, inner_prefixes)
            inner += group.length
        if tree.prefix:
            calls.append(_Call(slice(start + tree.prefix, end), slice(start, start + tree.prefix), None))

    start = 0
    for segment in row:
        split(segment, start, ())
        start += segment.length
    return tuple(sorted(calls, key=lambda call: call.tree is None))


def _merge_small(branches: Sequence[Segment]) -> Iterator[Segment]:
    """Merge neighbours that are small enough for one masked call into a segment without a prefix."""
    group: list[Segment] = []
    for branch in branches:
        if group and sum(other.length for other in group) + branch.length > _MAX_MASKED_TOKENS:
            yield group[0] if len(group) == 1 else Segment(0, tuple(group))
            group = []
        group.append(branch)
    if group:
        yield group[0] if len(group) == 1 else Segment(0, tuple(group))


@lru_cache(maxsize=256)
def _tree_mask(tree: Segment, window: int | None, device: torch.device) -> Tensor | None:
    """Return the boolean mask (length, length) of one tree, or None where plain causal order is the same."""
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
    """Runs the CPU's flash kernel per part of the row and writes into one output.

    Autograd's own slices would each fill a gradient of the whole row with zeros. The kernel's backward pass uses only
    the output and log-sum-exp over all keys of a query, so with the merged ones each call gives its exact share of the
    gradients.
    """

    @staticmethod
    def forward(ctx, query, key, value, row, scale, window):  # type: ignore[no-untyped-def]
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        logsumexp = query.new_empty(1, query.shape[1], query.shape[2])  # of each query's scores, (1, H, T)
        for call in _kernel_calls(row, window):
            mask = _additive_mask(call.tree, window, query)
            call_out, call_logsumexp = _flash(
                query[:, :, call.queries],
                key[:, :, call.keys],
                value[:, :, call.keys],
                0.0,
                mask is None and call.tree is not None,
                attn_mask=mask,
                scale=scale,
            )
            call_out = call_out.transpose(1, 2)  # (1, T, H, D)
            if call.tree is not None:
                out[:, call.queries], logsumexp[:, :, call.queries] = call_out, call_logsumexp
                continue
            merged_out, merged_logsumexp = (
                out[:, call.queries],
                logsumexp[:, :, call.queries],
            )  # views
            total = torch.logaddexp(merged_logsumexp, call_logsumexp)
            merged_out.mul_(_share(merged_logsumexp, total)).addcmul_(call_out, _share(call_logsumexp, total))
            merged_logsumexp.copy_(total)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.row, ctx.scale, ctx.window = row, scale, window
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, out, logsumexp = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for call in _kernel_calls(ctx.row, ctx.window):
            mask = _additive_mask(call.tree, ctx.window, query)
            call_grads = _flash_backward(
                grad[:, call.queries].transpose(1, 2),
                query[:, :, call.queries],
                key[:, :, call.keys],
                value[:, :, call.keys],
                out[:, call.queries].transpose(1, 2),
                logsumexp[:, :, call.queries].contiguous(),
                0.0,
                mask is None and call.tree is not None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            for total, call_grad, part in zip(grads, call_grads, (call.queries, call.keys, call.keys), strict=True):
                if call.tree is not None:
                    total[:, :, part] = call_grad
                else:
                    total[:, :, part] += call_grad
        return *grads, None, None, None


def forget_layouts() -> None:
    """Forget masks and layouts that were kept for rows of the same structure, so that their memory is counted anew."""
    _tree_mask.cache_clear()
    _varlen_layout.cache_clear()


def _share(part: Tensor, total: Tensor) -> Tensor:
    """Return the attention that each query gives to a part of its keys, (1, T, H, 1), from log-sum-exps (1, H, T)."""
    return (part - total).exp().transpose(1, 2)[..., None]


def _additive_mask(tree: Segment | None, window: int | None, like: Tensor) -> Tensor | None:
    """Return the tree's mask as 0 and -inf, to be added to scores of `like`'s type; None where none is needed."""
    mask = _tree_mask(tree, window, like.device) if tree is not None else None
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, float("-inf"))


@cache
def _register() -> None:
    """Give Hugging Face's models this attention by its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
