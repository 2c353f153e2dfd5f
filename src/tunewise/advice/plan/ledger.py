"""Code run on tensors without contents, and what it would take: bytes alive, floating operations, bytes moved.

Inside a `Ledger`, floating tensors have a shape and nothing else (torch's fake tensors), so that a model of any size
can be built, adapted and trained for a step in little memory; whole numbers and truth values are computed for real,
because they decide what happens next. A number that is read from a floating tensor is 1, a truth value true.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tunewise.engine.device import simulated

_aten = torch.ops.aten
_READ = (_aten._local_scalar_dense.default, _aten.item.default)
_ORDERS = (_aten.sort, _aten.topk)
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_)
_FLASH = (_aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_flash_attention_for_cpu_backward)


class Ledger(TorchDispatchMode):
    """Counts while it is entered; enter `fake_tensors()` rather than this alone.

    `live` and `peak` are bytes of the storages that are alive now and were at most; `flops` are those of matrix
    products and attention, `moved` the bytes that all other operations read and write, `calls` their number. Tensors
    live on a processor; `device` is the kind that they stand for, whose ways code that asks `on_gpu` takes.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = self.flops = self.moved = self.calls = 0
        self._known: dict[int, int] = {}

    @property
    def counts(self) -> tuple[int, int, int]:
        """Floating operations, bytes moved, and calls, so far."""
        return self.flops, self.moved, self.calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation without contents, unless it is about whole numbers alone, and write down what it takes."""
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ghostly = any(isinstance(tensor, FakeTensor) for tensor in given)
        if func in _READ and ghostly and getattr(given[0], "constant", None) is None:
            return True if given[0].dtype == torch.bool else 1.0 if given[0].is_floating_point() else 1
        whole = not any(tensor.is_floating_point() for tensor in given) and not ghostly
        if func._overloadpacket in _INDEXED and ghostly:
            args = (args[0], _named(args[1]), *args[2:])
        out = self._computed(func, args, kwargs) if whole and given else None
        if out is None:
            out = func(*args, **kwargs)
            if not given and not _floating(out):  # what is made of nothing, such as a random order
                out = self._computed(func, args, kwargs)
        if ghostly and func._overloadpacket in _ORDERS:  # the order of what has no contents is that in which it stands
            with unset_fake_temporarily():
                out = out[0], torch.arange(out[1].shape[-1]).expand(out[1].shape)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._write(tensor)
        self._count(func, args, kwargs, out, given, made)
        return out

    @staticmethod
    def _computed(func: Any, args: Any, kwargs: Any) -> Any:
        """The result with its contents; None where it is of floating tensors, which have none."""
        with unset_fake_temporarily():
            out = func(*args, **kwargs)
        return None if _floating(out) else out

    def _write(self, tensor: Tensor) -> None:
        if tensor.is_meta:  # has no contents outside of a ledger either
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor], made: list[Tensor]) -> None:
        packet = func._overloadpacket
        self.calls += 1
        if packet in _FLASH:
            query, key = (given[1], given[2]) if "backward" in str(packet) else (given[0], given[1])
            products = 5 if "backward" in str(packet) else 2
            causal = 2 if any(arg is True for arg in args) else 1
            rows = query.shape[0] * query.shape[1] * query.shape[2]
            self.flops += products * 2 * rows * key.shape[2] * query.shape[3] // causal
        elif packet in flop_registry:
            with unset_fake_temporarily():  # it may read the lengths of sequences, which are known
                self.flops += int(flop_registry[packet](*args, **kwargs, out_val=out))
        elif not func.is_view:
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))


def _named(indices: Any) -> list[Any]:
    """Indices with truth values replaced by the places that they name, which are known."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            with unset_fake_temporarily():
                found += index.nonzero().unbind(1)
        else:
            found.append(index)
    return found


def _floating(out: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(out))


@contextmanager
def fake_tensors(device: str = "cpu") -> Iterator[Ledger]:
    """A ledger over code whose floating tensors have no contents, as on a device of this kind."""
    ledger = Ledger(device)
    with simulated(device), FakeTensorMode(allow_non_fake_inputs=True), ledger:
        yield ledger
