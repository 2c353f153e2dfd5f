"""Where trials run for another process: the base and the data of a request, loaded once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.invocation import OnTrial
from tunewise.comparison.lone_timing import time_alone
from tunewise.comparison.request import Request
from tunewise.comparison.trial import run, run_stage
from tunewise.comparison.trial_order import TrialOrder
from tunewise.core.errors import TunewiseError
from tunewise.core.json_record import JsonObject, JsonRecord
from tunewise.core.progress import RowProgress, for_row


@dataclass(frozen=True, kw_only=True)
class BenchPlan(JsonRecord):
    """Says what a worker needs before its first trial.

    Attributes:
        request: the comparison.
        attempt_id: identifies this attempt at it.
        seat: the worker's number, which keeps what it prepares apart from what others do.
        cores: the cores that it keeps to; empty where it may use all of them.
    """

    request: dict[str, object]
    attempt_id: str
    seat: int
    cores: tuple[int, ...] = ()


class Bench:
    """Loads what the trials of a comparison share, and runs those that are ordered.

    Raises:
        RequestError: the model or the data cannot be used as requested.
    """

    def __init__(self, plan: BenchPlan, *, on_trial: OnTrial, progress: RowProgress) -> None:
        request = Request.from_json(plan.request)
        self._trials, self._plan = request.options.out / "trials", plan
        self._on_trial, self._progress = on_trial, progress
        self._make_context = request.loaded(progress)
        self._context: ComparisonContext | None = None
        self._threads = torch.get_num_threads()

    def load(self, line: JsonObject) -> ComparisonContext:
        """Return the base and the data that a trial needs; they are loaded once."""
        if self._context is None:  # the process that orders has measured the base by now
            order = TrialOrder.from_json(line)
            self._context = self._make_context(order.label_list, self._plan.attempt_id, self._on_trial)
        return self._context

    def carry_out(self, line: JsonObject) -> None:
        """Run a trial; its result is on disk then.

        Raises:
            TunewiseError: this process does not see the same model or data as the one that orders.
            OSError: the disk is full or gone.
        """
        order, context = TrialOrder.from_json(line), self.load(line)
        trial = order.trial()
        torch.set_num_threads(self._threads)  # a trial that went on from a checkpoint had those of its beginning
        if (here := trial.key(context)) != order.folder:
            raise TunewiseError(
                f"a worker would run {here} and was asked for {order.folder}: the model, the data or a file that "
                "techniques read has changed since the comparison began; run it again"
            )
        context.preparations.enter(order.row, keeps=order.searches, maker=order.maker, seat=self._plan.seat)
        progress = for_row(self._progress, order.row)
        if order.kind == "whole":
            run(trial, context, self._trials, finish=True, progress=progress)
        elif order.kind == "stage":
            run_stage(trial, context, self._trials, progress)
        else:
            time_alone(trial, context, self._trials / order.folder, progress)
