"""Values put aside until they are wanted again, where they take no memory: in a temporary file that is mapped."""

from __future__ import annotations

import mmap
import tempfile

import torch
from torch import Tensor

from tunewise.advice.plan.ledger import is_ghost, on_gpu

_SMALL = 1 << 16  # bytes that are not worth a file


def parked(tensor: Tensor) -> Tensor:
    """A copy of a tensor of a processor, read from disk when it is used; copied in memory on a GPU.

    The file has no name any more, so that it ends with the copy. Where the disk has no room the copy is in memory.
    """
    values = tensor.detach()
    if on_gpu(values) or values.nbytes < _SMALL:
        return values.clone()
    if is_ghost(values):  # a plan counts memory, and this takes none
        return values
    try:
        return _mapped(values)
    except OSError:
        return values.clone()


def unread(kept: Tensor) -> None:
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
