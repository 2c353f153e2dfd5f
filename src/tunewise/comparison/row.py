"""One row of a comparison: a technique's search within its allowance, then its seeds."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tunewise.comparison.budget import Budget, Clock
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.search import Outcome, find
from tunewise.comparison.trial import Trial, run
from tunewise.contract.technique import Technique
from tunewise.core.json_record import JsonRecord
from tunewise.core.progress import RowProgress, for_row
from tunewise.fitting.settings import TrainSettings
from tunewise.results.schema import (
    FinishedTrial,
    FittedTrial,
    Numbers,
    Row,
    Score,
    ScoredRow,
    SearchTrial,
    Spent,
    Stage,
    TrialRecord,
)
from tunewise.results.statistics import interval

Averaged = TypeVar("Averaged", bound=JsonRecord)


@dataclass(frozen=True)
class Runs:
    """Runs the trials of techniques and summarises them as rows."""

    context: ComparisonContext
    budget: Budget
    settings: TrainSettings
    trials: Path
    held: Collection[str]
    progress: RowProgress
    clock: Clock | None

    def row(self, technique: Technique, rows_left: int) -> tuple[Row, list[FinishedTrial]]:
        """Search a technique's settings, then run its seeds, within the time left where the budget is in minutes.

        Returns:
            The row, and the records of the seeds that finished.
        """
        if self.clock is None:
            return self.row_of(technique)
        if self.clock.left <= 0:
            return skipped(technique, f"the budget of {self.budget.minutes:g} minutes was used up"), []
        runs = self._with_timed_steps(self.clock, technique, rows_left) if technique.trains else self
        started = time.perf_counter()
        row, records = runs.row_of(technique)
        training_seconds = row.spent.trial_seconds + row.spent.search_seconds if row.spent is not None else 0.0
        scoring_seconds = time.perf_counter() - started - training_seconds
        self.clock.scoring = max(self.clock.scoring, scoring_seconds / max(len(records), 1))
        return row, records

    def _with_timed_steps(self, clock: Clock, technique: Technique, rows_left: int) -> Runs:
        """Return the same with as many steps as this technique's share of the time allows."""
        self.progress(technique.name, "timing its steps", 0, 0)
        trials = self.budget.search + self.budget.seeds - 1
        try:
            steps = clock.steps(technique, self.context, self.settings, rows_left, trials)
        except Exception:  # if timing fails, training fails too, and its row gives the reason
            return self
        return replace(self, settings=replace(self.settings, max_steps=steps))

    def row_of(self, technique: Technique) -> tuple[Row, list[FinishedTrial]]:
        """Return the row of a technique, trained for the steps in the settings, and the records that finished."""
        recipe, searched = find(technique, self.budget.search, self._train_share, self.held)
        progress = for_row(self.progress, recipe.name)
        records: list[TrialRecord] = []
        folders: dict[int, str] = {}  # the folder of each seed's trial
        for seed in range(self.budget.seeds if technique.seeded else 1):
            trial = Trial(recipe, seed, self.settings, self.budget.tokens)
            records.append(run(trial, self.context, self.trials, finish=True, progress=progress))
            folders[seed] = f"trials/{trial.key(self.context)}"
        finished = [record for record in records if isinstance(record, FinishedTrial)]
        losers = [trial for trial in searched if not trial.won]
        spent = Spent(
            search_tokens=sum(trial.tokens or 0 for trial in losers),
            search_seconds=sum(trial.seconds or 0.0 for trial in losers),
            trial_tokens=sum(record.training.tokens for record in finished),
            trial_seconds=sum(record.cost.train_seconds for record in finished),
            seconds=sum([trial.seconds or 0.0 for trial in searched] + [record.seconds or 0.0 for record in records]),
        )
        row = _summary(technique.name, records, searched, spent)
        return _scored(row, finished, folders, self.context.task.metric) if finished else row, finished

    def _train_share(self, recipe: Technique, share: float) -> Outcome:
        """Train a candidate of the search for a share of the steps."""
        trial = Trial(recipe, 0, self.settings, self.budget.tokens)
        progress = for_row(self.progress, recipe.name)
        outcome = run(trial, self.context, self.trials, finish=False, until=share, progress=progress)
        if isinstance(outcome, Stage):
            return Outcome(
                outcome.validation_loss, None, outcome.steps, outcome.tokens, outcome.seconds, outcome.nll_rise
            )
        if isinstance(outcome, FittedTrial):
            return Outcome(outcome.validation_loss, None, outcome.training.steps)
        return Outcome(None, outcome.reason)


def skipped(technique: Technique, reason: str) -> Row:
    """Return the row of a technique that is not run."""
    return Row(
        **technique.to_json(),
        family=technique.family,
        label=technique.name,
        status="skipped",
        reason=reason,
        learning_rate=None,
        search=(),
        seeds=(),
    )


def _summary(name: str, records: Sequence[TrialRecord], searched: Sequence[SearchTrial], spent: Spent) -> Row:
    """Return the row of these trials, still without figures."""
    first = next((record for record in records if record.status == "ok"), records[0])
    failed = [record for record in records if record.status != "ok"]
    return Row(
        technique=name,
        family=first.family,
        label=(first.label if isinstance(first, FittedTrial) else "") or name,
        status="failed" if failed else "ok",
        reason=failed[0].reason if failed else None,
        learning_rate=first.learning_rate,
        settings=first.settings,
        search=tuple(searched),
        seeds=tuple(record.seed for record in records),
        spent=spent,
    )


def _scored(row: Row, finished: Sequence[FinishedTrial], folders: Mapping[int, str], metric: str) -> ScoredRow:
    """Return the row with the figures of the seeds that finished."""
    per_seed = [record.score.mean for record in finished]
    low, high = interval(np.array([record.per_example for record in finished]))
    first, best = finished[0], min(finished, key=lambda record: record.validation_loss)
    forgetting = [record.forgetting for record in finished if record.forgetting is not None]
    return row.extended(
        ScoredRow,
        score=Score(metric=metric, mean=sum(per_seed) / len(per_seed), per_seed=tuple(per_seed), low=low, high=high),
        others=_means([record.score.others for record in finished]),
        nll=float(np.mean([record.nll for record in finished])),
        validation_loss=best.validation_loss,
        forgetting=_average(forgetting) if forgetting else None,
        cost=_average([record.cost for record in finished]),
        training=first.training,
        curve=best.curve,
        memory=next((record.memory for record in finished if record.memory is not None), None),
        findings=first.findings,
        test_cut=first.score.cut,
        adaptation=f"{folders[best.seed]}/adaptation",
    )


def _average(records: Sequence[Averaged]) -> Averaged:
    return type(records[0]).from_json(_means([record.to_json() for record in records]))


def _means(records: Sequence[Numbers]) -> Numbers:
    """Average each number over records that all have it; yes/no facts are those of the first record."""
    first = records[0]
    means = {
        key: value if isinstance(value, bool) else float(np.mean([record[key] for record in records]))
        for key, value in first.items()
        if all(key in record for record in records)
    }
    integers = all(isinstance(value, int) for value in first.values())
    return {k: int(v) if integers or k.endswith(("_bytes", "_parameters")) else v for k, v in means.items()}
