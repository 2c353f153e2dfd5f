"""Runs a comparison in a worker process and outlives it: a crash, a hang or a lack of memory costs one trial.

The worker's trials are resumable at any moment, so that all there is to do when it dies is to note why, and to start
another: what is finished is read from disk, and what was running goes on from its checkpoint or is given up.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import IO, cast
from uuid import uuid4

from tunewise.comparison.invocation import OnRow, ignore_row
from tunewise.comparison.request import Request
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError, TunewiseError
from tunewise.core.progress import RowProgress, silent_row
from tunewise.results.schema import Comparison, TrialIdentity, TrialRecord

PATIENCE = 1800.0  # seconds without a sign of life after which a worker is said to hang
_STARTING = 600  # seconds of silence that a worker may take outside of trials, to load libraries and a model
_KILLS = 3  # times that a trial's worker may be killed from outside before the trial is given up
_KERNEL_EVENTS = Path("/proc/vmstat")


def supervise(
    request: Request,
    *,
    patience: float = PATIENCE,
    progress: RowProgress = silent_row,
    on_row: OnRow = ignore_row,
) -> Comparison:
    """Carry out a request in worker processes; the content of its `compare.json`.

    Args:
        request: the comparison.
        patience: seconds without a sign of life after which a trial is given up.
        progress: called as progress(row, what, done, total).
        on_row: called with the result so far after each row.

    Raises:
        RequestError: the request is wrong, or another process works in its folder.
        TunewiseError: it failed outside of any trial.
    """
    wanted = request.options.out.absolute()
    missing = [path for path in (wanted, *wanted.parents) if not path.exists()]
    folder = artifact_writer.output_folder(request.options.out)
    try:
        with artifact_writer.lock(folder):
            return _carried_out(request, folder, patience, progress, on_row)
    except RequestError:
        artifact_writer.remove_unused_folders(missing)
        raise


def _carried_out(request: Request, folder: Path, patience: float, progress: RowProgress, on_row: OnRow) -> Comparison:
    life, killed = uuid4().hex, Counter[str]()
    while True:
        progress(request.options.model, "starting", 0, 0)
        worker = _Worker(request, life)
        try:
            ended = worker.watch(folder, patience, progress, on_row)
        finally:
            worker.kill()
        if ended is None:
            return Comparison.read(folder / "compare.json")
        if worker.trial is None or worker.identity is None:
            killed["none"] += 1
            if killed["none"] >= _KILLS or not ended.again:
                raise TunewiseError(f"the worker process {ended.why} outside of any trial")
            continue
        where = Path(worker.trial)
        killed[worker.trial] += 1
        if ended.memory and worker.identity.trains:
            _gentler(where)
            progress(worker.identity.technique, "out of memory: trying with less", 0, 0)
        elif not ended.again or killed[worker.trial] >= _KILLS:
            record = TrialRecord.failure(worker.identity, f"its process {ended.why}", life)
            artifact_writer.write_json(where / "trial.json", record.to_json())


def _gentler(trial: Path) -> None:
    """Have a trial begin anew with what takes less memory; see `tunewise.fitting.settings.ever_lighter`."""
    note = trial / "memory.json"
    rung = artifact_writer.read_json(note)["rung"] if note.is_file() else 0
    artifact_writer.prune(trial, keep=0)
    artifact_writer.write_json(note, {"rung": rung + 1})


class _End:
    """How a worker ended: the words for it, whether its trial is worth another attempt, whether memory ran out."""

    def __init__(self, why: str, *, again: bool = False, memory: bool = False) -> None:
        self.why, self.again, self.memory = why, again, memory


class _Worker:
    def __init__(self, request: Request, life: str) -> None:
        self.trial: str | None = None
        self.identity: TrialIdentity | None = None
        self._kills_before = _kernel_kills()
        # A session of its own: Ctrl-C reaches the parent alone, which then ends the worker.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tunewise.comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        told = cast("IO[str]", self._process.stdin)
        with suppress(BrokenPipeError):  # it died already: its end is read below
            told.write(json.dumps({"request": request.to_json(), "life": life}) + "\n")
            told.flush()
        self._events: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in cast("IO[str]", self._process.stdout):
            self._events.put(line)
        self._events.put(None)

    def watch(self, folder: Path, patience: float, progress: RowProgress, on_row: OnRow) -> _End | None:
        """Follow it to its end; None where all was done."""
        while True:
            try:
                allowed = patience if self.trial else max(patience, _STARTING)
                line = self._events.get(timeout=allowed)
            except queue.Empty:
                return _End(f"gave no sign of life for {allowed:,.0f} s and was stopped")
            if line is None:
                return self._death()
            event = json.loads(line)
            if "progress" in event:
                progress(*event["progress"])
            elif "trial" in event:
                self.trial, told = event["trial"], event["identity"]
                self.identity = TrialIdentity.from_json(told) if told is not None else None
            elif "rows" in event:
                on_row(Comparison.read(folder / "compare.json"))
            elif "error" in event:
                raise (RequestError if event["code"] == 2 else TunewiseError)(event["error"])
            elif "crash" in event:
                return _End(f"failed: {event['crash']}")
            elif "done" in event:
                return None

    def _death(self) -> _End:
        code = self._process.wait()
        if code == -signal.SIGKILL and _kernel_kills() > self._kills_before:
            return _End("was killed by the system for want of memory", again=True, memory=True)
        if code == -signal.SIGKILL:
            return _End(f"was killed from outside, {_KILLS} times", again=True)
        if code < 0:
            return _End(f"crashed ({signal.Signals(-code).name})")
        return _End(f"ended with exit code {code}")

    def kill(self) -> None:
        """End it now, if it lives, and everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory, a container's limit included; 0 where unknown."""
    try:
        counts = dict(line.split() for line in _KERNEL_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
