"""Memory of this machine: what a trial takes of it, what waits on disk instead, and what the allocator keeps."""

from __future__ import annotations

import ctypes
import gc
import mmap
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from tunewise.engine.device import is_fake, on_gpu


def release_unused_memory() -> None:
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


# The numbers are those of <malloc.h>. Nothing is mapped: glibc takes no threshold above 32 MB, and a vocabulary's
# gradient is larger.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> None:
    """For the rest of this process, reuse freed memory; does nothing where the C library is not glibc.

    glibc maps every large tensor afresh and gives it back when it is freed, so each step pays for page faults and
    zeroed pages again: 8 % of full fine-tuning's CPU time and 2 % of LoRA's in `benchmarks/engine.py`'s model.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_MMAP_MAX, 0)


_SMALL = 1 << 16  # bytes that are not worth a file


def spill_to_disk(tensor: Tensor) -> Tensor:
    """A copy of a tensor of a processor, read from disk when it is used; copied in memory on a GPU.

    The file has no name any more, so that it ends with the copy. Where the disk has no room the copy is in memory.
    """
    values = tensor.detach()
    if on_gpu(values) or values.nbytes < _SMALL:
        return values.clone()
    if is_fake(values):  # a plan counts memory, and this takes none
        return values
    try:
        return _mapped(values)
    except OSError:
        return values.clone()


def release_pages(kept: Tensor) -> None:
    """Let go of the memory that reading a parked tensor took; it is read again when it is used."""
    mapping: mmap.mmap | None = getattr(kept, "mapping", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapped(values: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile(prefix="tunewise-") as file:
        file.write(values.contiguous().view(torch.uint8).numpy().data)
        file.flush()
        mapping = mmap.mmap(file.fileno(), values.nbytes, access=mmap.ACCESS_COPY)
    kept = torch.frombuffer(mapping, dtype=values.dtype).view(values.shape)
    kept.mapping = mapping  # type: ignore[attr-defined]
    return kept
