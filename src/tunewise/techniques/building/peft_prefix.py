"""Writes and reads prefixes in PEFT's form: the keys and values of a cache, keys normalised and rotated.

In shapes: m virtual tokens, L blocks, G key/value heads of size c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.contract.attachment import PeftConfig
from tunewise.techniques.building.peft_lora import head

if TYPE_CHECKING:
    from tunewise.engine.model import Base


def prefix_config(base: Base, count: int) -> PeftConfig:
    """Return PEFT's configuration of a prefix of `count` virtual tokens, without an MLP."""
    _, groups, size = base.anatomy.heads
    return head(base, "PREFIX_TUNING") | {
        "num_virtual_tokens": count,
        "token_dim": groups * size,
        "num_transformer_submodules": 1,
        "num_attention_heads": groups,
        "num_layers": len(base.anatomy.blocks),
        "encoder_hidden_size": groups * size,
        "prefix_projection": False,
    }


@torch.no_grad()
def cached_prefix(base: Base, count: int) -> Tensor:
    """Return the attached prefix as the model's cache holds it: PEFT's (m, L * 2 * G * c)."""
    first = base.anatomy.vocabulary
    ids = torch.arange(first, first + count, device=base.device)[None]
    layers = base.within(lambda: base.anatomy.inner(input_ids=ids, use_cache=True).past_key_values.layers)
    both = [half[0].transpose(0, 1) for layer in layers for half in (layer.keys, layer.values)]
    return torch.stack(both, dim=1).flatten(1).float().contiguous()


def prefix_of_cache(base: Base, cached: Tensor) -> Tensor:
    """Return the keys and values (L, 2, m, G * c) that give this cache, where keys are only rotated on the way."""
    _, groups, size = base.anatomy.heads
    count, blocks = len(cached), len(base.anatomy.blocks)
    parts = cached.view(count, blocks, 2, groups, size).permute(1, 2, 0, 3, 4).clone()  # (L, 2, m, G, c)
    rotation = base.anatomy.rotation(count)
    if rotation is not None:  # undo the rotation of each position
        cos, sin = (part[:, None] for part in rotation)
        keys = parts[:, 0, :, :, : cos.shape[-1]]
        first_half, second_half = keys.chunk(2, dim=-1)
        keys.copy_(keys * cos - torch.cat([-second_half, first_half], dim=-1) * sin)
    return parts.flatten(3).contiguous()
