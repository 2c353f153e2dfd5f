"""Counts the memory and the work of code that runs on fake tensors: bytes alive, FLOPs, bytes moved, calls.

Inside a `Ledger`, floating-point tensors have a shape and no values (`tunewise.engine.fake_tensor`), so that a model of
any size can be built, adapted and trained for a step in little memory. Integer and Boolean tensors are computed for
real, because they decide which code runs next. Reading a number from a fake tensor gives 1, and reading a Boolean True.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tunewise.advice.plan.allocations import Allocation, Allocations
from tunewise.advice.plan.fake_operations import described, rule_for
from tunewise.engine.device import simulated
from tunewise.engine.fake_tensor import FakeTensor, Storage, layout_of, times

_aten = torch.ops.aten
_READS = (_aten._local_scalar_dense.default, _aten.item.default)
_LIFTS = (_aten.lift_fresh.default, _aten.lift_fresh_copy.default)
_SORTS = (_aten.sort, _aten.topk)
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_)
_FLASH = (_aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_flash_attention_for_cpu_backward)

TRAFFIC = 3.0  # bytes that a step moves / bytes of its operations' tensors; found by `benchmarks/plan.py`
_MEMORY_BOUND = 16  # FLOPs per byte below which a product, such as one of low rank, is as slow as its memory


class Work(NamedTuple):
    """Counts FLOPs of products, bytes that other operations move, and operations."""

    flops: float = 0.0
    moved: float = 0.0
    calls: float = 0.0

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """Return self + times x other."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


class Ledger(TorchDispatchMode):
    """Counts memory and work while it is entered; enter it by `fake_tensors()`.

    Attributes:
        device: the simulated kind of device, "cpu" or "cuda"; the tensors themselves are on the CPU.
        live: bytes of the storages that are alive.
        peak: the maximum of `live` so far.
        flops: floating-point operations of matrix products and attention.
        moved: bytes that all other operations read and write, and products whose speed is that of memory, x TRAFFIC.
        calls: number of operations.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self.flops = self.moved = self.calls = 0.0
        self._sizes: dict[int, int] = {}  # of real tensors, by the address of their storage
        self._operation: Any = None  # the one that runs now
        self._allocations = [Allocation(None, 0, 0)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and torch's guard against it takes as long as an operation

    @property
    def work(self) -> Work:
        """Return the FLOPs, the bytes moved and the calls so far."""
        return Work(self.flops, self.moved, self.calls)

    def take_allocations(self) -> Allocations:
        """Return what fake tensors allocated since this was last called, and since the beginning the first time."""
        now = Allocation(None, 0, self.live)
        taken, self._allocations = Allocations([*self._allocations, now]), [now]
        return taken

    def set_aside(self, tensors: Iterable[Tensor]) -> None:
        """Count these fake tensors no longer, as they are not on the device, nor what was allocated before."""
        for tensor in tensors:
            if isinstance(tensor, FakeTensor):
                self.live -= tensor.memory.nbytes
                tensor.memory.freed = lambda nbytes: None
        self.take_allocations()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, on fake tensors unless all its inputs are integers or Booleans, and count what it takes."""
        inputs: list[Tensor] = []
        key = described(func, args, kwargs, inputs)
        if not any(type(tensor) is FakeTensor for tensor in inputs):
            return self._without_fakes(func, key, args, kwargs or {}, inputs)
        if func in _READS:
            return _read(inputs[0])
        if func._overloadpacket in _INDEXING:
            args, inputs = (args[0], _without_masks(args[1]), *args[2:]), []
            key = described(func, args, kwargs, inputs)
        return self._on_fakes(func, key, args, kwargs or {}, inputs)

    def _without_fakes(self, func: Any, key: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """Run an operation on integers and Booleans or on nothing for real, unless it gives other numbers."""
        if func in _LIFTS and inputs[0].is_floating_point():
            return self._lifted(inputs[0])
        floating = any(tensor.is_floating_point() and not tensor.is_meta for tensor in inputs)
        if not inputs and not _on_meta(kwargs):  # makes a tensor
            floating = rule_for(key, func, args, kwargs, inputs).floating
        out = func(*args, **kwargs) if not floating else None
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if floating or any(tensor.is_floating_point() and not tensor.is_meta for tensor in outputs):
            return self._on_fakes(func, key, args, kwargs, inputs)
        for tensor in outputs:
            self._track(tensor)
        self._charge(_cost(func, args, kwargs, out, inputs, outputs))
        return out

    def _lifted(self, values: Tensor) -> Tensor:
        """Make a fake tensor of real numbers; a single one can still be read."""
        layout = layout_of(tuple(values.shape), values.stride(), values.dtype)
        self._charge((0, 0))
        self._operation = _LIFTS
        return FakeTensor(layout, self._allocate(values.nbytes, values if values.numel() == 1 else None))

    def _on_fakes(self, func: Any, key: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """Run an operation on fake tensors, and on whatever real ones are among its inputs."""
        rule, self._operation = rule_for(key, func, args, kwargs, inputs), func
        out = rule.outputs(inputs, self._allocate)
        if func._overloadpacket in _SORTS:  # fake values are sorted already: the order stays
            out = out[0], torch.arange(out[1].shape[-1]).expand(out[1].shape)
            self._track(out[1])
        if rule.cost is None:
            outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            cost = _cost(func, args, kwargs, out, inputs, outputs)
            if func._overloadpacket in flop_registry and not all(type(tensor) is FakeTensor for tensor in inputs):
                self._charge(cost)  # which may depend on the integers' values
                return out
            rule.cost = cost
        self._charge(rule.cost)
        return out

    def _allocate(self, nbytes: int, constant: Tensor | None = None) -> Storage:
        """Count memory from now until it is freed."""
        self._grow(nbytes)
        self._allocations.append(Allocation(self._operation, nbytes, self.live))
        return Storage(nbytes, self._free, constant)

    def _free(self, nbytes: int) -> None:
        self.live -= nbytes

    def _track(self, tensor: Tensor) -> None:
        """Count the storage of a real tensor from now until it is freed."""
        if tensor.is_meta:  # takes no memory outside of a ledger either
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._grow(storage.nbytes())
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def _grow(self, nbytes: int) -> None:
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    def _charge(self, cost: tuple[int, int]) -> None:
        counted = times()
        self.calls += counted.calls
        self.flops += cost[0] * counted.flops
        self.moved += TRAFFIC * cost[1] * counted.moved


def _cost(func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], outputs: list[Tensor]) -> tuple[int, int]:
    """Return the FLOPs of an operation, and the bytes that it moves where these decide how long it takes."""
    packet = func._overloadpacket
    if packet in _FLASH:
        query, key = (inputs[1], inputs[2]) if "backward" in str(packet) else (inputs[0], inputs[1])
        products = 5 if "backward" in str(packet) else 2
        causal = 2 if any(arg is True for arg in args) else 1
        rows = query.shape[0] * query.shape[1] * query.shape[2]
        return products * 2 * rows * key.shape[2] * query.shape[3] // causal, 0
    moved = _bytes(inputs) + _bytes(outputs)
    if packet in flop_registry:
        flops = int(flop_registry[packet](*args, **kwargs, out_val=out))
        return (0, moved) if flops < _MEMORY_BOUND * moved else (flops, 0)
    return 0, 0 if func.is_view else moved


def _read(tensor: Any) -> bool | int | float:
    """Return the number that a fake tensor stands for."""
    if tensor.memory.constant is not None:
        return tensor.memory.constant.item()
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _on_meta(kwargs: Any) -> bool:
    return torch.device(kwargs.get("device") or "cpu").type == "meta"


def _without_masks(indices: Any) -> list[Any]:
    """Replace Boolean masks among indices by the integer indices that they select."""
    integer_indices: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and type(index) is not FakeTensor:
            integer_indices += index.nonzero().unbind(1)
        else:
            integer_indices.append(index)
    return integer_indices


@contextmanager
def fake_tensors(device: str = "cpu", ledger: Ledger | None = None) -> Iterator[Ledger]:
    """Run code on fake floating-point tensors, as on a device of this kind, and yield the ledger that counts it.

    A ledger that was left is entered again, with the tensors that it made, if it is passed. Python's collector of
    cycles is off meanwhile: what is alive must not depend on when it happens to run.
    """
    ledger, collects = ledger or Ledger(device), gc.isenabled()
    gc.disable()
    try:
        with simulated(ledger.device), ledger:
            yield ledger
    finally:
        if collects:
            gc.enable()
