"""Says who takes part in one training: a single process, or several that each compute their share of a step.

Every rank holds the whole base, or where it is sharded a part of each weight (`tunewise.engine.sharding`), and computes
the loss of its own rows of a step. Gradients are then summed over the ranks, so that all of them take the same step.
The loss is a sum over labelled tokens divided by their number on all ranks, and so the sum over ranks is the gradient
that one process would have computed, however the rows are shared out; a mean over ranks would not be.

Where rows are too long for one rank, `context` neighbours compute each row together (`tunewise.engine.context`). They
are a group, and the groups share the rows of a step out.

A process is a rank where the environment says so, as torchrun, Slurm's launchers and `--devices` do: RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from tunewise.core.errors import RequestError, TunewiseError

T = TypeVar("T")
_PATIENCE = timedelta(minutes=30)  # the longest that a rank waits for another, which may be writing a large file


class RankLostError(TunewiseError):
    """Says that another rank ended, or cannot be reached any more."""

    exit_code = 75  # the launcher knows by it that the fault is another rank's


@contextmanager
def _together() -> Iterator[None]:
    """Turn what torch says of a broken connection into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            f"another device of this run ended or cannot be reached: {' '.join(str(error).split())[:200]}"
        ) from error


@dataclass(frozen=True)
class Ranks:
    """One process of a training and how many there are; alone, every method gives back what it is given.

    Where the weights of the base are `sharded`, all ranks must run equally many forward passes. `context` ranks compute
    each row together; `peers` is their process group.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False
    context: int = 1
    peers: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise RequestError(f"RANK is {self.rank} and WORLD_SIZE {self.size}; ranks are 0 to WORLD_SIZE - 1")
        require_groups(self.size, self.context)

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports: one of the ranks does."""
        return self.rank == 0

    @property
    def divides_rows(self) -> bool:
        """Whether several ranks compute each row together."""
        return self.context > 1

    @property
    def builds_alike(self) -> bool:
        """Whether ranks that compute a row together now build a graph, which must not depend on their tokens.

        In its backward pass they wait for one another in every attention.
        """
        return self.divides_rows and torch.is_grad_enabled()

    @property
    def groups(self) -> int:
        """How many groups of ranks there are, of which each computes rows of its own."""
        return self.size // self.context

    @property
    def group(self) -> int:
        """The number of this rank's group."""
        return self.rank // self.context

    @property
    def place(self) -> int:
        """The place of this rank in its group, and so of its stretch in each row."""
        return self.rank % self.context

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's share of items that all ranks know: every `size`-th."""
        return items[self.rank :: self.size]

    def turns(self, items: Sequence[T], *, divided: bool = False) -> list[tuple[T, bool]]:
        """Return this rank's share of items that it makes a forward pass of, each with True.

        Where weights are sharded, a rank with fewer than others gets an item besides, with False: its result is not
        this rank's to give. Passes over `divided` rows are shared out among the groups.
        """
        number, count = (self.group, self.groups) if divided else (self.rank, self.size)
        own = [(item, True) for item in items[number::count]]
        if self.sharded and items:
            own += [(items[0], False)] * (-(-len(items) // count) - len(own))
        return own

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in place; tensors of one dtype are sent together."""
        if self.size == 1 or not tensors:
            return
        import torch.distributed as dist

        for _, group in groupby(sorted(tensors, key=lambda each: str(each.dtype)), key=lambda each: each.dtype):
            alike = list(group)
            flat = torch.cat([tensor.detach().flatten() for tensor in alike])
            with _together():
                dist.all_reduce(flat)
            for tensor, total in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.detach().copy_(total.view_as(tensor))

    def total(self, *values: float) -> list[float]:
        """Return the sum of each number over all ranks."""
        numbers = torch.tensor(values, dtype=torch.float64, device=self._device())
        self.sum([numbers])
        return list(numbers.tolist())

    def swapped(self, parts: Tensor) -> Tensor:
        """Give part i of parts (N, n) to the i-th of this group's N ranks, and return what these give to this one."""
        import torch.distributed as dist

        received = torch.empty_like(parts)
        with _together():
            dist.all_to_all_single(received, parts, group=self.peers)
        return received

    def first(self, value: T) -> T:
        """Return what rank 0 gives, on all ranks."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _together():
            dist.broadcast_object_list(box, src=0, device=self._device())
        return box[0]

    def gathered(self, values: Sequence[T]) -> list[T]:
        """Return the values of all ranks, of which each has every `size`-th (`mine`), in their common order."""
        if self.size == 1:
            return list(values)
        import torch.distributed as dist

        parts: list[list[T]] = [[] for _ in range(self.size)]
        with _together():
            dist.all_gather_object(parts, list(values))
        count = sum(map(len, parts))
        return [parts[place % self.size][place // self.size] for place in range(count)]

    def agree(self, tensors: Sequence[Tensor]) -> bool:
        """Say whether all ranks hold the same bits in these tensors, by a sum of the bits."""
        if self.size == 1:
            return True
        import torch.distributed as dist

        bits = [tensor.detach().contiguous().flatten().view(torch.uint8).long().sum() for tensor in tensors]
        low = torch.stack(bits) if bits else torch.zeros(1, dtype=torch.long, device=self._device())
        high = low.clone()
        with _together():
            dist.all_reduce(low, op=dist.ReduceOp.MIN)
            dist.all_reduce(high, op=dist.ReduceOp.MAX)
        return bool(torch.equal(low, high))

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            import torch.distributed as dist

            with _together():
                dist.barrier()

    def _device(self) -> torch.device:
        """Return the device that collectives of this process group take tensors on."""
        if self.size == 1 or not torch.cuda.is_available():
            return torch.device("cpu")
        import torch.distributed as dist

        return (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )


def require_groups(size: int, context: int) -> None:
    """Refuse a number of ranks that cannot be divided into groups, of which each computes rows together.

    Raises:
        RequestError: says what can be given.
    """
    if context < 1:
        raise RequestError(f"--context is {context} but must be at least 1")
    if size == 1 < context:
        raise RequestError("--context shares rows out over several devices; give their number with --devices")
    if size % context:
        raise RequestError(
            f"--context is {context}, and {size} devices cannot be divided into groups of so many; give a number that "
            "divides that of the devices"
        )


@contextmanager
def joined_ranks(shard: bool = False, context: int = 1) -> Iterator[Ranks]:
    """Join the process group that the environment names, for as long as the block runs; alone where it names none.

    With `shard`, the ranks share out the weights of the base that they load; `context` of them compute a row together.
    One process alone shards as several do and holds every part, so that one can see there what sharding costs.

    Raises:
        RequestError: rows cannot be shared out, as there is one process only, or `context` does not divide their
            number.
        TunewiseError: the group cannot be joined; the message says what the environment names.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1 and not shard:
        yield Ranks(context=context)
        return
    import torch.distributed as dist

    ranks = Ranks(int(os.environ["RANK"]) if size > 1 else 0, size, shard, context)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local % torch.cuda.device_count())
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=_PATIENCE,
            device_id=torch.device("cuda", torch.cuda.current_device()) if on_gpu else None,
            store=dist.HashStore() if size == 1 else None,  # type: ignore[attr-defined]
            rank=0 if size == 1 else -1,
            world_size=1 if size == 1 else -1,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if size == 1:
            raise TunewiseError(f"the model cannot be sharded on one device here: {reason}") from error
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise TunewiseError(f"rank {ranks.rank} of {size} could not join the others at {address}: {reason}") from error
    try:
        if ranks.divides_rows:
            ranks = replace(ranks, peers=dist.new_subgroups(context, timeout=_PATIENCE)[0])
        yield ranks
    finally:
        dist.destroy_process_group()
