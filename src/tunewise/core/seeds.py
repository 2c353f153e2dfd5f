"""Derives randomness from (seed, names), so that any step can be replayed alone and no generator state is stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# CUDA reads this once, when it starts. Without it, matrix products may differ from run to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the random stream that `names` identify."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator for the random stream that `names` identify."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Make results on a GPU repeatable from run to run, as they are on a CPU; operations that cannot be only warn."""
    import torch

    if device.type != "cuda":
        yield
        return
    options: Any = torch.utils.deterministic
    enabled, fill_memory = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        options.fill_uninitialized_memory = False  # costs time, and nothing reads uninitialised memory
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        options.fill_uninitialized_memory = fill_memory


@contextmanager
def strictly() -> Iterator[None]:
    """Allow deterministic algorithms only, where `repeatable` would only warn.

    Flash attention picks its deterministic kernel in this mode alone.
    """
    import torch

    warn_only = torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    if not warn_only:
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
