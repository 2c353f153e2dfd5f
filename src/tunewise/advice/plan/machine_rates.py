"""How fast this machine is: FLOPs and bytes per second, and the overhead of starting an operation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

_SIDE = {"cpu": 512, "cuda": 4096}  # rows and columns of the matrices that are multiplied
_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # size of the tensor that is overwritten


@dataclass(frozen=True)
class Rates:
    """Holds the rates of a device.

    Attributes:
        flops: floating-point operations per second.
        bandwidth: bytes per second.
        overhead: seconds to start an operation.
        queued: whether operations are started while others run, as on a GPU.
    """

    flops: float
    bandwidth: float
    overhead: float
    queued: bool = False

    @classmethod
    def measured(cls, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Rates:
        """Measure the rates, in about half a second on the device."""
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
        """Return flops / rate + moved / bandwidth + calls x overhead; if queued, the larger of work and overhead."""
        work, overhead = flops / self.flops + moved / self.bandwidth, calls * self.overhead
        return max(work, overhead) if self.queued else work + overhead


def _seconds(work: Callable[[], object], device: torch.device, count: int = 10) -> float:
    """Return the median seconds per call of five rounds of `count` calls, after one call to warm up."""

    def synchronized_time() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    times = []
    for _ in range(5):
        start = synchronized_time()
        for _ in range(count):
            work()
        times.append((synchronized_time() - start) / count)
    return median(times)
