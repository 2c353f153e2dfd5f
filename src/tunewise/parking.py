"""Values put aside until they are wanted again, where they take no memory: in a temporary file that is mapped."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor

from tunewise.ledger import is_ghost, on_gpu

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


def _mapped(values: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile(prefix="tunewise-") as file:
        file.write(values.contiguous().view(torch.uint8).numpy().data)
        file.flush()
        flat = torch.from_file(file.name, shared=False, size=values.numel(), dtype=values.dtype)
    return flat.view(values.shape)
