"""Runs trials as an actor on a node of a Ray cluster; this file does not import Ray.

All nodes must see the same folders by the same names, as on NFS: the output folder, and data that is given by path.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.comparison.worker_lines import reports
from tunewise.core.json_record import JsonObject

if TYPE_CHECKING:
    from tunewise.comparison.bench import Bench


class RayBench:
    """An actor that loads the base with its first trial; two threads call it, one to run a trial and one to ask of it.

    Args:
        plan: what a worker needs before its first trial (`tunewise.comparison.bench.BenchPlan`), as JSON.
        folder: the working folder of the process that compares.
        token: a file that it has written to the output folder.
    """

    def __init__(self, plan: str, folder: str, token: str) -> None:
        self._plan, self._folder, self._token = json.loads(plan), folder, token
        self._events: list[JsonObject] = []
        self._lock = threading.Lock()
        self._bench: Bench | None = None

    def node(self) -> str:
        """Return the name of the node, and the number of this process."""
        return f"{socket.gethostname()} {os.getpid()}"

    def kind(self, on_gpu: bool) -> str:
        """Return the model of the GPU that this process has, or of its processor."""
        from tunewise.engine.device import device_name

        return device_name("cuda" if on_gpu else "cpu")

    def unseen(self) -> str:
        """Name what this node does not see of the folders that it must; empty where it sees all."""
        for path in (self._folder, self._token):
            if not Path(path).exists():
                return path
        return ""

    def events(self) -> str:
        """Return what has happened since this was last asked, as JSON."""
        with self._lock:
            events, self._events = self._events, []
        return json.dumps(events)

    def load(self, work: str) -> str:
        """Load what a trial needs, and return as JSON how that ended: done, error or crash, as worker processes say.

        This is a call of its own, so that the death of this process is laid to a trial only where one has begun.
        """
        return self._outcome(lambda bench: bench.load(json.loads(work)))

    def carry_out(self, work: str) -> str:
        """Run a trial, and return how that ended in the same way."""
        return self._outcome(lambda bench: bench.carry_out(json.loads(work)))

    def _outcome(self, do: Callable[[Bench], object]) -> str:
        from tunewise.core.errors import TunewiseError

        try:
            do(self._made_bench())
        except TunewiseError as error:
            return json.dumps({"error": str(error), "code": error.exit_code})
        except OSError as error:
            return json.dumps({"error": f"{type(error).__name__}: {error}", "code": 1})
        except Exception as error:
            return json.dumps({"crash": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return json.dumps({"done": True})

    def _made_bench(self) -> Bench:
        from tunewise.comparison.bench import Bench, BenchPlan

        if self._bench is None:
            os.chdir(self._folder)
            self._bench = Bench(
                BenchPlan.from_json(self._plan),
                on_trial=lambda folder, identity: None,
                progress=reports(self._note),
            )
        return self._bench

    def _note(self, **event: object) -> None:
        with self._lock:
            self._events = [*self._events[-99:], event]
