"""Starts the workers of a comparison: processes on this machine, or actors on a Ray cluster."""

from __future__ import annotations

from typing import Protocol

from tunewise.comparison.bench import BenchPlan
from tunewise.comparison.local_seat import LocalSeat
from tunewise.comparison.pool import Pool
from tunewise.comparison.request import Request
from tunewise.comparison.slots import local_slots, require_one_kind
from tunewise.comparison.worker_process import KernelKills
from tunewise.comparison.workers import Workers


class Opening(Protocol):
    """Workers that can be had."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def prepare(self) -> None:
        """Let the workers load the base already, while it is measured."""
        ...

    def open(self) -> Pool:
        """Return the pool of the workers."""
        ...


def opening_of(workers: Workers, request: Request, *, attempt_id: str, patience: float, mixed: bool) -> Opening:
    """Return the workers that a user asks for; the arguments are those of `LocalOpening`.

    Raises:
        SettingError: there are not so many devices or cores, they are of several kinds, or there is no such cluster.
    """
    if workers.address is None:
        return LocalOpening(workers.count, request, attempt_id=attempt_id, patience=patience, mixed=mixed)
    from tunewise.comparison.ray_pool import RayOpening

    return RayOpening(workers.address, request, attempt_id=attempt_id, patience=patience, mixed=mixed)


class LocalOpening:
    """Checks that there is room for processes on this machine, and starts them.

    Args:
        workers: how many.
        request: the comparison, which each worker reads for itself.
        attempt_id: identifies this attempt at it.
        patience: seconds without a sign of life after which a trial is given up.
        mixed: whether GPUs may be of several kinds.

    Raises:
        SettingError: there are not so many devices or cores, or they are of several kinds.
    """

    def __init__(self, workers: int, request: Request, *, attempt_id: str, patience: float, mixed: bool) -> None:
        slots = local_slots(workers, request.options.loading.device)
        self._mixed = require_one_kind([slot.kind for slot in slots], mixed, "choose one kind by CUDA_VISIBLE_DEVICES")
        self.size, self._attempt_id, self._shares = len(slots), attempt_id, any(slot.shares for slot in slots)
        self._seats: list[LocalSeat] = []
        kernel = KernelKills()
        for slot in slots:
            plan = BenchPlan(request=request.to_json(), attempt_id=attempt_id, seat=slot.number, cores=slot.cores)
            self._seats.append(LocalSeat(slot, plan.to_json(), patience, kernel))

    def prepare(self) -> None:
        """Let the workers load the base already, while it is measured."""
        for seat in self._seats:
            seat.start()

    def open(self) -> Pool:
        """Return the pool of the workers, each of which starts with its first trial if it has not."""
        return Pool(self._seats, self._attempt_id, shares=self._shares, mixed=self._mixed)
