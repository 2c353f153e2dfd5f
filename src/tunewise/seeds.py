"""Randomness as a function of (seed, names): any step can be replayed alone, and no generator state is stored."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream that `names` names."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for the stream that `names` names."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
