"""Runs a comparison in a worker process and survives it: a crash, a hang or running out of memory costs one trial.

Trials can be resumed at any moment. When a worker dies, the supervisor therefore only records why and starts another
one: finished trials are read from disk, and the trial that was running resumes from its checkpoint or is given up.
"""

from __future__ import annotations

import json
import queue
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
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
from tunewise.comparison.trial_records import restart_with_less_memory, write_record
from tunewise.comparison.worker_plan import WorkerPlan
from tunewise.comparison.worker_process import (
    MAX_KILLS,
    PATIENCE,
    STARTUP_SECONDS,
    KernelKills,
    WorkerEnd,
    WorkerProcess,
)
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError, TunewiseError
from tunewise.core.lock import lock, remove_unused_folders
from tunewise.core.progress import RowProgress, RowStart, silent_row
from tunewise.results.estimate import Estimate
from tunewise.results.schema import Comparison, TrialIdentity, TrialRecord

_GRACE = 5.0  # seconds in which a worker ends what it started on other machines


def supervise(
    request: Request,
    *,
    patience: float = PATIENCE,
    workers: str | None = None,
    mixed: bool = False,
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
        workers: run trials in several processes or on a Ray cluster, as `--workers` says; None: one after the other.
        mixed: let workers have devices of several kinds; all rows are then timed on one of them.
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
            return _run_workers(request, folder, workers, patience, mixed, callbacks)
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


def _run_workers(
    request: Request, folder: Path, workers: str | None, patience: float, mixed: bool, callbacks: _Callbacks
) -> Comparison:
    attempt_id, kills = uuid4().hex, Counter[str]()
    while True:
        callbacks.progress(request.options.model, "starting", 0, 0)
        known = callbacks.estimate
        plan = WorkerPlan(
            request=request.to_json(),
            attempt_id=attempt_id,
            estimating=callbacks.estimating,
            estimate=known.to_json() if known is not None else None,
            workers=workers,
            patience=float(patience),
            mixed=mixed,
        )
        worker = _Worker(plan, callbacks)
        try:
            end = worker.watch(folder)
        finally:
            worker.kill()
        if end is None:
            return Comparison.read(folder / "compare.json")
        if worker.trial is None or worker.identity is None:
            kills["none"] += 1
            if kills["none"] >= MAX_KILLS or not end.again:
                raise TunewiseError(f"the worker process {end.why} outside of any trial")
            continue
        folder_of_trial = Path(worker.trial)
        kills[worker.trial] += 1
        if end.memory and worker.identity.trains:
            restart_with_less_memory(folder_of_trial)
            callbacks.progress(worker.identity.technique, "out of memory: retrying with smaller batches", 0, 0)
        elif not end.again or kills[worker.trial] >= MAX_KILLS:
            record = TrialRecord.failure(worker.identity, f"its process {end.why}", attempt_id)
            write_record(folder_of_trial, record)


class _Worker:
    """Starts a worker process and follows its events; `trial` is the folder of the trial that runs in it."""

    def __init__(self, plan: WorkerPlan, callbacks: _Callbacks) -> None:
        self._callbacks, self._plan = callbacks, plan
        self.trial: str | None = None
        self.identity: TrialIdentity | None = None
        self._kernel = KernelKills()
        environment = plan.led.environment() if plan.led is not None else None
        self._process = WorkerProcess("tunewise.comparison.worker", plan.to_json(), environment)

    def watch(self, folder: Path) -> WorkerEnd | None:
        """Follow the worker to its end; None means that it finished the comparison."""
        patience = self._plan.patience
        while True:
            try:
                allowed = patience if self.trial else max(patience, STARTUP_SECONDS)
                line = self._process.events.get(timeout=allowed)
            except queue.Empty:
                return WorkerEnd.silent(allowed)
            if line is None:
                return self._process.end(self._kernel)
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
                self._process.send({"go": True})
            elif "error" in event:
                raise (RequestError if event["code"] == 2 else TunewiseError)(event["error"])
            elif "crash" in event:
                return WorkerEnd(f"failed: {event['crash']}")
            elif "done" in event:
                return None

    def kill(self) -> None:
        """Kill the worker, if it is alive, and everything that it started."""
        self._process.kill(_GRACE if self._plan.elsewhere else 0.0)
