"""Measures what a trial takes of a machine's memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch


def tidy() -> None:
    """Give freed memory back to the system, so that the next trial's peak is its own."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_BASELINE = psutil.Process().memory_info().rss  # before any base is loaded: the interpreter and its libraries


@contextmanager
def peak_memory(device: torch.device, held: int = 0) -> Iterator[list[int]]:
    """Fills its one-item list with the peak in bytes: of the device, or of this process beyond its own start.

    `held` bytes were there before and are not counted: what measuring keeps, not what is measured.
    On Linux the kernel's own high-water mark is reset and read; elsewhere it covers the process's whole life.
    """
    found = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found[0] = max(torch.cuda.max_memory_allocated(device) - held, 0)
        return
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        with suppress(OSError):  # a container may forbid it; the mark then covers the process's whole life
            mark.write_text("5")
    yield found
    found[0] = max(_high_water() - _BASELINE - held, 0)


def _high_water() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
