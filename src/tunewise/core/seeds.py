"""Randomness as a function of (seed, names): any step can be replayed alone, and no generator state is stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Read once, when CUDA starts: with less, products of matrices may differ from run to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream that `names` names."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for the stream that `names` names."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a GPU, sums in one order in every run, as they are on a processor anyway; what cannot be so warns."""
    import torch

    if device.type != "cuda":
        yield
        return
    options: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        options.fill_uninitialized_memory = False  # nothing reads it
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
        options.fill_uninitialized_memory = fill


@contextmanager
def strictly() -> Iterator[None]:
    """Inside `repeatable`, around kernels that keep an order only where nothing else is allowed (flash attention)."""
    import torch

    warns = torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    if not warns:
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
