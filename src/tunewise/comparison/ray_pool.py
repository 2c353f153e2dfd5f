"""Runs trials on a Ray cluster, one actor for each GPU or group of cores; the only file that imports Ray.

Actors alone: Ray's own trainers and searches bring protocols of their own for checkpoints and results, and trials are
folders here. An actor that dies is replaced by a new one, never restarted by Ray: while a restarted one loads, calls to
it are refused at once, which would count as deaths of the trial.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewise.comparison.bench import BenchPlan
from tunewise.comparison.pool import Job, Pool
from tunewise.comparison.ray_bench import RayBench
from tunewise.comparison.request import Request
from tunewise.comparison.slots import THREADS, require_one_kind, threads_given
from tunewise.comparison.worker_process import STARTUP_SECONDS, WorkerEnd
from tunewise.comparison.workers import AUTO
from tunewise.core.errors import RequestError, SettingError, TunewiseError
from tunewise.core.extras import require
from tunewise.core.text import show

_REACHED = 10.0  # seconds in which the cluster must accept a connection
_ASKED = 0.5  # seconds between two questions to an actor about its trial
_PASSED_ON = ("HF_", "TRANSFORMERS_", "TUNEWISE_", "TOKENIZERS_")  # variables of this process that actors have too


class RayOpening:
    """Joins a Ray cluster, checks that its nodes see the folders, and starts actors.

    Args:
        address: `ray://HOST:PORT`, or "auto" for the cluster that this machine is part of.
        request: the comparison, which each actor reads for itself.
        attempt_id: identifies this attempt at it.
        patience: seconds without a sign of life after which a trial is given up.
        mixed: whether the actors' devices may be of several kinds.

    Raises:
        SettingError: Ray is not installed, or there is no such cluster.
        RequestError: a node does not see the output folder.
    """

    def __init__(self, address: str, request: Request, *, attempt_id: str, patience: float, mixed: bool) -> None:
        require(f"--workers {address}", "ray")
        _require_answer(address)
        import ray

        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of Ray's and of gRPC's many kinds
            raise SettingError(
                f'--workers is "{address}", but no Ray cluster can be joined there: {_last_line(error)}'
            ) from error
        self._attempt_id, self._mixed = attempt_id, mixed
        self._folder, out = Path.cwd(), request.options.out.absolute()
        self._token = out / f".seen-by-{attempt_id}"
        places = _Places.of(ray, request.options.loading.device)
        self._shares, self.size, self._seats = places.shared, places.count, list[RaySeat]()
        for place in range(self.size):
            plan = BenchPlan(request=request.to_json(), attempt_id=attempt_id, seat=place)
            given = (json.dumps(plan.to_json()), str(self._folder), str(self._token))
            self._seats.append(RaySeat(ray, places, given, patience))

    def prepare(self) -> None:
        """Do nothing: actors start with their first trial."""

    def open(self) -> Pool:
        """Return the pool of the actors, once each has seen the token that is written to the output folder.

        Raises:
            RequestError: a node does not see it, or devices are of several kinds and that was not asked for.
        """
        self._token.write_text("")
        try:
            kinds = [seat.check() for seat in self._seats]
        finally:
            self._token.unlink(missing_ok=True)
        mixed = require_one_kind(kinds, self._mixed, "join a cluster whose nodes are alike")
        return Pool(self._seats, self._attempt_id, shares=self._shares, mixed=mixed)


def _last_line(error: Exception) -> str:
    """Return the last line of what Ray says, which names the cause; what comes before may be a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return show(lines[-1], 200) if lines else type(error).__name__


def _require_answer(address: str) -> None:
    """Refuse an address at which nothing listens, where Ray would try again for minutes.

    Raises:
        SettingError: it names the address.
    """
    place = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED).close()
    except OSError as error:
        reason = error.strerror or error
        raise SettingError(f'--workers is "{address}", but nothing answers at {host}:{port} ({reason})') from error


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Says how many actors have room on a cluster, and what each is given.

    Attributes:
        count: how many.
        cores: the cores of each.
        gpus: the GPUs of each.
        variables: what its environment has besides that of its node.
        shared: whether actors take memory bandwidth from one another.
    """

    count: int
    cores: int = 0
    gpus: int = 0
    variables: Mapping[str, str]
    shared: bool = False

    @classmethod
    def of(cls, ray: Any, device: str | None) -> _Places:
        """Read them from a cluster.

        Raises:
            SettingError: there is no room for any.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if gpus and (device or "cuda").startswith("cuda"):
            return cls(count=gpus, gpus=1, variables=variables)
        cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        if not cores:
            raise SettingError("the Ray cluster has neither GPUs nor cores to run trials on")
        threads = threads_given() or min(cores)
        count = sum(node // threads for node in cores)
        if not count:
            raise SettingError(f"{THREADS} is {threads}, and no node of the Ray cluster has so many cores")
        shared = any(node // threads > 1 for node in cores)
        return cls(count=count, cores=threads, variables={**variables, THREADS: str(threads)}, shared=shared)


class RaySeat:
    """Runs trials in an actor, which is started when it is first needed, and anew when the last one is gone."""

    def __init__(self, ray: Any, places: _Places, given: tuple[str, str, str], patience: float) -> None:
        self._ray, self._given, self._patience, self._on_gpu = ray, given, patience, places.gpus > 0
        self._kind = ray.remote(RayBench).options(
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            num_cpus=places.cores,
            num_gpus=places.gpus,
            runtime_env={"env_vars": dict(places.variables)},
        )
        self._actor: Any = None
        self._is_loaded = False  # the base: what ends the actor from then on is laid to the trial that it runs

    @property
    def alive(self) -> bool:
        """Whether an actor was started and is not known to be gone."""
        return self._actor is not None

    def check(self) -> str:
        """Start the actor, see whether its node sees the folders, and return the name of its GPU or processor.

        Raises:
            RequestError: it does not; the sentence names the node and the folder.
            TunewiseError: no actor could be started.
        """
        self._actor, errors = self._kind.remote(*self._given), self._ray.exceptions
        try:
            unseen = self._ray.get(self._actor.unseen.remote(), timeout=STARTUP_SECONDS)
            node = self._ray.get(self._actor.node.remote(), timeout=STARTUP_SECONDS).partition(" ")[0]
            kind: str = self._ray.get(self._actor.kind.remote(self._on_gpu), timeout=STARTUP_SECONDS)
        except errors.GetTimeoutError as error:
            raise TunewiseError(
                f"the Ray cluster started no worker within {STARTUP_SECONDS:.0f} seconds; see whether others use its "
                "GPUs and cores (ray status)"
            ) from error
        except errors.RayActorError as error:
            raise TunewiseError(f"a worker on the Ray cluster ended as it started: {_last_line(error)}") from error
        if unseen:
            raise RequestError(
                f"node {node} of the Ray cluster does not see {unseen}; all nodes must see the working folder and "
                "--out by the same names, as on NFS"
            )
        return kind

    def carry_out(self, job: Job) -> WorkerEnd | None:
        """Have the actor run a trial; None when its result is on disk.

        Raises:
            RequestError: the actor cannot use the model or the data as requested.
            TunewiseError: it cannot work, such as on a full disk.
        """
        if self._actor is None:
            self._actor, self._is_loaded = self._kind.remote(*self._given), False
        if not self._is_loaded:
            if end := self._followed(self._actor.load, job, in_trial=False):
                return end
            self._is_loaded = True
        return self._followed(self._actor.carry_out, job, in_trial=True)

    def _followed(self, method: Any, job: Job, *, in_trial: bool) -> WorkerEnd | None:
        """Call a method of the actor with a job, and pass on what it reports until it returns; None: it is done."""
        errors, actor = self._ray.exceptions, self._actor
        allowed, heard = self._patience if in_trial else max(self._patience, STARTUP_SECONDS), time.monotonic()
        try:
            running = method.remote(json.dumps(job.work))
            while True:
                over, _ = self._ray.wait([running], timeout=_ASKED)
                if over:
                    return self._ended(json.loads(self._ray.get(running)), in_trial)
                events = json.loads(self._ray.get(actor.events.remote(), timeout=allowed))
                for event in events:
                    job.progress(*event["progress"])
                heard = time.monotonic() if events else heard
                if time.monotonic() - heard > allowed:
                    return WorkerEnd.silent(allowed, in_trial=in_trial)
        except errors.GetTimeoutError:
            return WorkerEnd.silent(allowed, in_trial=in_trial)
        except errors.OutOfMemoryError:
            return WorkerEnd.of_memory(in_trial=in_trial)
        except errors.RayActorError:
            return WorkerEnd.killed(in_trial=in_trial)

    def _ended(self, outcome: Mapping[str, Any], in_trial: bool) -> WorkerEnd | None:
        if "error" in outcome:
            raise (RequestError if outcome["code"] == RequestError.exit_code else TunewiseError)(outcome["error"])
        return WorkerEnd(f"failed: {outcome['crash']}", in_trial=in_trial) if "crash" in outcome else None

    def stop(self) -> None:
        """End the actor, if there is one."""
        actor, self._actor = self._actor, None
        if actor is not None:
            self._ray.kill(actor, no_restart=True)
