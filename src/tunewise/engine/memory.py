"""Measures the peak of memory, spills tensors to disk, and sets what the allocator does with freed memory."""

from __future__ import annotations

import ctypes
import gc
import math
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

from tunewise.core.operating_system import peak_resident_bytes, reserve
from tunewise.engine.device import is_fake, on_gpu


def release_unused_memory() -> None:
    """Return freed memory to the system, so that it does not count in the next trial's peak."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_BASELINE = psutil.Process().memory_info().rss  # before any base is loaded: the interpreter and its libraries
_peaks_before_reset = [0]  # the high-water marks of this process that `peak_memory` has reset; the largest one


def process_peak_bytes() -> int:
    """Return the largest resident memory that this process has ever had, in bytes, libraries included.

    The operating system's own figure forgets what came before the last `peak_memory`, which resets it.
    """
    return max(_peaks_before_reset[0], _high_water())


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Measure the peak of memory within the block, in bytes.

    On a GPU it is the peak of the device's allocated memory. On a CPU it is this process's resident memory beyond what
    the interpreter and its libraries take. Linux's high-water mark is reset first; on other systems it covers the whole
    life of the process.

    Args:
        device: what runs the block.

    Yields:
        A list of one number, which holds the peak after the block.
    """
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    _peaks_before_reset[0] = process_peak_bytes()
    clear_refs = Path("/proc/self/clear_refs")
    if clear_refs.exists():
        with suppress(OSError):  # a container may forbid it; the mark then covers the process's whole life
            clear_refs.write_text("5")  # 5 resets the high-water mark; see proc(5)
    yield peak
    peak[0] = max(_high_water() - _BASELINE, 0)


def _high_water() -> int:
    """Return the largest resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return peak_resident_bytes()


# Parameters of mallopt, from <malloc.h>. Mapping is turned off altogether: glibc accepts no mapping threshold above
# 32 MB, and the gradient of a large vocabulary's embeddings exceeds that.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> None:
    """Reuse freed memory for the rest of this process; do nothing where the C library is not glibc.

    By default glibc maps every large tensor anew and unmaps it when it is freed, so each step pays for page faults and
    zeroed pages again: 8 % of the CPU time of full fine-tuning and 2 % of LoRA's, with the model of
    `benchmarks/engine.py`.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_MMAP_MAX, 0)


_MIN_FILE_BYTES = 1 << 16  # a smaller tensor is not worth a file


def spill_to_disk(tensor: Tensor) -> Tensor:
    """Copy a CPU tensor into a file that is mapped into memory, so that pages are read when they are used.

    The file is unlinked, so that it vanishes with the copy. The copy is in memory if the tensor is on a GPU or small,
    or if the disk is full. A fake tensor is returned as it is.
    """
    values = tensor.detach()
    if on_gpu(values) or values.nbytes < _MIN_FILE_BYTES:
        return values.clone()
    if is_fake(values):  # a plan counts memory, and a mapped file takes none
        return values
    try:
        return _map_file(values)
    except OSError:
        return values.clone()


def allocate_on_disk(*shape: int) -> Tensor:
    """Return float32 zeros in an unlinked file that is mapped into memory; what is written there goes to the file.

    After writing or reading a part of it, `release_pages` takes that part out of memory. The tensor is in memory if the
    disk has no room for it.
    """
    nbytes = 4 * math.prod(shape)
    if nbytes < _MIN_FILE_BYTES:
        return torch.zeros(shape)
    try:
        with tempfile.TemporaryFile(prefix="tunewise-") as file:
            reserve(file.fileno(), nbytes)
            mapping = mmap.mmap(file.fileno(), nbytes)
    except OSError:
        return torch.zeros(shape)
    tensor = torch.frombuffer(mapping, dtype=torch.float32).view(shape)
    tensor.mapping = mapping  # type: ignore[attr-defined]
    return tensor


def release_pages(spilled: Tensor) -> None:
    """Drop the pages of a tensor on disk from memory; they are read from disk again when they are used."""
    mapping: mmap.mmap | None = getattr(spilled, "mapping", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _map_file(values: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile(prefix="tunewise-") as file:
        file.write(values.contiguous().view(torch.uint8).numpy().data)
        file.flush()
        mapping = mmap.mmap(file.fileno(), values.nbytes, access=mmap.ACCESS_COPY)
    spilled = torch.frombuffer(mapping, dtype=values.dtype).view(values.shape)
    spilled.mapping = mapping  # type: ignore[attr-defined]
    return spilled
