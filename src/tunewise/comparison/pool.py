"""Runs trials at once in several workers, and survives them: a crash, a hang or a lack of memory costs one trial.

What is asked for first is run first, by the row's place in the request; what a trial gives does not depend on it. The
results are on disk, as those of a comparison with one worker are.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tunewise.comparison.trial_records import (
    remove_leftovers_of,
    restart_with_less_memory,
    write_record,
)
from tunewise.comparison.worker_process import MAX_KILLS, WorkerEnd
from tunewise.core.errors import TunewiseError
from tunewise.core.json_record import JsonObject
from tunewise.core.progress import RowProgress
from tunewise.results.schema import TrialIdentity, TrialRecord


class DroppedError(TunewiseError):
    """Says that a trial is not wanted any more."""


@dataclass(frozen=True)
class Job:
    """One trial for a worker.

    Attributes:
        row: the name of its row.
        place: the row's place among those that are asked for; the lowest is run first.
        folder: the trial's folder.
        identity: what its record says where the worker is lost; `trains` tells whether smaller batches may help.
        work: what the worker is told.
        progress: is called with what the worker reports.
    """

    row: str
    place: int
    folder: Path
    identity: TrialIdentity
    work: JsonObject
    progress: RowProgress


class Seat(Protocol):
    """A place where one worker runs one trial after the other."""

    @property
    def alive(self) -> bool:
        """Whether a worker is there that has its base loaded, or is loading it."""
        ...

    def carry_out(self, job: Job) -> WorkerEnd | None:
        """Have the worker do a job, and start the worker if there is none; None is a job that is done.

        Raises:
            TunewiseError: the worker cannot work at all, and says why.
        """
        ...

    def stop(self) -> None:
        """End the worker, from whatever thread."""
        ...


@dataclass(order=True)
class _Queued:
    place: int
    number: int
    job: Job = field(compare=False)
    seat: int | None = field(compare=False, default=None)
    done: Future[None] = field(compare=False, default_factory=Future)
    dropped: bool = field(compare=False, default=False)


class Pool:
    """Deals jobs to seats; each seat is looked after by a thread of its own.

    Args:
        seats: where the workers run.
        attempt_id: identifies this attempt at the comparison, for the records of trials that are given up.
        shares: whether neighbours slow one another, so that seconds are to be taken alone once the trials are over.
        mixed: whether the seats' devices are of several kinds, so that seconds are to be taken on one of them.
    """

    def __init__(self, seats: Sequence[Seat], attempt_id: str, *, shares: bool = False, mixed: bool = False) -> None:
        self.size, self.shares, self.mixed = len(seats), shares, mixed
        self._seats, self._attempt_id = seats, attempt_id
        self._changed = threading.Condition()
        self._queue: list[_Queued] = []
        self._running: dict[int, _Queued] = {}  # by the number of the seat
        self._idle: set[int] = set()
        self._count = self._losses = 0
        self.closed = threading.Event()
        self._failure: BaseException | None = None
        for place in range(len(seats)):
            threading.Thread(target=self._serve, args=(place,), daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether a worker is at work."""
        return bool(self._running)

    def run(self, jobs: Sequence[Job], seat: int | None = None) -> None:
        """Have jobs done, by any seat or by the one with this number, and return when all results are on disk.

        Raises:
            DroppedError: they are not wanted any more.
            TunewiseError: no worker can work, or the disk is full; then nothing further is run.
        """
        queued = []
        with self._changed:
            if self._failure is not None:
                raise self._failure
            for job in jobs:
                self._count += 1
                queued.append(_Queued(job.place, self._count, job, seat))
                heapq.heappush(self._queue, queued[-1])
            self._changed.notify_all()
        for each in queued:
            each.done.result()

    def drop(self) -> None:
        """Give up every job that is not done, and end the workers that are at one."""
        with self._changed:
            given_up = [*self._queue, *self._running.values()]
            places = list(self._running)
            self._queue.clear()
        for queued in given_up:
            queued.dropped = True
            _settle(queued, DroppedError(f"{queued.job.row} is not wanted any more"))
        for place in places:
            self._seats[place].stop()

    def close(self) -> None:
        """End all workers."""
        with self._changed:
            self.closed.set()
            self._changed.notify_all()
        self.drop()
        for seat in self._seats:
            seat.stop()

    def _take(self, place: int) -> _Queued | None:
        """Wait for the next job that a seat may take.

        One without a worker leaves jobs that any may take to one that has a worker and is idle.
        """
        with self._changed:
            self._idle.add(place)
            while not self.closed.is_set():
                if (queued := self._next(place)) is not None:
                    self._idle.discard(place)
                    self._queue.remove(queued)
                    heapq.heapify(self._queue)
                    self._running[place] = queued
                    return queued
                self._changed.wait()
        return None

    def _next(self, place: int) -> _Queued | None:
        ready = sum(self._seats[other].alive for other in self._idle if other != place)
        waits = not self._seats[place].alive and sum(queued.seat is None for queued in self._queue) <= ready
        for queued in sorted(self._queue):
            if queued.seat == place or (queued.seat is None and not waits):
                return queued
        return None

    def _serve(self, place: int) -> None:
        while (queued := self._take(place)) is not None:
            try:
                self._carry_out(self._seats[place], queued)
            except BaseException as error:  # of the whole comparison
                if not queued.dropped:
                    self._fail(error)
            finally:
                with self._changed:
                    self._running.pop(place, None)
                    self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            waiting = [*self._queue, *self._running.values()]
            self._queue.clear()
        for queued in waiting:
            _settle(queued, error)

    def _carry_out(self, seat: Seat, queued: _Queued) -> None:
        """Do a job, with further workers where one is lost."""
        job, deaths = queued.job, 0
        while not queued.dropped:
            end = seat.carry_out(job)
            if end is None:
                self._losses = 0
                break
            seat.stop()
            if queued.dropped or self.closed.is_set():
                break
            if not end.in_trial:
                self._losses += 1
                if self._losses >= MAX_KILLS or not end.again:
                    raise TunewiseError(f"a worker process {end.why} outside of any trial")
                continue
            deaths += 1
            remove_leftovers_of(job.folder)
            if end.memory and job.identity.trains:
                restart_with_less_memory(job.folder)
                job.progress(job.row, "out of memory: retrying with smaller batches", 0, 0)
            elif not end.again or deaths >= MAX_KILLS:
                write_record(job.folder, TrialRecord.failure(job.identity, f"its process {end.why}", self._attempt_id))
                break
            else:
                job.progress(job.row, "its worker was killed: going on from the checkpoint", 0, 0)
        _settle(queued, None)


def _settle(queued: _Queued, error: BaseException | None) -> None:
    with suppress(Exception):  # it is settled already
        if error is None:
            queued.done.set_result(None)
        else:
            queued.done.set_exception(error)
