"""Counts the memory and the work of code that runs on fake tensors: bytes alive, FLOPs, bytes moved, calls.

Inside a `Ledger`, floating-point tensors have a shape and no values (torch's fake tensors), so that a model of any size
can be built, adapted and trained for a step in little memory. Integer and Boolean tensors are computed for real,
because they decide which code runs next. Reading a number from a fake tensor gives 1, and reading a Boolean True.
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
_READS = (_aten._local_scalar_dense.default, _aten.item.default)
_SORTS = (_aten.sort, _aten.topk)
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_)
_FLASH = (_aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_flash_attention_for_cpu_backward)


class Ledger(TorchDispatchMode):
    """Counts memory and work while it is entered; enter it by `fake_tensors()`.

    Attributes:
        device: the simulated kind of device, "cpu" or "cuda"; the tensors themselves are on the CPU.
        live: bytes of the storages that are alive.
        peak: the maximum of `live` so far.
        flops: floating-point operations of matrix products and attention.
        moved: bytes that all other operations read and write.
        calls: number of operations.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = self.flops = self.moved = self.calls = 0
        self._sizes: dict[int, int] = {}

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return the FLOPs, the bytes moved and the calls so far."""
        return self.flops, self.moved, self.calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, on fake tensors unless all its inputs are integers or Booleans, and count what it takes."""
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        any_fake = any(isinstance(tensor, FakeTensor) for tensor in inputs)
        if func in _READS and any_fake and getattr(inputs[0], "constant", None) is None:
            return True if inputs[0].dtype == torch.bool else 1.0 if inputs[0].is_floating_point() else 1
        all_integer = not any(tensor.is_floating_point() for tensor in inputs) and not any_fake
        if func._overloadpacket in _INDEXING and any_fake:
            args = (args[0], _without_masks(args[1]), *args[2:])
        out = self._computed_for_real(func, args, kwargs) if all_integer and inputs else None
        if out is None:
            out = func(*args, **kwargs)
            if not inputs and not _floating(out):  # made without inputs, such as a random permutation
                out = self._computed_for_real(func, args, kwargs)
        if any_fake and func._overloadpacket in _SORTS:  # fake values are sorted already: the order stays
            with unset_fake_temporarily():
                out = out[0], torch.arange(out[1].shape[-1]).expand(out[1].shape)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._track(tensor)
        self._count(func, args, kwargs, out, inputs, outputs)
        return out

    @staticmethod
    def _computed_for_real(func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result with its values; None if it has floating-point tensors, which stay fake."""
        with unset_fake_temporarily():
            out = func(*args, **kwargs)
        return None if _floating(out) else out

    def _track(self, tensor: Tensor) -> None:
        """Count the storage of a tensor from now until it is freed."""
        if tensor.is_meta:  # takes no memory outside of a ledger either
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        packet = func._overloadpacket
        self.calls += 1
        if packet in _FLASH:
            query, key = (inputs[1], inputs[2]) if "backward" in str(packet) else (inputs[0], inputs[1])
            products = 5 if "backward" in str(packet) else 2
            causal = 2 if any(arg is True for arg in args) else 1
            rows = query.shape[0] * query.shape[1] * query.shape[2]
            self.flops += products * 2 * rows * key.shape[2] * query.shape[3] // causal
        elif packet in flop_registry:
            with unset_fake_temporarily():  # it may read sequence lengths, which are real integers
                self.flops += int(flop_registry[packet](*args, **kwargs, out_val=out))
        elif not func.is_view:
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))


def _without_masks(indices: Any) -> list[Any]:
    """Replace Boolean masks among indices by the integer indices that they select."""
    integer_indices: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            with unset_fake_temporarily():
                integer_indices += index.nonzero().unbind(1)
        else:
            integer_indices.append(index)
    return integer_indices


def _floating(out: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(out))


@contextmanager
def fake_tensors(device: str = "cpu") -> Iterator[Ledger]:
    """Run code on fake floating-point tensors, as on a device of this kind, and yield the ledger that counts it."""
    ledger = Ledger(device)
    with simulated(device), FakeTensorMode(allow_non_fake_inputs=True), ledger:
        yield ledger
