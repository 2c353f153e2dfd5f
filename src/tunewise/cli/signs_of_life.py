"""Lets the processes of one training tell that they are alive, and that something goes on in them.

A process that hangs would let all others wait for it for half an hour. Each touches two files that the launcher of
`--devices` looks at, one as long as the process lives, and one when it has done something. Under torchrun, which looks
at neither, the processes write the same to the store by which they found one another, and watch each other: the first
one all others, and the second one the first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewise.cli.console import echo, how_to_continue

if TYPE_CHECKING:
    from tunewise.engine.ranks import Ranks

HEARTBEAT = "TUNEWISE_HEARTBEAT"  # the file that a process touches, in its environment
PULSE, SILENCE, STALLED = 2.0, 40.0, 50.0  # seconds
_LEFT = "left"  # instead of a sign of life, from a process that has finished


def progress_beside(pulse: Path) -> Path:
    """Return the file that is touched when something was done, for the one that is touched in any case."""
    return pulse.with_suffix(".progress")


def silent(rank: int, devices: int) -> str:
    """Say that a process gives no sign of life."""
    return (
        f"failed: device {rank} gave no sign of life for {SILENCE:.0f} seconds, and all {devices} were stopped; to "
        f"continue: {how_to_continue()}"
    )


def stalled(devices: int) -> str:
    """Say that nothing goes on in any process."""
    return (
        f"failed: nothing went on in any of the {devices} devices for {STALLED:.0f} seconds, and all were stopped; one "
        f"of them hangs while the others wait for it; to continue: {how_to_continue()}"
    )


@contextlib.contextmanager
def signs_of_life() -> Iterator[None]:
    """Touch the files that the launcher looks at, every few seconds, for as long as the block runs."""
    path = os.environ.get(HEARTBEAT)
    if path is None:
        yield
        return
    done, progress = Doings(), progress_beside(Path(path))

    def beat() -> None:
        with contextlib.suppress(OSError):  # the launcher and its folder are gone; the run ends by itself
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
    watch = _Watch(store.clone(), ranks.rank, ranks.size)
    try:
        with _every(PULSE, watch.beat):
            yield
    finally:
        watch.leave()


@contextlib.contextmanager
def _every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """Do something at once and every few seconds, in a thread, for as long as the block runs."""
    over = threading.Event()

    def repeat() -> None:
        do()
        while not over.wait(seconds):
            do()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Watch:
    """What one rank writes to the store, and what it sees of those that it watches.

    Args:
        store: a connection of its own, as the other one may wait for an answer. It holds a line for each rank: how
            often it has written it, and how often it had done something.
        rank: this one's number.
        size: how many there are.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size, self._done = store, rank, size, Doings()
        self._beats = self._steps = 0
        others = [other for other in range(size) if other != rank]
        self._watched: Sequence[int] = others if rank == 0 else [0] if rank == 1 else []
        now = time.monotonic()
        self._lines = dict.fromkeys(self._watched, ("", now))  # the newest one, and when it was first seen
        self._doings = dict.fromkeys(range(size), ("", now))  # of the same lines, the second number

    def beat(self) -> None:
        """Write this rank's line, and end the process if one that it watches is silent or nothing goes on in any."""
        self._beats += 1
        self._steps += self._done.anything()
        with contextlib.suppress(RuntimeError):  # the store's process is gone, and the launcher ends the others
            self._store.set(_key(self._rank), f"{self._beats} {self._steps}")
            self._look({other: self._line(other) for other in self._watched})

    def leave(self) -> None:
        """Tell the others that this rank has finished, or was ended for a reason of which it speaks itself."""
        with contextlib.suppress(RuntimeError):
            self._store.set(_key(self._rank), _LEFT)

    def _line(self, rank: int) -> str:
        return self._store.get(_key(rank)).decode() if self._store.check([_key(rank)]) else ""

    def _look(self, lines: dict[int, str]) -> None:
        now = time.monotonic()
        for other, line in lines.items():
            if line == _LEFT:
                return  # the run is over, or ends
            if line != self._lines[other][0]:
                self._lines[other] = line, now
            elif now - self._lines[other][1] > SILENCE:
                _end(silent(other, self._size))
        if self._rank:
            return
        for other, line in {**lines, 0: f"{self._beats} {self._steps}"}.items():
            doings = line.partition(" ")[2]
            if doings != self._doings[other][0]:
                self._doings[other] = doings, now
        if now - max(when for _, when in self._doings.values()) > STALLED:
            _end(stalled(self._size))


def _key(rank: int) -> str:
    return f"tunewise/alive/{rank}"


def _end(sentence: str) -> None:
    """Say why, and end the process at once: its main thread waits for a device that does not answer."""
    echo(sentence, err=True)
    sys.stderr.flush()
    os._exit(1)


class Doings:
    """Tells whether this process or one that it started has done anything since this was last asked.

    That is to compute, to read or write, or to get to another place of the program.
    """

    def __init__(self) -> None:
        import psutil

        self._process, self._main = psutil.Process(), threading.main_thread().ident
        self._gone = psutil.Error
        self._seconds, self._bytes, self._place = 0.0, 0, (0, 0, 0)

    def anything(self) -> bool:
        """Compare with the last time."""
        seconds, moved = 0.0, 0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(self._gone):
                times = process.cpu_times()
                seconds += times.user + times.system
                if hasattr(process, "io_counters"):
                    counters = process.io_counters()
                    moved += counters.read_bytes + counters.write_bytes
        frame, depth = sys._current_frames().get(self._main or 0), 0
        place = (id(frame.f_code), frame.f_lasti) if frame is not None else (0, 0)
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        before = self._seconds, self._bytes, self._place
        self._seconds, self._bytes, self._place = seconds, moved, (*place, depth)
        # Looking takes a little time itself, and a line of a log some bytes.
        computes, moves = seconds - before[0] > 0.05 * PULSE, moved - before[1] > 100_000
        return computes or moves or self._place != before[2]
