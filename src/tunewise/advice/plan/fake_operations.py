"""Finds what an operation gives on fake tensors: torch is asked once for inputs of the same shapes.

torch says it on its meta device. Where an operation has no rule there, torch's own fake tensors know what it gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tunewise.engine.fake_tensor import FakeTensor, Layout, Storage, layout_of

_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Made:
    """Describes an output in memory of its own."""

    layout: Layout
    nbytes: int


@dataclass(frozen=True, slots=True)
class Viewed:
    """Describes an output that shares the memory of the input of this number."""

    source: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Written:
    """Describes an output that is the input of this number itself, with other contents."""

    source: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Other:
    """Holds an output that is no tensor."""

    value: Any


Outcome = Made | Viewed | Written | Other | list[Any] | tuple[Any, ...]  # lists and tuples are of outcomes


@dataclass(slots=True)
class Rule:
    """Says what an operation gives on inputs of these layouts.

    `floating` says whether there are floating-point numbers among it. A ledger keeps in `cost` what the operation
    takes, as long as that depends on nothing else.
    """

    outcome: Outcome
    floating: bool
    cost: tuple[int, int] | None = None

    def outputs(self, inputs: list[Tensor], allocate: Callable[[int], Storage]) -> Any:
        """Make what the operation gives; `allocate` is called for memory of so many bytes."""
        return _made(self.outcome, inputs, allocate)


_rules: defaultdict[torch.dtype, dict[Any, Rule]] = defaultdict(dict)  # by torch's default type, which decides too


def described(func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
    """Return what decides the shapes that an operation gives, and append its tensors to `inputs`."""
    described_args = tuple([_described(value, inputs) for value in args])
    if not kwargs:
        return func, described_args
    return func, described_args, tuple([(name, _described(value, inputs)) for name, value in kwargs.items()])


def _described(value: Any, inputs: list[Tensor]) -> Any:
    kind = type(value)
    if kind is FakeTensor:
        inputs.append(value)
        return value.faked
    if kind is list or kind is tuple:
        return tuple([_described(part, inputs) for part in value])
    if isinstance(value, Tensor):
        inputs.append(value)
        return layout_of(tuple(value.shape), value.stride(), value.dtype)
    return (kind, value) if kind is bool or kind is float else value  # True, 1 and 1.0 are equal


def rule_for(key: Any, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Rule:
    """Return the rule of an operation.

    Args:
        key: what `described` returned.
        func: the operation.
        args: its arguments.
        kwargs: its arguments by name.
        inputs: the tensors among both.
    """
    rules = _rules[torch.get_default_dtype()]
    rule = rules.get(key)
    if rule is None:
        outcome = _asked(func, args, kwargs, inputs)
        rule = rules[key] = Rule(outcome, _is_floating(outcome))
    return rule


def _made(outcome: Outcome, inputs: list[Tensor], allocate: Callable[[int], Storage]) -> Any:
    if isinstance(outcome, list):
        return [_made(part, inputs, allocate) for part in outcome]
    if isinstance(outcome, tuple):
        return tuple([_made(part, inputs, allocate) for part in outcome])
    if isinstance(outcome, Made):
        return FakeTensor(outcome.layout, allocate(outcome.nbytes))
    if isinstance(outcome, Other):
        return outcome.value
    source = inputs[outcome.source]
    if not isinstance(source, FakeTensor):  # real numbers, which stay as they are
        return FakeTensor(outcome.layout, allocate(source.nbytes))
    if isinstance(outcome, Viewed):
        return FakeTensor(outcome.layout, source.memory)
    if outcome.layout is not source.faked:
        raise NotImplementedError("a fake tensor cannot change its shape in place")
    source.memory.constant = None
    return source


def _is_floating(outcome: Outcome) -> bool:
    if isinstance(outcome, list | tuple):
        return any(map(_is_floating, outcome))
    return not isinstance(outcome, Other) and outcome.layout.dtype.is_floating_point


def _asked(func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Outcome:
    """Run an operation on tensors without contents and note what it gives."""
    metas = [torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=_META) for each in inputs]
    try:
        return _noted(_run(func, args, kwargs, metas, _META), metas)
    except NotImplementedError:
        with FakeTensorMode() as mode:
            fakes: list[Tensor] = [mode.from_tensor(torch.empty_like(each, device="cpu")) for each in metas]
            return _noted(_run(func, args, kwargs, fakes, torch.device("cpu")), fakes)


def _run(func: Any, args: Any, kwargs: Any, tensors: list[Tensor], device: torch.device) -> Any:
    remaining = iter(tensors)
    positional = [_replaced(value, remaining) for value in args]
    named = {name: device if name == "device" else _replaced(value, remaining) for name, value in kwargs.items()}
    if not tensors and any(argument.name == "device" for argument in func._schema.arguments):
        named["device"] = device
    return func(*positional, **named)


def _replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    return type(value)([_replaced(part, tensors) for part in value]) if type(value) in (list, tuple) else value


def _noted(out: Any, inputs: list[Tensor]) -> Outcome:
    if type(out) in (list, tuple):
        noted: list[Any] | tuple[Any, ...] = type(out)([_noted(part, inputs) for part in out])
        return noted
    if not isinstance(out, Tensor):
        return Other(out)
    layout, storage = layout_of(tuple(out.shape), out.stride(), out.dtype), out.untyped_storage()
    for number, tensor in enumerate(inputs):
        if out is tensor:
            return Written(number, layout)
        if tensor.untyped_storage()._cdata == storage._cdata:
            return Viewed(number, layout)
    return Made(layout, storage.nbytes())
