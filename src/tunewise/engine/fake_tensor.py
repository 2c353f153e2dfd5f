"""A tensor that has a shape and a type and no contents, so that a model of any size can be built in little memory.

Fake tensors exist only inside a `tunewise.advice.plan.ledger.Ledger`, which makes them and runs operations on them.
torch has fake tensors too. These do a tenth of their work: there is one device, and no symbolic size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_CPU = torch.device("cpu")


class Layout:
    """Holds a shape, strides and a type. Equal ones are one object (see `layout_of`), compared by identity."""

    __slots__ = ("dtype", "nbytes", "size", "strides")

    def __init__(self, size: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> None:
        self.size, self.strides, self.dtype = size, strides, dtype
        count = 1
        for length in size:
            count *= length
        self.nbytes = count * dtype.itemsize  # of its entries, each counted once even where a stride is 0


layout_of = cache(Layout)


@contextmanager
def real_contents() -> Iterator[None]:
    """Make real tensors also where a ledger would make fake ones: for constants that are kept beyond it."""
    with _disable_current_modes():
        yield


class Times(NamedTuple):
    """Says how often a ledger counts what is run: its FLOPs, the bytes that it moves, and its operations."""

    flops: float = 1.0
    moved: float = 1.0
    calls: float = 1.0


ONCE = Times()
_times = ONCE  # set by `counted`


@contextmanager
def counted(times: Times) -> Iterator[None]:
    """Count the work of what is run on fake tensors so many times, so that one call can stand for many like it."""
    global _times
    before, _times = _times, times
    try:
        yield
    finally:
        _times = before


def times() -> Times:
    """Return how often a ledger counts what is run now."""
    return _times


class Storage:
    """Stands for the memory of a tensor and of its views; `freed(nbytes)` is called when the last of them is gone.

    `constant` is the single number that it was made from, as long as nothing has written to it.
    """

    __slots__ = ("constant", "freed", "nbytes")

    def __init__(self, nbytes: int, freed: Callable[[int], None], constant: Tensor | None = None) -> None:
        self.nbytes, self.freed, self.constant = nbytes, freed, constant

    def __del__(self) -> None:
        self.freed(self.nbytes)


class FakeTensor(Tensor):
    """A tensor without contents, on the CPU as far as torch can tell."""

    faked: Layout
    memory: Storage
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, layout: Layout, memory: Storage) -> Self:
        """Make a tensor of this layout in this memory."""
        tensor: Any = Tensor._make_wrapper_subclass(
            cls, layout.size, strides=layout.strides, dtype=layout.dtype, device=_CPU
        )
        tensor.faked, tensor.memory = layout, memory
        return tensor

    def __init__(self, *_: object) -> None:
        """Do nothing: `torch.Tensor(values)` calls this on what a ledger made of the values."""

    @property
    def data(self) -> Tensor:
        """The same memory, outside of autograd."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, FakeTensor):
            raise TypeError("a fake tensor has no real contents")
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.faked, self.memory = other.faked, other.memory

    def tolist(self) -> Any:
        """Return the numbers that reading each entry gives."""
        return [entry.tolist() for entry in self] if self.dim() else self.item()

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        """Show what there is."""
        return f"FakeTensor({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:  # type: ignore[override]
        """Refuse: only a ledger knows what an operation on fake tensors gives."""
        raise RuntimeError(f"{func} was called on a fake tensor outside of its ledger")
