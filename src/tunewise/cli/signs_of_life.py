"""Lets the processes of one training tell that they are alive, and that something goes on in them.

A process that hangs would let all others wait for it for half an hour. Each touches two files that the launcher of
`--devices` looks at, one as long as the process lives, and one when it has done something. Under torchrun, which looks
at neither, the processes write the same to the store by which they found one another, and watch each other: the first
one all others, and the last one the first. The process that holds the store must live for that; under torchrun it is
torchrun's own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunewise.cli.console import echo, how_to_continue

if TYPE_CHECKING:
    from tunewise.engine.ranks import Ranks

HEARTBEAT = "TUNEWISE_HEARTBEAT"  # the file that a process touches, in its environment
PULSE, SILENCE, STALLED = 2.0, 40.0, 50.0  # seconds
K = TypeVar("K", bound=Hashable)
_LEFT = "left"  # instead of a sign of life, from a process that has finished


def progress_beside(pulse: Path) -> Path:
    """Return the file that is touched when something was done, for the one that is touched in any case."""
    return pulse.with_suffix(".progress")


def silent(rank: int, devices: int) -> str:
    """Say that a process gives no sign of life."""
    return (
        f"failed: device {rank} gave no sign of life for {SILENCE:.0f} seconds, and all {devices} are stopped; to "
        f"continue: {how_to_continue()}"
    )


def stalled(devices: int) -> str:
    """Say that nothing goes on in any process."""
    return (
        f"failed: nothing went on in any of the {devices} devices for {STALLED:.0f} seconds, and all are stopped; one "
        f"of them hangs while the others wait for it; to continue: {how_to_continue()}"
    )


class Unchanged:
    """Tells for how long values have not changed, without times in which this process stood still and nobody looked."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[object, float]] = {}
        self._looked = time.monotonic()

    def seconds(self, values: Mapping[K, object]) -> dict[K, float]:
        """Return the seconds of each value, by its name."""
        now = time.monotonic()
        stood_still, self._looked = now - self._looked > 3 * PULSE, now
        for name, value in values.items():
            if stood_still or name not in self._known or self._known[name][0] != value:
                self._known[name] = value, now
        return {name: now - self._known[name][1] for name in values}


@contextlib.contextmanager
def signs_of_life() -> Iterator[None]:
    """Touch the files that the launcher looks at, every few seconds, for as long as the block runs."""
    path = os.environ.get(HEARTBEAT)
    if path is None:
        yield
        return
    done, progress = Doings(), progress_beside(Path(path))

    def beat() -> None:
        os.utime(path)
        if done.anything():
            os.utime(progress)

    with _every(PULSE, beat):
        yield


@contextlib.contextmanager
def watching_one_another(ranks: Ranks) -> Iterator[None]:
    """Let ranks that torchrun or another launcher has started watch one another, for as long as the block runs.

    One that sees another hang says so and ends itself, upon which the launcher ends the rest.
    """
    if ranks.size == 1 or HEARTBEAT in os.environ:
        yield
        return
    import torch.distributed as dist

    store: Any = dist.distributed_c10d._get_default_store()
    if not hasattr(store, "clone"):  # before torch 2.8
        yield
        return
    watch = Watch(store.clone, ranks.rank, ranks.size)
    with _every(PULSE, watch.beat):
        yield
    watch.leave()  # after a normal end alone: a rank that fails and then hangs is to be missed


@contextlib.contextmanager
def _every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """Do something at once and every few seconds, in a thread, for as long as the block runs."""
    over = threading.Event()

    def repeat() -> None:
        while True:
            with contextlib.suppress(Exception):  # without this one sign, it is tried again with the next one
                do()
            if over.wait(seconds):
                return

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PULSE)  # it may wait for an answer that does not come


class Watch:
    """What one rank writes to the store, and what it sees of those that it watches.

    Args:
        connect: makes a connection to the store, as others may wait for an answer. The store holds a line for each
            rank: how often it has written it, and how often it had done something.
        rank: this one's number.
        size: how many there are.
    """

    def __init__(self, connect: Callable[[], Any], rank: int, size: int) -> None:
        self._connect, self._rank, self._size = connect, rank, size
        self._store: Any = None
        self._done, self._beats, self._steps = Doings(), 0, 0
        self._watched = range(1, size) if rank == 0 else range(1 if rank == size - 1 else 0)
        self._signs, self._doings = Unchanged(), Unchanged()

    def beat(self) -> None:
        """Write this rank's line, and end the process if one that it watches is silent or nothing goes on in any."""
        self._beats += 1
        self._steps += self._done.anything()
        try:
            self._store = self._store or self._connect()
            self._store.set(_key(self._rank), f"{self._beats} {self._steps}")
            lines = {rank: self._line(rank) for rank in self._watched}
        except RuntimeError:  # of the connection; with the next sign there is another one
            self._store = None
            raise
        if _LEFT not in lines.values():  # else the run is over
            self._look(lines)

    def leave(self) -> None:
        """Tell the others that this rank has finished."""
        with contextlib.suppress(RuntimeError):
            self._connect().set(_key(self._rank), _LEFT)

    def _line(self, rank: int) -> str:
        return self._store.get(_key(rank)).decode() if self._store.check([_key(rank)]) else ""

    def _look(self, lines: Mapping[int, str]) -> None:
        for rank, seconds in self._signs.seconds(lines).items():
            if seconds > SILENCE:
                _end(silent(rank, self._size))
        if self._rank == 0:
            doings = {rank: line.partition(" ")[2] for rank, line in lines.items()}
            idle = self._doings.seconds({**doings, 0: str(self._steps)})
            if min(idle.values()) > STALLED:
                _end(stalled(self._size))


def _key(rank: int) -> str:
    return f"tunewise/alive/{rank}"


def _end(sentence: str) -> None:
    """Say why, and end the process at once: its main thread waits for a device that does not answer."""
    try:
        echo(sentence, err=True)
        sys.stderr.flush()
    finally:
        os._exit(1)


class Doings:
    """Tells whether this process or one that it started has done anything since this was last asked.

    That is to compute, to read or write, or to get to another place of the program.
    """

    def __init__(self) -> None:
        import psutil

        self._process, self._main = psutil.Process(), threading.main_thread().ident
        self._seconds, self._bytes, self._place = 0.0, 0, (0, 0, 0)

    def anything(self) -> bool:
        """Compare with the last time; True where the system does not tell."""
        before = self._seconds, self._bytes, self._place
        try:
            self._seconds, self._bytes = self._used()
        except Exception:  # the system's own, such as of a process that has just ended, or that it hides
            return True
        self._place = self._where()
        # Looking takes a little time itself, and a line of a log some bytes.
        computes, moves = self._seconds - before[0] > 0.05 * PULSE, self._bytes - before[1] > 100_000
        return computes or moves or self._place != before[2]

    def _used(self) -> tuple[float, int]:
        """Return the seconds of all processors, and the bytes that were read and written."""
        seconds, moved = 0.0, 0
        for process in (self._process, *self._process.children(recursive=True)):
            times = process.cpu_times()
            seconds += times.user + times.system
            if hasattr(process, "io_counters"):
                counters = process.io_counters()
                moved += counters.read_bytes + counters.write_bytes
        return seconds, moved

    def _where(self) -> tuple[int, int, int]:
        """Return the place of the main thread in the program: function, instruction, and depth of calls."""
        frame, depth = sys._current_frames().get(self._main or 0), 0
        place = (id(frame.f_code), frame.f_lasti) if frame is not None else (0, 0)
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        return *place, depth
