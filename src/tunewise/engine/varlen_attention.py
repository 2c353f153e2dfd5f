"""Attention of a packed row on a GPU: one call of torch's flash kernel over sequences of varying length.

The keys of a continuation are gathered: those of its prefix, then its own.
Shapes: query (1, H, T, D), key and value (1, G, T, D) with G key/value heads; out (1, T, H, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tunewise.core.seeds import strictly
from tunewise.engine.segments import Segment

_MAX_HEAD_SIZE = 256  # of torch's flash attention


def supports_flash(query: Tensor) -> bool:
    """Whether torch's flash kernel supports these heads on this GPU; a simulated GPU is assumed to have the kernel."""
    fits = query.element_size() == 2 and query.shape[-1] % 8 == 0 and query.shape[-1] <= _MAX_HEAD_SIZE
    return fits and (not query.is_cuda or _has_flash(query.device))


@lru_cache
def _has_flash(device: torch.device) -> bool:
    """Whether this is an NVIDIA GPU from Ampere on, and torch was built with flash attention."""
    recent = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return recent and torch.backends.cuda.is_flash_attention_available()


@dataclass(frozen=True)
class VarlenLayout:
    """Describes a row as N sequences of varying length, as flash attention takes them.

    Each part of a tree is one such sequence of queries. Its keys are those of all its prefixes, then its own.
    """

    queries: Tensor  # (N + 1,) cumulative, int32
    keys: Tensor  # (N + 1,) cumulative, int32
    longest: tuple[int, int]  # the largest number of queries, and of keys
    gather: Tensor | None  # (sum of keys,) each key's position in the row; None where the keys are the row as it is


@lru_cache(maxsize=8)
def varlen_layout(row: tuple[Segment, ...], device: torch.device) -> VarlenLayout:
    """Lay a row out as sequences; kept, as every layer asks for the same."""
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
    return VarlenLayout(ends[0], ends[1], (max(queries), max(keys)), gather)


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, row: tuple[Segment, ...], scale: float, window: int | None
) -> Tensor:
    """Compute the whole row in one kernel call.

    The kernel aligns the causal order at the end of each sequence, so that it is right for gathered keys too.
    """
    layout = varlen_layout(row, query.device)
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
