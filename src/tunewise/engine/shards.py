"""Tensors of which every device holds a part: what is read from them whole, and how whole values are put into them.

A shard is torch's DTensor: it has the shape of the whole tensor, and `to_local()` is this device's part of it. `whole`,
`collected` and `is_finite` wait for the other devices, so all devices must call them for the same tensors in the same
order. Every function here takes ordinary tensors too, and then no other device is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunewise.engine.memory import spill_to_disk


def is_shard(tensor: Tensor) -> bool:
    """Whether this device holds a part of the tensor only."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return this device's part of a tensor, without its history; writing into it changes the tensor."""
    detached: Any = tensor.detach()
    part: Tensor = detached.to_local() if is_shard(tensor) else detached
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, without its history."""
    detached: Any = tensor.detach()
    values: Tensor = detached.full_tensor() if is_shard(tensor) else detached
    return values


def collected(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return whole tensors, of which one at a time is in memory: shards are gathered and put on disk.

    Args:
        tensors: shards, ordinary tensors, or both.
        keep: whether this device needs them; the others only give their parts, and get nothing back.
    """
    result = dict[str, Tensor]()
    for name, tensor in tensors.items():
        values = whole(tensor)
        if keep:
            result[name] = spill_to_disk(values.cpu()) if is_shard(tensor) else tensor
    return result


def scattered(values: Tensor, like: Tensor) -> Tensor:
    """Return whole values that all devices have as a shard like another one; nothing is sent."""
    if not is_shard(like) or is_shard(values):
        return values
    from torch.distributed.tensor import distribute_tensor

    shard: Any = like
    return distribute_tensor(values.to(like.device), shard.device_mesh, shard.placements, src_data_rank=None)


@torch.no_grad()
def put(target: Tensor, values: Tensor) -> None:
    """Write values, whole ones or a shard of the same form, into a tensor."""
    local(target).copy_(local(scattered(values, target)))


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, on all devices."""
    finite = local(tensor).isfinite().all()
    if is_shard(tensor):
        import torch.distributed as dist

        shard: Any = tensor
        flag = finite.to(torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=shard.device_mesh.get_group())
        finite = flag.bool()
    return bool(finite)


class Parked:
    """A copy of a tensor, or of this device's part of it, that is on disk where it is large."""

    def __init__(self, tensor: Tensor) -> None:
        self._like: Any = tensor.detach() if is_shard(tensor) else None
        self._values = spill_to_disk(local(tensor).cpu())

    def tensor(self) -> Tensor:
        """Return the copy: a shard where the tensor was one."""
        if self._like is None:
            return self._values
        from torch.distributed.tensor import DTensor

        like = self._like
        part = self._values.to(like.device)
        return DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
