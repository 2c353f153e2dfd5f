"""How fast this machine is: FLOPs and bytes per second, and the overhead of starting an operation.

`Rates.measured` measures large square matrices; `Rates.for_model` measures the shapes and the type that a model's own
passes have, which is nearer to what its training reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_SIDE = {"cpu": 512, "cuda": 4096}  # rows and columns of the matrices that are multiplied
_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # size of the tensor that is overwritten
_TOKENS = {"cpu": 768, "cuda": 8192}  # of the pass whose shapes are measured
_PRODUCT = {"cpu": 4e9, "cuda": 1e12}  # FLOPs of the product that is measured, at most; a wider layer is cut
_ROUND = 0.04  # seconds of a round of calls that are timed together
# What modules, hooks and autograd take for an operation, in operations on eight numbers; found by `benchmarks/plan.py`.
_LAYERS_OF_CALLS = {"cpu": 7.5, "cuda": 3.0}


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
            _LAYERS_OF_CALLS[where.type] * _seconds(lambda: small.add_(1), where, 2000),
            where.type == "cuda",
        )

    @classmethod
    def for_model(cls, config: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Rates:
        """Measure the rates at a model's own shapes, in about a second: its widest layer, on a pass of usual size.

            flops      2 x tokens x width x inner width / seconds of that product
            bandwidth  bytes that the activation function of that layer reads and writes / its seconds
            overhead   seconds of an operation on eight numbers x _LAYERS_OF_CALLS

        Args:
            config: the model's configuration.
            dtype: what products are computed in: the weights' type, or bfloat16 under autocast.
            device: where it runs.
        """
        where = torch.device(device)
        config = config.get_text_config()
        width = int(config.hidden_size)
        inner = int(getattr(config, "intermediate_size", None) or 4 * width)
        tokens = _TOKENS[where.type]
        states = torch.randn(tokens, width, dtype=dtype, device=where)
        columns = min(inner, max(int(_PRODUCT[where.type] / (2 * tokens * width)), 1))
        weight = torch.randn(columns, width, dtype=dtype, device=where)
        gate, up = torch.ones(2, tokens, inner, device=where).unbind()
        small = torch.zeros(8, device=where)
        moved = 5 * gate.nbytes  # read, written, and both factors read and the product written
        return cls(
            2 * tokens * width * columns / _seconds(lambda: torch.nn.functional.linear(states, weight), where, 4),
            moved / _seconds(lambda: torch.nn.functional.silu(gate) * up, where, 4),
            _LAYERS_OF_CALLS[where.type] * _seconds(lambda: small.add_(1), where, 1000),
            where.type == "cuda",
        )

    def seconds(self, flops: float, moved: float, calls: float) -> float:
        """Return flops / rate + moved / bandwidth + calls x overhead; if queued, the larger of work and overhead."""
        work, overhead = flops / self.flops + moved / self.bandwidth, calls * self.overhead
        return max(work, overhead) if self.queued else work + overhead


def forward_backward_seconds(parameters: int, tokens: float, rates: Rates) -> float:
    """Return about how long a forward and a backward pass over these tokens take: 6 FLOPs per parameter and token.

    Args:
        parameters: of the whole model; where few are trained, a third less work is done.
        tokens: tokens of all rows of a step.
        rates: how fast the machine is.
    """
    return rates.seconds(6.0 * parameters * tokens, 0.0, 0.0)


def _seconds(work: Callable[[], object], device: torch.device, count: int = 10) -> float:
    """Return the seconds per call of the fastest of five rounds of up to `count` calls, after one call to warm up.

    A round has fewer calls where they are slow, but at least one.
    """

    def synchronized_time() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(calls: int) -> float:
        start = synchronized_time()
        for _ in range(calls):
            work()
        return (synchronized_time() - start) / calls

    work()
    once = timed(1)
    count = min(count, max(int(_ROUND / once), 1)) if once else count
    return min(once, *(timed(count) for _ in range(5)))
