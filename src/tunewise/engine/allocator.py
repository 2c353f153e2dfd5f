"""Keeps the C allocator from handing memory back to the system between training steps.

glibc maps every large tensor afresh and gives it back when it is freed, so each step pays for page faults and
zeroed pages again: 8 % of full fine-tuning's CPU time and 2 % of LoRA's in `benchmarks/engine.py`'s model.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# The numbers are those of <malloc.h>. Nothing is mapped: glibc takes no threshold above 32 MB, and a vocabulary's
# gradient is larger.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> None:
    """For the rest of this process, reuse freed memory; does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_MMAP_MAX, 0)
