"""Attention over a packed row: many sequences side by side, without padding and without an N-by-N mask.

A row is described by its `Segment`s, which are trees of tokens. A prefix that several sequences share stands in the row
once. Their continuations attend to it and not to one another. On a GPU with flash attention, in half precision, the
whole row is one kernel call (`varlen_attention.py`), on a CPU one for each part (`segment_attention.py`).

Inside `packed(model, segments)` every attention layer of a Hugging Face model works like that. Outside it the model is
untouched. The segments are kept in a global and not passed as an argument, because several architectures drop unknown
arguments on the way to their attention layers.

Shapes: query (1, H, T, D), key and value (1, G, T, D) with G key/value heads; out (1, T, H, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunewise.engine.device import on_gpu
from tunewise.engine.segment_attention import attend_by_parts, kernel_calls, tree_mask
from tunewise.engine.segments import Segment
from tunewise.engine.varlen_attention import attend_varlen, supports_flash, varlen_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewise.engine.context import Division

_NAME = "tunewise_packed"


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
    if gpu and same_size and supports_flash(query):
        return attend_varlen(query, key, value, _row, scale, sliding_window)
    if query.device.type == "cpu" and same_size:
        return attend_by_parts(query, key, value, _row, scale, sliding_window)
    from torch.nn.attention.bias import causal_lower_right

    outputs = []
    for call in kernel_calls(_row, sliding_window):
        if call.tree is None:  # its keys are among the `prefixes` of other calls
            continue
        parts = (*call.prefixes, call.keys)
        keys, values = (torch.cat([tensor[:, :, part] for part in parts], dim=2) for tensor in (key, value))
        mask = tree_mask(call.tree, sliding_window, query.device)
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


def forget_layouts() -> None:
    """Forget masks and layouts that were kept for rows of the same structure, so that their memory is counted anew."""
    tree_mask.cache_clear()
    varlen_layout.cache_clear()


@cache
def _register() -> None:
    """Give Hugging Face's models this attention by its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
