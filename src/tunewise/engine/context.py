"""Divides a row over devices: each computes a stretch of its tokens, and in attention a part of the heads for all.

Everything in a block but attention looks at one token at a time, so that a device needs its own stretch only. Around
attention, two all-to-all exchanges turn stretches of all heads into parts of the heads of all positions, and back
(Jacobs et al. 2023, DeepSpeed-Ulysses). Attention itself runs as it does on one device, with the same segments: shared
beginnings, several sequences and sliding windows are as they were. A target is predicted by the device that holds the
token before it, although the target itself may be in the next stretch.

Every exchange waits for the other devices of the group, in the backward pass too. So all of them must build the same
graph, whatever tokens their stretches hold.

Shapes: N devices, T tokens of a row, t = T / N of a stretch, H query heads, G key/value heads, D a head's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tunewise.core.errors import ModelError
from tunewise.engine.packing import Batch
from tunewise.engine.ranks import Ranks
from tunewise.engine.segments import Segment

INSTEAD = "leave out --context, so that every device computes whole rows"


@dataclass(frozen=True)
class Division:
    """The division of a row among the devices of one group."""

    ranks: Ranks

    def by_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange a stretch of all heads for all positions of a part of the heads.

        Query is (1, H, t, D) and becomes (1, H / N, T, D). Key and value are (1, G, t, D); where N does not divide G,
        their heads are repeated as often as it takes.

        Raises:
            ModelError: N does not divide H; `require_divisible` says so before, unless this layer has heads of its own.
        """
        count = self.ranks.context
        if query.shape[1] % count:
            raise ModelError(f"{query.shape[1]} attention heads cannot be divided among {count} devices; {INSTEAD}")
        repeats = math.lcm(key.shape[1], count) // key.shape[1]
        if repeats > 1:
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        tensors = (query, key, value)
        parts = [tensor.reshape(count, -1) for tensor in tensors]  # (N, H / N * t * D): one for each device
        received: Tensor = _Swap.apply(torch.cat(parts, dim=1), self.ranks)
        split = received.split([part.shape[1] for part in parts], dim=1)
        # (N, H / N, t, D) to (H / N, N, t, D) to (1, H / N, T, D)
        query, key, value = (
            part.view(count, -1, *tensor.shape[2:])
            .transpose(0, 1)
            .reshape(1, -1, count * tensor.shape[2], tensor.shape[3])
            .to(tensor.dtype)
            for part, tensor in zip(split, tensors, strict=True)
        )
        return query, key, value

    def by_positions(self, out: Tensor) -> Tensor:
        """Exchange all positions of a part of the heads, (1, T, H / N, D), for a stretch of all heads, (1, t, H, D)."""
        count, (_, length, heads, size) = self.ranks.context, out.shape
        received: Tensor = _Swap.apply(out.reshape(count, -1), self.ranks)
        # (N, t, H / N, D) to (t, N, H / N, D) to (1, t, H, D)
        return received.view(count, -1, heads, size).transpose(0, 1).reshape(1, length // count, -1, size)


class _Swap(torch.autograd.Function):
    """Exchanges parts (N, n) with the devices of the group; its gradient goes back the same way."""

    @staticmethod
    def forward(ctx, parts, ranks):  # type: ignore[no-untyped-def]
        ctx.ranks = ranks
        return ranks.swapped(parts.contiguous())

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return ctx.ranks.swapped(grad.contiguous()), None


def divided(batch: Batch, ranks: Ranks) -> Batch:
    """Return this device's stretch of a packed batch, with the targets that are predicted from it.

    The row is filled up with a segment that nothing is predicted from, so that stretches are equally long. `segments`
    stay those of the whole row, and the first device counts the tokens of all.
    """
    if not ranks.divides_rows:
        return batch
    filling = -batch.ids.shape[1] % ranks.context
    length = (batch.ids.shape[1] + filling) // ranks.context
    stretch = range(ranks.place * length, (ranks.place + 1) * length)
    kept = [number for number, position in enumerate(batch.positions.tolist()) if position in stretch]
    numbers = {number: new for new, number in enumerate(kept)}
    predicted = [place for place, source in enumerate(batch.sources) if source in numbers]
    places, targets = (torch.tensor(each, dtype=torch.long, device=batch.ids.device) for each in (kept, predicted))
    ids, position_ids = (
        pad(tensor, (0, filling))[:, stretch.start : stretch.stop].contiguous()
        for tensor in (batch.ids, batch.position_ids)
    )
    return replace(
        batch,
        ids=ids,
        position_ids=position_ids,
        segments=(*batch.segments, Segment(filling)) if filling else batch.segments,
        positions=batch.positions[places] - stretch.start,
        targets=batch.targets[targets],
        sources=[numbers[batch.sources[place]] for place in predicted],
        owner=batch.owner[targets],
        branch=batch.branch[targets],
        tokens=0 if ranks.place else batch.tokens,
        spans=(),
        division=Division(ranks),
    )


def require_divisible(name: object, config: Any, ranks: Ranks) -> None:
    """Refuse a model whose rows cannot be divided, by its configuration.

    Raises:
        ModelError: says why, and what to do.
    """
    if not ranks.divides_rows:
        return
    config = config.get_text_config()
    heads = int(config.num_attention_heads)
    if heads % ranks.context:
        able = [str(count) for count in range(2, heads + 1) if heads % count == 0]
        raise ModelError(
            f"{name}: its {heads} attention heads cannot be divided among {ranks.context} devices; give --context "
            f"{' or '.join(able)}, or {INSTEAD}"
            if able
            else f"{name}: its one attention head cannot be divided among devices; {INSTEAD}"
        )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    settings = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # in some, one a kind of layer
    kinds = {str(each.get("rope_type", each.get("type"))) for each in settings}
    if adapting := sorted(kind for kind in kinds if kind == "longrope" or "dynamic" in kind):
        raise ModelError(
            f"{name}: its positions are encoded by the length of what a device reads ({adapting[0]}), which is a part "
            f"of a row with --context; {INSTEAD}"
        )
