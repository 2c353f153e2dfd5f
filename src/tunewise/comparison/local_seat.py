"""Runs trials in a worker process on this machine, one after the other."""

from __future__ import annotations

import json
import queue

from tunewise.comparison.pool import Job
from tunewise.comparison.slots import Slot
from tunewise.comparison.worker_process import STARTUP_SECONDS, KernelKills, WorkerEnd, WorkerProcess
from tunewise.core.errors import RequestError, TunewiseError
from tunewise.core.json_record import JsonObject

_MODULE = "tunewise.comparison.trial_worker"


class LocalSeat:
    """Starts a worker when it is first needed, and again when the last one is gone.

    Args:
        slot: the device or the cores that it has.
        plan: what a worker is told first.
        patience: seconds without a sign of life after which a trial is given up.
        kernel: counts the processes that the kernel kills.
    """

    def __init__(self, slot: Slot, plan: JsonObject, patience: float, kernel: KernelKills) -> None:
        self._slot, self._plan, self._patience, self._kernel = slot, plan, patience, kernel
        self._process: WorkerProcess | None = None

    @property
    def alive(self) -> bool:
        """Whether its worker is there."""
        return self._process is not None and self._process.alive

    def start(self) -> WorkerProcess:
        """Start a worker, in the process group of this process: what ends the group ends the worker too."""
        self._process = WorkerProcess(_MODULE, self._plan, self._slot.environment, leads=False)
        return self._process

    def carry_out(self, job: Job) -> WorkerEnd | None:
        """Have the worker run a trial; None when its result is on disk.

        Raises:
            RequestError: the worker cannot use the model or the data as requested.
            TunewiseError: the worker cannot work, such as on a full disk.
        """
        process = self._process
        if process is None or not process.alive:
            process = self.start()
        process.send(job.work)
        in_trial = False
        while True:
            allowed = self._patience if in_trial else max(self._patience, STARTUP_SECONDS)
            try:
                line = process.events.get(timeout=allowed)
            except queue.Empty:
                return WorkerEnd.silent(allowed, in_trial=in_trial)
            if line is None:
                return process.end(self._kernel, in_trial=in_trial)
            event = json.loads(line)
            if "progress" in event:
                job.progress(*event["progress"])
            elif "trial" in event:
                in_trial = event["trial"] is not None
            elif "error" in event:
                raise (RequestError if event["code"] == RequestError.exit_code else TunewiseError)(event["error"])
            elif "crash" in event:
                return WorkerEnd(f"failed: {event['crash']}", in_trial=in_trial)
            elif "done" in event:
                return None

    def stop(self) -> None:
        """End the worker, if there is one."""
        if self._process is not None:
            self._process.kill()
