"""Runs a comparison in a worker process and survives it: a crash, a hang or running out of memory costs one trial.

Trials can be resumed at any moment. When a worker dies, the supervisor therefore only records why and starts another
one: finished trials are read from disk, and the trial that was running resumes from its checkpoint or is given up.
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

PATIENCE = 1800.0  # seconds without a sign of life after which a worker counts as hung
_STARTUP_SECONDS = 600  # seconds of silence allowed outside of trials, while libraries and a model are loaded
_MAX_KILLS = 3  # times that the worker of a trial may be killed from outside before the trial is given up
_KERNEL_EVENTS = Path("/proc/vmstat")


def supervise(
    request: Request,
    *,
    patience: float = PATIENCE,
    progress: RowProgress = silent_row,
    on_row: OnRow = ignore_row,
) -> Comparison:
    """Carry out a request in worker processes and return the content of its `compare.json`.

    Args:
        request: the comparison.
        patience: seconds without a sign of life after which a trial is given up.
        progress: is called as progress(row, what, done, total).
        on_row: is called with the result so far after each row.

    Raises:
        RequestError: the request cannot be carried out, or another process uses its folder.
        TunewiseError: a worker failed outside of any trial.
    """
    out = request.options.out.absolute()
    created = [path for path in (out, *out.parents) if not path.exists()]
    folder = artifact_writer.output_folder(request.options.out)
    try:
        with artifact_writer.lock(folder):
            return _run_workers(request, folder, patience, progress, on_row)
    except RequestError:
        artifact_writer.remove_unused_folders(created)
        raise


def _run_workers(request: Request, folder: Path, patience: float, progress: RowProgress, on_row: OnRow) -> Comparison:
    attempt_id, kills = uuid4().hex, Counter[str]()
    while True:
        progress(request.options.model, "starting", 0, 0)
        worker = _Worker(request, attempt_id)
        try:
            end = worker.watch(folder, patience, progress, on_row)
        finally:
            worker.kill()
        if end is None:
            return Comparison.read(folder / "compare.json")
        if worker.trial is None or worker.identity is None:
            kills["none"] += 1
            if kills["none"] >= _MAX_KILLS or not end.again:
                raise TunewiseError(f"the worker process {end.why} outside of any trial")
            continue
        folder_of_trial = Path(worker.trial)
        kills[worker.trial] += 1
        if end.memory and worker.identity.trains:
            _restart_with_less_memory(folder_of_trial)
            progress(worker.identity.technique, "out of memory: retrying with smaller batches", 0, 0)
        elif not end.again or kills[worker.trial] >= _MAX_KILLS:
            record = TrialRecord.failure(worker.identity, f"its process {end.why}", attempt_id)
            artifact_writer.write_json(folder_of_trial / "trial.json", record.to_json())


def _restart_with_less_memory(trial: Path) -> None:
    """Make a trial start over with settings that take less memory; see `tunewise.fitting.settings.ever_lighter`."""
    note = trial / "memory.json"
    rung = artifact_writer.read_json(note)["rung"] if note.is_file() else 0
    artifact_writer.prune(trial, keep=0)
    artifact_writer.write_json(note, {"rung": rung + 1})


class _WorkerEnd:
    """Describes how a worker ended: why, whether its trial should be tried again, and whether memory ran out."""

    def __init__(self, why: str, *, again: bool = False, memory: bool = False) -> None:
        self.why, self.again, self.memory = why, again, memory


class _Worker:
    """Starts a worker process and follows its events; `trial` is the folder of the trial that runs in it."""

    def __init__(self, request: Request, attempt_id: str) -> None:
        self.trial: str | None = None
        self.identity: TrialIdentity | None = None
        self._kills_before = _kernel_oom_kills()
        # A session of its own: Ctrl-C reaches the parent alone, which then ends the worker.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tunewise.comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        stdin = cast("IO[str]", self._process.stdin)
        with suppress(BrokenPipeError):  # it died already: `watch` finds out
            stdin.write(json.dumps({"request": request.to_json(), "attempt_id": attempt_id}) + "\n")
            stdin.flush()
        self._events: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in cast("IO[str]", self._process.stdout):
            self._events.put(line)
        self._events.put(None)

    def watch(self, folder: Path, patience: float, progress: RowProgress, on_row: OnRow) -> _WorkerEnd | None:
        """Follow the worker to its end; None means that it finished the comparison."""
        while True:
            try:
                allowed = patience if self.trial else max(patience, _STARTUP_SECONDS)
                line = self._events.get(timeout=allowed)
            except queue.Empty:
                return _WorkerEnd(f"gave no sign of life for {allowed:,.0f} s and was stopped")
            if line is None:
                return self._exit_end()
            event = json.loads(line)
            if "progress" in event:
                progress(*event["progress"])
            elif "trial" in event:
                self.trial, identity = event["trial"], event["identity"]
                self.identity = TrialIdentity.from_json(identity) if identity is not None else None
            elif "rows" in event:
                on_row(Comparison.read(folder / "compare.json"))
            elif "error" in event:
                raise (RequestError if event["code"] == 2 else TunewiseError)(event["error"])
            elif "crash" in event:
                return _WorkerEnd(f"failed: {event['crash']}")
            elif "done" in event:
                return None

    def _exit_end(self) -> _WorkerEnd:
        """Say why a worker that closed its output has exited."""
        code = self._process.wait()
        if code == -signal.SIGKILL and _kernel_oom_kills() > self._kills_before:
            return _WorkerEnd("was killed by the operating system because memory ran out", again=True, memory=True)
        if code == -signal.SIGKILL:
            return _WorkerEnd(f"was killed from outside, {_MAX_KILLS} times", again=True)
        if code < 0:
            return _WorkerEnd(f"crashed ({signal.Signals(-code).name})")
        return _WorkerEnd(f"ended with exit code {code}")

    def kill(self) -> None:
        """Kill the worker, if it is alive, and everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _kernel_oom_kills() -> int:
    """Count the processes that the kernel has killed when out of memory, container limits included; 0 if unknown."""
    try:
        counts = dict(line.split() for line in _KERNEL_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
