"""Starts a worker process, follows its lines of JSON, and says why it ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from tunewise.core.json_record import JsonObject
from tunewise.core.operating_system import kill_tree, kill_with_children, was_killed

PATIENCE = 1800.0  # seconds without a sign of life after which a worker counts as hung
STARTUP_SECONDS = 600  # seconds of silence allowed outside of trials, while libraries and a model are loaded
MAX_KILLS = 3  # times that the worker of a trial may be killed from outside before the trial is given up
_KERNEL_EVENTS = Path("/proc/vmstat")


@dataclass(frozen=True)
class WorkerEnd:
    """Describes how a worker ended: why, whether its trial should be tried again, and whether memory ran out."""

    why: str
    again: bool = False
    memory: bool = False
    in_trial: bool = True

    @classmethod
    def silent(cls, seconds: float, *, in_trial: bool = True) -> WorkerEnd:
        """Return the end of a worker that was stopped because nothing was heard of it for so long."""
        return cls(f"gave no sign of life for {seconds:,.0f} s and was stopped", in_trial=in_trial)

    @classmethod
    def of_memory(cls, *, in_trial: bool = True) -> WorkerEnd:
        """Return the end of a worker that the operating system killed for want of memory."""
        why = "was killed by the operating system because memory ran out"
        return cls(why, again=True, memory=True, in_trial=in_trial)

    @classmethod
    def killed(cls, *, in_trial: bool = True) -> WorkerEnd:
        """Return the end of a worker that was killed from outside."""
        return cls(f"was killed from outside, {MAX_KILLS} times", again=True, in_trial=in_trial)


class KernelKills:
    """Counts the processes that the kernel kills when memory runs out, so that each is laid to one worker's death."""

    def __init__(self) -> None:
        self._seen, self._lock = _kernel_oom_kills(), threading.Lock()

    def claim(self) -> bool:
        """Return whether the kernel has killed a process that no other worker's death accounts for yet."""
        with self._lock:
            if _kernel_oom_kills() > self._seen:
                self._seen += 1
                return True
            return False


class WorkerProcess:
    """A process that reads lines of JSON and writes lines of JSON: `events`, of which None is the end.

    Args:
        module: what it runs.
        first: the first line that it is given.
        environment: variables that it has besides those of this process.
        leads: start a session of its own: Ctrl-C reaches the parent alone, and all that it starts ends with it.
    """

    def __init__(
        self, module: str, first: JsonObject, environment: Mapping[str, str] | None = None, *, leads: bool = True
    ) -> None:
        self._leads = leads
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
            start_new_session=leads,
        )
        self.events: queue.Queue[str | None] = queue.Queue()
        self.send(first)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def send(self, message: JsonObject) -> None:
        """Give it a line."""
        stdin = cast("IO[str]", self._process.stdin)
        with suppress(OSError):  # it died already: its events end
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()

    def _read(self) -> None:
        for line in cast("IO[str]", self._process.stdout):
            self.events.put(line)
        self.events.put(None)

    def end(self, kernel: KernelKills, *, in_trial: bool = True) -> WorkerEnd:
        """Wait for a worker that closed its output, and say why it ended."""
        code = self._process.wait()
        if was_killed(code):
            return (WorkerEnd.of_memory if kernel.claim() else WorkerEnd.killed)(in_trial=in_trial)
        if code < 0:
            return WorkerEnd(f"crashed ({signal.Signals(-code).name})", in_trial=in_trial)
        return WorkerEnd(f"ended with exit code {code}", in_trial=in_trial)

    def kill(self, grace: float = 0.0) -> None:
        """Kill it, if it is alive, and everything that it started; with a grace, it may end by itself first."""
        if grace and self.alive:
            with suppress(OSError):
                cast("IO[str]", self._process.stdin).close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        if self._leads:
            kill_with_children(self._process)
        else:
            kill_tree(self._process.pid)
        self._process.wait()


def _kernel_oom_kills() -> int:
    """Count the processes that the kernel has killed when out of memory, container limits included; 0 if unknown."""
    try:
        counts = dict(line.split() for line in _KERNEL_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
