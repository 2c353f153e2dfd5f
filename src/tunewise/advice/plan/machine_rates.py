"""How fast this machine is: products of matrices, memory, and the overhead of an operation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

_SIDE = {"cpu": 512, "cuda": 4096}  # of the matrices that are multiplied
_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # of the tensor that is written over


@dataclass(frozen=True)
class Rates:
    """Floating operations a second, bytes a second, and seconds that an operation costs beside its work.

    Where operations are `queued`, as on a GPU, one is started while others work.
    """

    flops: float
    bandwidth: float
    overhead: float
    queued: bool = False

    @classmethod
    def measured(cls, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Rates:
        """By half a second of trials on the device."""
        where = torch.device(device)
        side, size = _SIDE[where.type], _BYTES[where.type]
        a = torch.randn(side, side, dtype=dtype, device=where)
        big = torch.zeros(size // 4, device=where)
        small = torch.zeros(8, device=where)
        return cls(
            2 * side**3 / _seconds(lambda: a @ a, where),
            2 * size / _seconds(lambda: big.add_(1), where),
            _seconds(lambda: small.add_(1), where, 2000),
            where.type == "cuda",
        )

    def seconds(self, flops: float, moved: float, calls: float) -> float:
        """Of work of this size."""
        work, starting = flops / self.flops + moved / self.bandwidth, calls * self.overhead
        return max(work, starting) if self.queued else work + starting


def _seconds(work: Callable[[], object], device: torch.device, count: int = 10) -> float:
    def waited() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    found = []
    for _ in range(5):
        started = waited()
        for _ in range(count):
            work()
        found.append((waited() - started) / count)
    return median(found)
