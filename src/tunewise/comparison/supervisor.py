"""Runs a comparison in a worker process and survives it: a crash, a hang or running out of memory costs one trial.

Trials can be resumed at any moment. When a worker dies, the supervisor therefore only records why and starts another
one: finished trials are read from disk, and the trial that was running resumes from its checkpoint or is given up.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast
from uuid import uuid4

from tunewise.comparison.invocation import (
    OnEstimate,
    OnMessage,
    OnRow,
    OnRowStart,
    ignore_message,
    ignore_row,
    ignore_row_start,
)
from tunewise.comparison.request import Request
from tunewise.comparison.trial_records import read_rung, write_record, write_rung
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError, TunewiseError
from tunewise.core.lock import lock, remove_unused_folders
from tunewise.core.operating_system import kill_with_children, was_killed
from tunewise.core.progress import RowProgress, RowStart, silent_row
from tunewise.results.estimate import Estimate
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
    on_row_start: OnRowStart = ignore_row_start,
    on_row: OnRow = ignore_row,
    on_message: OnMessage = ignore_message,
    on_estimate: OnEstimate | None = None,
) -> Comparison:
    """Carry out a request in worker processes and return the content of its `compare.json`.

    Args:
        request: the comparison.
        patience: seconds without a sign of life after which a trial is given up.
        progress: is called as progress(row, what, done, total).
        on_row_start: is called before each row that is run.
        on_row: is called with the result so far after each row.
        on_message: is called with sentences for the user; each is passed on once, however many workers send it.
        on_estimate: is called with what it is expected to take before it trains, and may raise to refuse it.

    Raises:
        RequestError: the request cannot be carried out, or another process uses its folder.
        TunewiseError: a worker failed outside of any trial.
    """
    out = request.options.out.absolute()
    created = [path for path in (out, *out.parents) if not path.exists()]
    folder = artifact_writer.output_folder(request.options.out)
    try:
        with lock(folder):
            callbacks = _Callbacks(progress, on_row_start, on_row, on_message, on_estimate)
            return _run_workers(request, folder, patience, callbacks)
    except RequestError:
        remove_unused_folders(created)
        raise


@dataclass
class _Callbacks:
    """Holds what is called while workers run, and what the first of them said that is not to be said again."""

    progress: RowProgress
    on_row_start: OnRowStart
    on_row: OnRow
    on_message: OnMessage
    on_estimate: OnEstimate | None
    estimate: Estimate | None = None
    _messages: set[str] = field(default_factory=set)

    @property
    def estimating(self) -> bool:
        """Whether a worker has to make the estimate."""
        return self.on_estimate is not None and self.estimate is None

    def accept(self, estimate: Estimate) -> None:
        """Pass on an estimate and keep it; an error that is raised refuses the comparison."""
        if self.on_estimate is not None:
            self.on_estimate(estimate)
        self.estimate = estimate

    def message(self, text: str) -> None:
        """Pass on a sentence, once."""
        if text not in self._messages:
            self._messages.add(text)
            self.on_message(text)


def _run_workers(request: Request, folder: Path, patience: float, callbacks: _Callbacks) -> Comparison:
    attempt_id, kills = uuid4().hex, Counter[str]()
    while True:
        callbacks.progress(request.options.model, "starting", 0, 0)
        worker = _Worker(request, attempt_id, callbacks)
        try:
            end = worker.watch(folder, patience)
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
            callbacks.progress(worker.identity.technique, "out of memory: retrying with smaller batches", 0, 0)
        elif not end.again or kills[worker.trial] >= _MAX_KILLS:
            record = TrialRecord.failure(worker.identity, f"its process {end.why}", attempt_id)
            write_record(folder_of_trial, record)


def _restart_with_less_memory(trial: Path) -> None:
    """Make a trial start over with settings that take less memory; see `tunewise.fitting.settings.ever_lighter`."""
    rung = read_rung(trial)
    artifact_writer.prune(trial, keep=0)
    write_rung(trial, rung + 1)


class _WorkerEnd:
    """Describes how a worker ended: why, whether its trial should be tried again, and whether memory ran out."""

    def __init__(self, why: str, *, again: bool = False, memory: bool = False) -> None:
        self.why, self.again, self.memory = why, again, memory


class _Worker:
    """Starts a worker process and follows its events; `trial` is the folder of the trial that runs in it."""

    def __init__(self, request: Request, attempt_id: str, callbacks: _Callbacks) -> None:
        self._callbacks = callbacks
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
        known = callbacks.estimate
        self._send(
            {
                "request": request.to_json(),
                "attempt_id": attempt_id,
                "estimating": callbacks.estimating,
                "estimate": known.to_json() if known is not None else None,
            }
        )
        self._events: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _send(self, message: dict[str, object]) -> None:
        stdin = cast("IO[str]", self._process.stdin)
        with suppress(BrokenPipeError):  # it died already: `watch` finds out
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()

    def _read(self) -> None:
        for line in cast("IO[str]", self._process.stdout):
            self._events.put(line)
        self._events.put(None)

    def watch(self, folder: Path, patience: float) -> _WorkerEnd | None:
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
                self._callbacks.progress(*event["progress"])
            elif "row_start" in event:
                self._callbacks.on_row_start(RowStart(**event["row_start"]))
            elif "trial" in event:
                self.trial, identity = event["trial"], event["identity"]
                self.identity = TrialIdentity.from_json(identity) if identity is not None else None
            elif "message" in event:
                self._callbacks.message(event["message"])
            elif "rows" in event:
                self._callbacks.on_row(Comparison.read(folder / "compare.json"))
            elif "estimate" in event:
                self._callbacks.accept(Estimate.from_json(event["estimate"]))
                self._send({"go": True})
            elif "error" in event:
                raise (RequestError if event["code"] == 2 else TunewiseError)(event["error"])
            elif "crash" in event:
                return _WorkerEnd(f"failed: {event['crash']}")
            elif "done" in event:
                return None

    def _exit_end(self) -> _WorkerEnd:
        """Say why a worker that closed its output has exited."""
        code = self._process.wait()
        if was_killed(code) and _kernel_oom_kills() > self._kills_before:
            return _WorkerEnd("was killed by the operating system because memory ran out", again=True, memory=True)
        if was_killed(code):
            return _WorkerEnd(f"was killed from outside, {_MAX_KILLS} times", again=True)
        if code < 0:
            return _WorkerEnd(f"crashed ({signal.Signals(-code).name})")
        return _WorkerEnd(f"ended with exit code {code}")

    def kill(self) -> None:
        """Kill the worker, if it is alive, and everything that it started."""
        kill_with_children(self._process)
        self._process.wait()


def _kernel_oom_kills() -> int:
    """Count the processes that the kernel has killed when out of memory, container limits included; 0 if unknown."""
    try:
        counts = dict(line.split() for line in _KERNEL_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
