"""Decides which row of a comparison is run when: in turn, as advice says, or several at once in a pool of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tunewise.comparison.invocation import Invocation
from tunewise.comparison.lone_timing import mark_neighbours, needs_timing, time_alone, with_lone_times
from tunewise.comparison.row import Runs, skipped
from tunewise.comparison.rows_at_once import RowsAtOnce, Turn
from tunewise.comparison.trial_queue import TrialQueue
from tunewise.contract.technique import Technique
from tunewise.core.progress import RowStart, for_row
from tunewise.results.schema import FinishedTrial, Row, ScoredRow


@dataclass(frozen=True)
class RowTurns:
    """Runs the rows of a comparison.

    Attributes:
        runs: runs one row, in the pool if there is one.
        techniques: the techniques in the order of the request.
        invocation: says whose advice is followed, and who is told of a row's start.
        ahead: begins rows before they are asked for; None without a pool.
    """

    runs: Runs
    techniques: Sequence[Technique]
    invocation: Invocation
    ahead: RowsAtOnce | None = None

    def rows(self, over: Sequence[Row]) -> Iterator[tuple[Technique, Row, list[FinishedTrial]]]:
        """Run the rows, and yield each with the records of its seeds when it is over.

        Args:
            over: the rows that are over, which grows between the turns.
        """
        begun = 0
        for technique, rows_left, reason in self._turns(over):
            if reason is not None:
                yield technique, skipped(technique, reason), []
            elif self.ahead is not None:
                yield technique, *self.ahead.row(technique)
            else:
                begun += 1
                self.invocation.on_row_start(self._start(technique, begun))
                yield technique, *self.runs.row(technique.resolved(self.runs.context.base), rows_left)

    def _turns(self, over: Sequence[Row]) -> Iterator[Turn]:
        course, clock, queue = self.invocation.course, self.runs.clock, self.runs.queue
        order = sorted(self.techniques, key=lambda technique: technique.trains) if clock else self.techniques
        if self.ahead is None or queue is None:
            return course.turns(order, over) if course is not None else _in_turn(order)
        if course is not None:
            return self.ahead.followed(course, course.turns(order, over), over, queue.pool.size)
        return self.ahead.timed_turns(order, queue.pool.size) if clock else self.ahead.turns(order)

    def _start(self, technique: Technique, number: int) -> RowStart:
        budget, course = self.runs.budget, self.invocation.course
        seeds = budget.seeds if technique.seeded else 1
        trainings = seeds + (budget.search - 1 if technique.trains else 0)
        return RowStart(technique.name, number, len(self.techniques) if course is None else None, trainings)

    def timed_alone(self, rows: Sequence[Row], folder: Path) -> list[Row] | None:
        """Time those rows alone whose trials ran beside others, and return all with their times; None if none did.

        Args:
            rows: the rows of the comparison, all of which are over.
            folder: its folder.
        """
        adapted = {row.technique: row.adaptation for row in rows if isinstance(row, ScoredRow)}
        ran = {name: (folder / path).parent for name, path in adapted.items() if path}
        queue = self.runs.queue
        if queue is not None:
            queue.pool.drop()  # what was begun and is not wanted would run beside
        for name, trial_folder in ran.items():
            trial = self.runs.winners.get(trial_folder.name)
            if queue is not None and queue.pool.mixed:  # also what an earlier run has left
                mark_neighbours(trial_folder, queue.pool.size - 1, mixed=True)
            if trial is None or not needs_timing(trial_folder):
                continue
            if queue is None:
                time_alone(trial, self.runs.context, trial_folder, for_row(self.runs.progress, name))
            else:
                job = queue.job("timing", name, trial, trial_folder, trial_folder.name, self.runs.progress)
                queue.pool.run([job], seat=0 if queue.pool.mixed else None)
        timed = with_lone_times(rows, folder)
        return timed if timed != list(rows) else None


def _in_turn(order: Sequence[Technique]) -> Iterator[Turn]:
    """Yield every technique in turn, with the number of rows left, this one included, and no reason to skip it."""
    for place, technique in enumerate(order):
        yield technique, len(order) - place, None


@contextmanager
def row_turns(runs: Runs, techniques: Sequence[Technique], invocation: Invocation) -> Iterator[RowTurns]:
    """Open the workers of a comparison, if there are to be any, for as long as its rows run.

    Args:
        runs: runs one row.
        techniques: the techniques in the order of the request.
        invocation: how the comparison was started.
    """
    plain = RowTurns(runs, techniques, invocation)
    if invocation.open_pool is None:
        yield plain
        return
    context = runs.context
    resolved = {technique.name: technique.resolved(context.base) for technique in techniques}
    if runs.clock is None:
        context.base.drop_weights()  # workers hold the weights
    pool = invocation.open_pool()
    names = [technique.name for technique in techniques]
    queued = replace(runs, queue=TrialQueue(pool, context, runs.trials, names))
    starts = {technique.name: plain._start(technique, place + 1) for place, technique in enumerate(techniques)}
    resolve: Callable[[Technique], Technique] = lambda technique: resolved[technique.name]  # noqa: E731
    ahead = RowsAtOnce(queued, resolve, invocation.on_row_start, starts)
    try:
        yield RowTurns(queued, techniques, invocation, ahead)
    finally:
        ahead.close()
        pool.close()
