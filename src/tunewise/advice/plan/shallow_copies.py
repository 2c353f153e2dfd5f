"""Copies of a model with few of its blocks, from which the figures of the whole follow, since blocks are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch

from tunewise.advice.plan.weightless import Sketch

Figures = TypeVar("Figures")
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # of tensors, by name

_FEWEST = 2  # blocks of a copy: the lowest one may differ from those above it
_SHARED = 4  # blocks of a copy for what trains a quarter of the blocks, or a half
_SIXTH = 6  # blocks between two copies for what leaves out a sixth of the blocks


class Depths(NamedTuple):
    """Holds the numbers of blocks of two copies and of the whole model."""

    few: int
    many: int
    whole: int

    @property
    def more(self) -> int:
        """Return the number of blocks of a third copy, at the same distance."""
        return 2 * self.many - self.few

    @property
    def share(self) -> float:
        """Return (whole - few) / (many - few)."""
        return (self.whole - self.few) / (self.many - self.few)


def depths_of(sketched: Sketch) -> list[Depths]:
    """Return depths of pairs of copies, to be tried in this order; none where the model itself is as cheap.

    Where types of blocks alternate, two copies differ by whole periods of them.
    """
    depth = depth_of(sketched)
    types = list(getattr(sketched.config, "layer_types", None) or [None] * depth)
    period = next((length for length in range(1, depth) if types[length:] == types[:-length]), depth or 1)
    apart = [_FEWEST + (depth - _FEWEST) % distance for distance in (period, _SIXTH * period)]
    pairs = [
        Depths(apart[0], apart[0] + period, depth),
        Depths(_SHARED * period, 2 * _SHARED * period, depth),
        Depths(apart[1], apart[1] + _SIXTH * period, depth),
    ]
    # A second copy takes about as much besides its blocks, as to be built and attached to, as two more blocks do.
    return [pair for pair in pairs if pair.few + pair.many + 2 < depth]


def depth_of(sketched: Sketch) -> int:
    """Return the number of a model's blocks; 0 where a shallow copy of it cannot be made."""
    config = sketched.config
    depth = getattr(config, "num_hidden_layers", None)
    listed = any(  # a list with an entry per block, other than the one that `at_depth` cuts
        isinstance(value, list) and len(value) == depth and name != "layer_types"
        for name, value in vars(config).items()
    )
    return 0 if listed or not isinstance(depth, int) or not hasattr(config, "hidden_size") else depth


def at_depth(sketched: Sketch, depth: int) -> Sketch:
    """Return the sketch of the same model with only its first `depth` blocks."""
    config = deepcopy(sketched.config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    config.num_hidden_layers = depth
    return replace(sketched, config=config)


def extrapolated(copies: Sequence[Figures], share: float) -> Figures:
    """Return each number of a record at another depth: f_0 + s (f_1 - f_0) + s (s - 1) / 2 (f_2 - 2 f_1 + f_0).

    Args:
        copies: the records of two copies (without the last term) or of three, at equal distances; a field that one of
            them lacks is None.
        share: s, the distance of the other depth from the first.
    """
    first: Any = copies[0]
    if any(copy is None for copy in copies):
        return None  # type: ignore[return-value]
    if isinstance(first, int | float):
        f: Any = copies
        square = f[2] - 2 * f[1] + f[0] if len(f) == 3 else 0
        value = f[0] + share * (f[1] - f[0]) + share * (share - 1) / 2 * square
        return round(value) if all(isinstance(number, int) for number in f) else value
    if is_dataclass(first):
        names = [item.name for item in fields(first)]
        found = {name: extrapolated([getattr(copy, name) for copy in copies], share) for name in names}
        return type(copies[0])(**found)
    parts: Any = zip(*copies, strict=True)
    return type(first)(*(extrapolated(part, share) for part in parts))


def shapes_of(few: Shapes, many: Shapes, depths: Depths) -> Shapes | None:
    """Return the tensors that the whole model has, from those of two copies.

    A tensor of a further block has its number in its name, between dots. The sizes of those that both copies have are
    linear in the number of blocks. None where this does not give what the copies have.
    """
    shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]()
    period, further = depths.many - depths.few, 0
    for name, (shape, dtype) in many.items():
        if name in few:
            sizes = zip(few[name][0], shape, strict=True)
            shapes[name] = tuple(extrapolated(size, depths.share) for size in sizes), dtype
            continue
        parts = name.split(".")
        places = [place for place, part in enumerate(parts) if part.isdigit() and int(part) >= depths.few]
        place = next((place for place in places if _numbered(parts, place, -period) in many), None)
        if place is None:
            return None
        further += 1
        shapes |= {
            _numbered(parts, place, block - int(parts[place])): (shape, dtype)
            for block in range(int(parts[place]), depths.whole, period)
        }
    return shapes if len(few) + further == len(many) else None


def _numbered(parts: list[str], place: int, more: int) -> str:
    """Return a name with another number of a block in it."""
    return ".".join([*parts[:place], str(int(parts[place]) + more), *parts[place + 1 :]])
