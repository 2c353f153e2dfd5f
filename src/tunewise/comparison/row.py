"""One row of a comparison: a technique's search within its allowance, then its seeds."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tunewise.comparison.budget import Budget, Clock
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.search import Outcome, find, preparations
from tunewise.comparison.trial import Trial, run, run_stage
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
Diagnostic = TypeVar("Diagnostic", bound=JsonRecord)


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
        runs = (
            self._with_timed_steps(self.clock, technique, rows_left) if technique.trains or technique.chooses else self
        )
        started = time.perf_counter()
        row, records = runs.row_of(technique)
        scoring_seconds = time.perf_counter() - started - _training_seconds(row, records)
        self.clock.scoring = max(self.clock.scoring, scoring_seconds / max(len(records), 1))
        return row, records

    def _with_timed_steps(self, clock: Clock, technique: Technique, rows_left: int) -> Runs:
        """Return the same with as many steps as this technique's share of the time allows."""
        self.progress(technique.name, "timing its steps", 0, 0)
        trials = self.budget.search + self.budget.seeds - 1
        try:
            progress = for_row(self.progress, technique.name)
            prepared = trials - self.budget.search + preparations(technique, self.budget.search, self.held)
            steps = clock.steps(technique, self.context, self.settings, rows_left, trials, progress, prepared)
        except Exception:  # if timing fails, training fails too, and its row gives the reason
            return self
        return replace(self, settings=replace(self.settings, max_steps=steps))

    def row_of(self, technique: Technique) -> tuple[Row, list[FinishedTrial]]:
        """Return the row of a technique, trained for the steps in the settings, and the records that finished."""
        with self.context.preparations.row(self.trials, technique.name, keeps=self.budget.search > 1):
            return self._searched_row(technique)

    def _searched_row(self, technique: Technique) -> tuple[Row, list[FinishedTrial]]:
        recipe, searched = find(technique, self.budget.search, self._train_share, self.held)
        progress = for_row(self.progress, recipe.name)
        records: list[TrialRecord] = []
        folders: dict[int, str] = {}  # the folder of each seed's trial
        for seed in range(self.budget.seeds if technique.seeded else 1):
            trial = Trial(recipe, seed, self.settings, self.budget.tokens)
            records.append(run(trial, self.context, self.trials, finish=True, progress=progress))
            folders[seed] = f"trials/{trial.key(self.context)}"
        finished = [record for record in records if isinstance(record, FinishedTrial)]
        # The search has prepared the winner's first seed already.
        preparing = [
            record.training.preparing_tokens or 0 for record in finished if not (searched and record.seed == 0)
        ]
        spent = Spent(
            search_steps=sum(trial.total_steps or 0 for trial in searched) or None,
            search_tokens=sum(trial.tokens or 0 for trial in searched),
            search_seconds=sum(trial.seconds or 0.0 for trial in searched),
            trial_tokens=sum(record.training.tokens for record in finished),
            preparing_tokens=sum([*preparing, *(trial.preparing_tokens or 0 for trial in searched)]) or None,
            trial_seconds=sum(record.cost.train_seconds for record in finished),
            seconds=sum(
                [
                    *((trial.seconds or 0.0) + (trial.preparing_seconds or 0.0) for trial in searched),
                    *(record.seconds or 0.0 for record in records),
                ]
            ),
        )
        row = _summary(technique.name, records, searched, spent)
        return _scored(row, finished, folders, self.context.task.metric) if finished else row, finished

    def _train_share(self, recipe: Technique, share: float) -> Outcome:
        """Train a candidate of the search for a share of the steps, from the start."""
        trial = Trial(recipe, 0, self.settings, self.budget.tokens, share)
        stage = run_stage(trial, self.context, self.trials, for_row(self.progress, recipe.name))
        if not isinstance(stage, Stage):
            return Outcome(None, stage.reason)
        return Outcome(
            stage.validation_loss,
            steps=stage.steps,
            tokens=stage.tokens,
            seconds=stage.seconds,
            preparing_tokens=stage.preparing_tokens,
            preparing_seconds=stage.preparing_seconds,
            nll_rise=stage.nll_rise,
        )


def _training_seconds(row: Row, records: Sequence[FinishedTrial]) -> float:
    """Return what preparing and training took; a first seed counts the time in which the search prepared it."""
    searched = [(trial.seconds or 0.0) + (trial.preparing_seconds or 0.0) for trial in row.search or ()]
    shared = [record.cost.preparing_seconds or 0.0 for record in records if searched and record.seed == 0]
    return sum(searched) + sum(record.cost.train_seconds for record in records) - sum(shared)


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
        validation_curve=best.validation_curve,
        memory=next((record.memory for record in finished if record.memory is not None), None),
        findings=first.findings,
        test_cut=first.score.cut,
        adaptation=f"{folders[best.seed]}/adaptation",
        confusions=_of_all(record.confusion for record in finished),
        lengths=_of_all(record.lengths for record in finished),
        export_format=best.export_format,
    )


def _of_all(records: Iterable[Diagnostic | None]) -> tuple[Diagnostic, ...] | None:
    """Return what is recorded of each seed; None where a seed has none, as one of an older version."""
    known = list(records)
    present = tuple(record for record in known if record is not None)
    return present if len(present) == len(known) else None


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
