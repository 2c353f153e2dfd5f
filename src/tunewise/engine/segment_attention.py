"""Attention of a packed row on a CPU, part by part: calls of a part on itself, and on the prefixes that it comes after.

A query's attention to a shared prefix and to its own continuation are two kernel calls, merged by their log-sum-exp:

    out = sum_i exp(l_i - l) out_i        l = log sum_i exp(l_i)

Shapes: query (1, H, T, D), key and value (1, G, T, D) with G key/value heads; out (1, T, H, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tunewise.engine.fake_tensor import FakeTensor, Times, counted
from tunewise.engine.segments import Segment

_MAX_MASKED_TOKENS = 256  # a tree of up to so many tokens is one kernel call with a mask
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_by_parts(
    query: Tensor, key: Tensor, value: Tensor, row: tuple[Segment, ...], scale: float, window: int | None
) -> Tensor:
    """Return the output of a row, in the type of its values; it is computed in float32 at least."""
    # In bfloat16 the CPU's backward kernel takes two and a half times as long as in float32.
    exact = torch.promote_types(query.dtype, torch.float32)
    out: Tensor = _PerPart.apply(query.to(exact), key.to(exact), value.to(exact), row, scale, window)
    return out.to(value.dtype)


@dataclass(frozen=True)
class Call:
    """Describes one kernel call: the queries of one part of the row attend to the keys of another part.

    Where a part attends to itself, `tree` is its structure, and `prefixes` are the parts of the row that it comes
    after. `tree` is None where all queries come after all keys.
    """

    queries: slice
    keys: slice
    tree: Segment | None
    prefixes: tuple[slice, ...] = ()


@lru_cache(maxsize=64)
def kernel_calls(row: tuple[Segment, ...], window: int | None) -> tuple[Call, ...]:
    """List a row's kernel calls in its order, calls of a part on itself before calls on a part's prefix."""
    calls: list[Call] = []

    def split(tree: Segment, start: int, prefixes: tuple[slice, ...]) -> None:
        end, inner = start + tree.length, start + tree.prefix
        window_slides = window is not None and tree.length > window
        if not tree.branches or tree.length <= _MAX_MASKED_TOKENS or window_slides:
            calls.append(Call(slice(start, end), slice(start, end), tree, prefixes))
            return
        if tree.prefix:
            calls.append(Call(slice(start, inner), slice(start, inner), Segment(tree.prefix), prefixes))
        inner_prefixes = (*prefixes, slice(start, inner)) if tree.prefix else prefixes
        for group in _merge_small(tree.branches):
            split(group, inner, inner_prefixes)
            inner += group.length
        if tree.prefix:
            calls.append(Call(slice(start + tree.prefix, end), slice(start, start + tree.prefix), None))

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


def _run_calls(row: tuple[Segment, ...], window: int | None, like: Tensor) -> Iterator[Call]:
    """Yield the kernel calls that are run: all of them.

    On fake tensors, which have no contents, the largest one of each kind stands for all, in memory and in work.
    """
    if not isinstance(like, FakeTensor):
        yield from kernel_calls(row, window)
        return
    for call, times in _stand_ins(row, window):
        with counted(times):
            yield call


@lru_cache(maxsize=64)
def _stand_ins(row: tuple[Segment, ...], window: int | None) -> tuple[tuple[Call, Times], ...]:
    """Return the largest call of each kind (causal, masked, on a prefix), and how often it is to be counted."""
    kinds: dict[tuple[bool, bool], list[Call]] = {}
    for call in kernel_calls(row, window):
        tree = call.tree
        masked = tree is not None and (bool(tree.branches) or (window is not None and tree.length > window))
        kinds.setdefault((tree is None, masked), []).append(call)
    return tuple(_stand_in(calls, masked) for (_, masked), calls in kinds.items())


def _stand_in(calls: list[Call], masked: bool) -> tuple[Call, Times]:
    """Return the largest of these calls: FLOPs and masks grow with queries x keys, other bytes with queries + keys."""
    sizes = [(call.queries.stop - call.queries.start, call.keys.stop - call.keys.start) for call in calls]
    largest = max(range(len(calls)), key=lambda place: sizes[place][0] * sizes[place][1])
    products, sums = [queries * keys for queries, keys in sizes], [sum(size) for size in sizes]
    work = sum(products) / products[largest]
    return calls[largest], Times(work, work if masked else sum(sums) / sums[largest], len(calls))


@lru_cache(maxsize=256)
def tree_mask(tree: Segment, window: int | None, device: torch.device) -> Tensor | None:
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


class _PerPart(torch.autograd.Function):
    """Runs the CPU's flash kernel per part of the row and writes into one output.

    Autograd's own slices would each fill a gradient of the whole row with zeros. The kernel's backward pass uses only
    the output and log-sum-exp over all keys of a query, so with the merged ones each call gives its exact share of the
    gradients.
    """

    @staticmethod
    def forward(ctx, query, key, value, row, scale, window):  # type: ignore[no-untyped-def]
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        logsumexp = query.new_empty(1, query.shape[1], query.shape[2])  # of each query's scores, (1, H, T)
        for call in _run_calls(row, window, query):
            _run(call, query, key, value, out, logsumexp, scale, window)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.row, ctx.scale, ctx.window = row, scale, window
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value, out, logsumexp = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for call in _run_calls(ctx.row, ctx.window, query):
            _run_backward(call, grad, query, key, value, out, logsumexp, grads, ctx.scale, ctx.window)
        return *grads, None, None, None


def _run(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    window: int | None,
) -> None:
    """Write what one call gives to the output (1, T, H, D), or merge it with what is there."""
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
        return
    merged_out, merged_logsumexp = out[:, call.queries], logsumexp[:, :, call.queries]  # views
    total = torch.logaddexp(merged_logsumexp, call_logsumexp)
    merged_out.mul_(_share(merged_logsumexp, total)).addcmul_(call_out, _share(call_logsumexp, total))
    merged_logsumexp.copy_(total)


def _run_backward(
    call: Call,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    grads: Sequence[Tensor],
    scale: float,
    window: int | None,
) -> None:
    """Write one call's share to the gradients of query, key and value, or add it."""
    mask = _additive_mask(call.tree, window, query)
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
        scale=scale,
    )
    for total, call_grad, part in zip(grads, call_grads, (call.queries, call.keys, call.keys), strict=True):
        if call.tree is not None:
            total[:, :, part] = call_grad
        else:
            total[:, :, part] += call_grad


def _share(part: Tensor, total: Tensor) -> Tensor:
    """Return the attention that each query gives to a part of its keys, (1, T, H, 1), from log-sum-exps (1, H, T)."""
    return (part - total).exp().transpose(1, 2)[..., None]


def _additive_mask(tree: Segment | None, window: int | None, like: Tensor) -> Tensor | None:
    """Return the tree's mask as 0 and -inf, to be added to scores of `like`'s type; None where none is needed."""
    mask = tree_mask(tree, window, like.device) if tree is not None else None
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, float("-inf"))
