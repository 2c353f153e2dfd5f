"""Says who takes part in one training: a single process, or several that each compute their share of a step.

Every rank holds the whole base, or where it is sharded a part of each weight (`tunewise.engine.sharding`), and computes
the loss of its own rows of a step. Gradients are then summed over the ranks, so that all of them take the same step.
The loss is a sum over labelled tokens divided by their number on all ranks, and so the sum over ranks is the gradient
that one process would have computed, however the rows are shared out; a mean over ranks would not be.

A process is a rank where the environment says so, as torchrun, Slurm's launchers and `--devices` do: RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import TypeVar

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

    Where the weights of the base are `sharded`, all ranks must run equally many forward passes.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise RequestError(f"RANK is {self.rank} and WORLD_SIZE {self.size}; ranks are 0 to WORLD_SIZE - 1")

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports: one of the ranks does."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's share of items that all ranks know: every `size`-th."""
        return items[self.rank :: self.size]

    def turns(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """Return this rank's share of items that it makes a forward pass of, each with True.

        Where weights are sharded, a rank with fewer than others gets an item besides, with False: its result is not
        this rank's to give.
        """
        own = [(item, True) for item in self.mine(items)]
        if self.sharded and items:
            own += [(items[0], False)] * (-(-len(items) // self.size) - len(own))
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


@contextmanager
def joined_ranks(shard: bool = False) -> Iterator[Ranks]:
    """Join the process group that the environment names, for as long as the block runs; alone where it names none.

    With `shard`, the ranks share out the weights of the base that they load.

    Raises:
        RequestError: weights cannot be shared out, as there is one process only.
        TunewiseError: the group cannot be joined; the message says what the environment names.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        if shard:
            raise RequestError("--shard shares a model out over several devices; give their number with --devices")
        yield Ranks()
        return
    import torch.distributed as dist

    ranks, local = Ranks(int(os.environ["RANK"]), size, shard), int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local % torch.cuda.device_count())
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=_PATIENCE,
            device_id=torch.device("cuda", torch.cuda.current_device()) if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = " ".join(str(error).split())[:200]
        raise TunewiseError(f"rank {ranks.rank} of {size} could not join the others at {address}: {reason}") from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
