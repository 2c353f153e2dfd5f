"""Sends the trials of rows to workers, and reads what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.lone_timing import mark_neighbours
from tunewise.comparison.pool import Job, Pool
from tunewise.comparison.trial import known_result
from tunewise.comparison.trial_identity import Trial, identity_of
from tunewise.comparison.trial_order import Kind, TrialOrder
from tunewise.comparison.trial_records import read_record, read_stage
from tunewise.core.errors import TunewiseError
from tunewise.core.progress import RowProgress
from tunewise.results.schema import Stage, TrialRecord


@dataclass(frozen=True)
class TrialQueue:
    """Runs trials in a pool of workers.

    Attributes:
        pool: the workers.
        context: what the trials share; the base may have no weights any more.
        trials: the folder of the trials.
        order: the names of the rows, of which the first are run first.
    """

    pool: Pool
    context: ComparisonContext
    trials: Path
    order: Sequence[str]

    def run(
        self,
        kind: Kind,
        row: str,
        trials: Sequence[Trial],
        makers: Sequence[str],
        progress: RowProgress,
        searches: bool,
    ) -> list[Stage | TrialRecord]:
        """Run trials of one row at once, those that are not finished, and return the results of all in their order.

        Args:
            kind: whole trials, or stages of a search.
            row: the row's name.
            trials: what to run.
            makers: for each of them, the folder of the first trial with the same preparation.
            progress: is called with what workers report.
            searches: whether trials of this row share preparations.

        Raises:
            TunewiseError: a worker left no result.
        """
        folders = [self.trials / trial.key(self.context) for trial in trials]
        jobs = []
        for trial, folder, maker in zip(trials, folders, makers, strict=True):
            if known_result(trial, self.context, folder) is None:
                jobs.append(self.job(kind, row, trial, folder, maker, progress, searches=searches))
                if (self.pool.shares or self.pool.mixed) and kind == "whole":
                    mark_neighbours(folder, self.pool.size - 1, mixed=self.pool.mixed)
        self.pool.run(jobs)
        return [self._result(kind, folder) for folder in folders]

    def job(
        self,
        kind: Kind,
        row: str,
        trial: Trial,
        folder: Path,
        maker: str,
        progress: RowProgress,
        *,
        searches: bool = False,
    ) -> Job:
        """Make the job of one trial."""
        listed = self.context.task.label_list
        order = TrialOrder.of(kind, trial, folder.name, maker, row=row, searches=searches, label_list=listed)
        place = self.order.index(row) if row in self.order else len(self.order)
        return Job(row, place, folder, identity_of(trial, with_trains=True), order.to_json(), progress)

    def _result(self, kind: Kind, folder: Path) -> Stage | TrialRecord:
        result: Stage | TrialRecord | None = read_stage(folder) if kind == "stage" else None
        if result is None:
            result = read_record(folder)
        if result is None:
            raise TunewiseError(f"{folder}: a worker left no result; run it again")
        return result
