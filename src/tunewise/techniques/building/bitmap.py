"""Packs masks of one bit an entry into bytes, as they are stored."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """Pack eight entries into a byte, the first in the lowest bit."""
    flat = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8))
    # (bytes, 8), of which each row is shifted into one byte
    return (flat.view(-1, 8) << torch.arange(8, device=mask.device, dtype=torch.uint8)).sum(1).to(torch.uint8)


def unpack(bits: Tensor, count: int) -> Tensor:
    """Return the first `count` entries of `pack`'s bytes."""
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    # (bytes, 1) >> (8,): (bytes, 8)
    return ((bits[:, None] >> shifts) & 1).flatten()[:count].bool()
