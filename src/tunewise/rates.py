"""How fast this machine is: products of matrices, memory, and the overhead of an operation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

_SIDE = 512  # of the matrices that are multiplied
_BYTES = 1 << 26  # of the tensor that is copied


@dataclass(frozen=True)
class Rates:
    """Floating operations a second, bytes a second, and seconds that an operation costs beside its work."""

    flops: float
    bandwidth: float
    overhead: float

    @classmethod
    def measured(cls, dtype: torch.dtype = torch.float32) -> Rates:
        """By half a second of trials on the processor."""
        a = torch.randn(_SIDE, _SIDE, dtype=dtype)
        big = torch.zeros(_BYTES // 4)
        small = torch.zeros(8)
        return cls(
            2 * _SIDE**3 / _seconds(lambda: a @ a),
            2 * _BYTES / _seconds(lambda: big.add_(1)),
            _seconds(lambda: small.add_(1), 2000),
        )

    def seconds(self, flops: float, moved: float, calls: float) -> float:
        """Of work of this size."""
        return flops / self.flops + moved / self.bandwidth + calls * self.overhead


def _seconds(work: Callable[[], object], count: int = 10) -> float:
    work()
    found = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(count):
            work()
        found.append((time.perf_counter() - started) / count)
    return median(found)
