"""The memory that code allocates on two copies of a model that differ in depth, and its peak at any depth.

The deeper copy allocates as the shallower one does, and for its further blocks it does some stretches of that again. So
bytes alive before and after a stretch are linear in the number of blocks, and those within it follow from these. Of all
repetitions the first or the last has the most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_ALIKE = 32  # operations that both copies do after a repetition, from which on its end is not sought any further


class Allocation(NamedTuple):
    """Says which operation allocated how many bytes, and how many were alive then."""

    operation: Any
    nbytes: int
    alive: int


@dataclass(frozen=True)
class Allocations:
    """Lists allocations in their order, between an entry for what was alive before and one for what is alive after."""

    entries: list[Allocation] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Return the largest number of bytes alive; 0 if nothing was recorded."""
        return max((entry.alive for entry in self.entries), default=0)


def peak_between(few: Allocations, many: Allocations, share: float) -> float | None:
    """Return the peak at another depth, few + share x (many - few) in the number of blocks, with `share` at least 1.

    None where the deeper copy does something else than the shallower one, or does it in another order.
    """
    peak = 0.0
    for stretch in _stretches(few.entries, many.entries):
        if stretch is None:
            return None
        place, other, alike, repeated = stretch
        alive = [
            one.alive + share * (another.alive - one.alive)
            for one, another in zip(few.entries[place : place + alike], many.entries[other:], strict=False)
        ]
        peak = max(peak, *alive)
        if repeated:
            before, end = many.entries[other + alike - 1], other + alike + repeated
            most = max(entry.alive for entry in many.entries[other + alike : end])
            one, another = few.entries[place + alike], many.entries[end]
            after = one.alive + share * (another.alive - one.alive)
            peak = max(peak, alive[-1] + most - before.alive, after + most - another.alive)
    return peak


def grow_in_blocks(few: Allocations, many: Allocations) -> bool:
    """Tell whether tensors within a block are larger where there are more blocks, so that work grows in squares."""
    return any(
        one.nbytes != another.nbytes
        for stretch in _stretches(few.entries, many.entries)
        if stretch is not None
        for step in range(1, min(stretch.alike, stretch.repeated) + 1)
        for one in [few.entries[stretch.place + stretch.alike - step]]
        for another in [many.entries[stretch.other + stretch.alike - step]]
    )


class _Stretch(NamedTuple):
    """Says where a stretch begins in both, its length, and how many operations only the deeper copy does after it."""

    place: int
    other: int
    alike: int
    repeated: int


def _stretches(few: list[Allocation], many: list[Allocation]) -> Iterator[_Stretch | None]:
    """Divide both into stretches that are alike; the last one is None where there is no such division."""
    place = other = 0
    while place < len(few) or other < len(many):
        alike = _alike(few, place, many, other)
        repeated = _repeated(few, place + alike, many, other + alike) if alike else None
        if repeated is None:
            yield None
            return
        alike -= _earlier(few, place, many, other, alike, repeated) if repeated else 0
        yield _Stretch(place, other, alike, repeated)
        place, other = place + alike, other + alike + repeated


def _alike(few: list[Allocation], place: int, many: list[Allocation], other: int) -> int:
    """Return how many operations are the same in both, from these places on."""
    most = min(len(few) - place, len(many) - other)
    return next((step for step in range(most) if few[place + step][0] != many[other + step][0]), most)


def _repeated(few: list[Allocation], place: int, many: list[Allocation], other: int) -> int | None:
    """Return how many operations come in `many` before it goes on as `few` does; None if it never does."""
    if place == len(few):
        return 0 if other == len(many) else None
    alike, repeated = 0, None
    for start in range(other + 1, len(many)):
        if many[start][0] == few[place][0] and (length := _alike(few, place, many, start)) > alike:
            alike, repeated = length, start - other
            if alike >= _ALIKE:
                break
    return repeated


def _earlier(few: list[Allocation], place: int, many: list[Allocation], other: int, alike: int, repeated: int) -> int:
    """Return by how many operations a repetition begins earlier, so that most allocations before it are of one size.

    Where blocks do the same operations on tensors of other sizes, only the sizes tell which block is repeated.
    """
    best = earlier = gained = 0
    for step in range(1, alike):
        one, before, behind = (
            few[place + alike - step],
            many[other + alike - step],
            many[other + alike - step + repeated],
        )
        if one[0] != behind[0]:
            break
        gained += (one[1] == behind[1]) - (one[1] == before[1])
        if gained > best:
            best, earlier = gained, step
    return earlier
