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
    """Runs trials and makes rows of them."""

    context: ComparisonContext
    budget: Budget
    settings: TrainSettings
    trials: Path
    held: Collection[str]
    progress: RowProgress
    clock: Clock | None

    def row(self, technique: Technique, rows_left: int) -> tuple[Row, list[FinishedTrial]]:
        """Search, then seeds; the row, and the records of the seeds that finished."""
        if self.clock is None:
            return self.row_of(technique)
        if self.clock.left <= 0:
            return skipped(technique, f"the {self.budget.minutes:g} minutes were over"), []
        runs = self._timed(self.clock, technique, rows_left) if technique.trains else self
        begun = time.perf_counter()
        row, records = runs.row_of(technique)
        trained = row.spent.trial_seconds + row.spent.search_seconds if row.spent is not None else 0.0
        beside = time.perf_counter() - begun - trained
        self.clock.scoring = max(self.clock.scoring, beside / max(len(records), 1))
        return row, records

    def _timed(self, clock: Clock, technique: Technique, rows_left: int) -> Runs:
        """The same with the steps that this technique's share of the time is good for."""
        self.progress(technique.name, "timing its steps", 0, 0)
        trials = self.budget.search + self.budget.seeds - 1
        try:
            steps = clock.steps(technique, self.context, self.settings, rows_left, trials)
        except Exception:  # what cannot be timed cannot be trained: its trial will say why in its row
            return self
        return replace(self, settings=replace(self.settings, max_steps=steps))

    def row_of(self, technique: Technique) -> tuple[Row, list[FinishedTrial]]:
        """The row within the settings' steps."""
        recipe, searched = find(technique, self.budget.search, self._stage, self.held)
        report = for_row(self.progress, recipe.name)
        records: list[TrialRecord] = []
        folders: dict[int, str] = {}  # of each seed's trial
        for seed in range(self.budget.seeds if technique.seeded else 1):
            trial = Trial(recipe, seed, self.settings, self.budget.tokens)
            records.append(run(trial, self.context, self.trials, finish=True, report=report))
            folders[seed] = f"trials/{trial.key(self.context)}"
        good = [record for record in records if isinstance(record, FinishedTrial)]
        lost = [tried for tried in searched if not tried.won]
        spent = Spent(
            search_tokens=sum(tried.tokens or 0 for tried in lost),
            search_seconds=sum(tried.seconds or 0.0 for tried in lost),
            trial_tokens=sum(record.training.tokens for record in good),
            trial_seconds=sum(record.cost.train_seconds for record in good),
            seconds=sum([tried.seconds or 0.0 for tried in searched] + [record.seconds or 0.0 for record in records]),
        )
        row = _summary(technique.name, records, searched, spent)
        return _scored(row, good, folders, self.context.task.metric) if good else row, good

    def _stage(self, recipe: Technique, share: float) -> Outcome:
        trial = Trial(recipe, 0, self.settings, self.budget.tokens)
        report = for_row(self.progress, recipe.name)
        outcome = run(trial, self.context, self.trials, finish=False, until=share, report=report)
        if isinstance(outcome, Stage):
            return Outcome(
                outcome.validation_loss, None, outcome.steps, outcome.tokens, outcome.seconds, outcome.nll_rise
            )
        if isinstance(outcome, FittedTrial):
            return Outcome(outcome.validation_loss, None, outcome.training.steps)
        return Outcome(None, outcome.reason)


def skipped(technique: Technique, reason: str) -> Row:
    """The row of a technique that is not run."""
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
    """The row without figures."""
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


def _scored(row: Row, good: Sequence[FinishedTrial], folders: Mapping[int, str], metric: str) -> ScoredRow:
    """The row with the figures of the seeds that finished."""
    each = [record.score.mean for record in good]
    low, high = interval(np.array([record.per_example for record in good]))
    first, best = good[0], min(good, key=lambda record: record.validation_loss)
    forgetting = [record.forgetting for record in good if record.forgetting is not None]
    return row.extended(
        ScoredRow,
        score=Score(metric=metric, mean=sum(each) / len(each), per_seed=tuple(each), low=low, high=high),
        others=_means([record.score.others for record in good]),
        nll=float(np.mean([record.nll for record in good])),
        validation_loss=best.validation_loss,
        forgetting=_average(forgetting) if forgetting else None,
        cost=_average([record.cost for record in good]),
        training=first.training,
        curve=best.curve,
        memory=next((record.memory for record in good if record.memory is not None), None),
        findings=first.findings,
        test_cut=first.score.cut,
        adaptation=f"{folders[best.seed]}/adaptation",
    )


def _average(records: Sequence[Averaged]) -> Averaged:
    return type(records[0]).from_json(_means([record.to_json() for record in records]))


def _means(records: Sequence[Numbers]) -> Numbers:
    """Of numbers; facts are those of the first."""
    first = records[0]
    means = {
        key: value if isinstance(value, bool) else float(np.mean([record[key] for record in records]))
        for key, value in first.items()
        if all(key in record for record in records)
    }
    whole = all(isinstance(value, int) for value in first.values())
    return {k: int(v) if whole or k.endswith(("_bytes", "_parameters")) else v for k, v in means.items()}
