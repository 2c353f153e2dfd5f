"""One row of a comparison: a technique's search within its allowance, then its seeds."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tunewise.comparison.budget import Budget, Clock
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.search import Outcome, find, preparations
from tunewise.comparison.trial import run, run_stage
from tunewise.comparison.trial_identity import Trial
from tunewise.comparison.trial_queue import TrialQueue
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
    """Runs the trials of techniques and summarises them as rows.

    `queue` runs them in several workers; without it they run here, one after the other. `winners` are the trials whose
    adaptations rows name, by their folders.
    """

    context: ComparisonContext
    budget: Budget
    settings: TrainSettings
    trials: Path
    held: Collection[str]
    progress: RowProgress
    clock: Clock | None
    queue: TrialQueue | None = None
    winners: dict[str, Trial] = field(default_factory=dict)

    def row(self, technique: Technique, rows_left: int) -> tuple[Row, list[FinishedTrial]]:
        """Search a technique's settings, then run its seeds, within the time left where the budget is in minutes.

        Returns:
            The row, and the records of the seeds that finished.
        """
        if self.clock is None:
            return self.row_of(technique)
        if self.clock.left <= 0:
            return skipped(technique, self.out_of_time()), []
        runs = (
            self._with_timed_steps(self.clock, technique, rows_left) if technique.trains or technique.chooses else self
        )
        started = time.perf_counter()
        row, records = runs.row_of(technique)
        scoring_seconds = time.perf_counter() - started - _training_seconds(row, records)
        self.clock.scoring = max(self.clock.scoring, scoring_seconds / max(len(records), 1))
        return row, records

    def out_of_time(self) -> str:
        """Say why a row is skipped where no time is left."""
        return f"the budget of {self.budget.minutes:g} minutes was used up"

    def paced(self, technique: Technique, rows_left: int) -> Runs | None:
        """Return the same with the steps that a technique's share of the time allows; None where no time is left."""
        if self.clock is None:
            return self
        return self._with_timed_steps(self.clock, technique, rows_left) if self.clock.left > 0 else None

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
        row = _RowTrials(self, technique.name, {})
        recipe, searched = find(technique, self.budget.search, row.train, self.held, row.train_all)
        seeds = range(self.budget.seeds if technique.seeded else 1)
        trials = [Trial(recipe, seed, self.settings, self.budget.tokens) for seed in seeds]
        records = row.run(trials)
        folders = {trial.seed: f"trials/{trial.key(self.context)}" for trial in trials}
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
        summary = _summary(technique.name, records, searched, spent)
        if not finished:
            return summary, finished
        scored = _scored(summary, finished, folders, self.context.task.metric)
        best = next(trial for trial in trials if scored.adaptation == f"{folders[trial.seed]}/adaptation")
        self.winners[best.key(self.context)] = best
        return scored, finished


@dataclass(frozen=True)
class _RowTrials:
    """Runs the trials of one row, here or in workers; `makers` are the first folders with each preparation."""

    runs: Runs
    row: str
    makers: dict[str, str]

    def _maker(self, trial: Trial) -> str:
        """Return the folder of the row's first trial with the same preparation, which its cost is laid to."""
        return self.makers.setdefault(f"{trial.seed} {trial.technique.preparation()!r}", trial.key(self.runs.context))

    def run(self, trials: Sequence[Trial]) -> list[TrialRecord]:
        """Run whole trials, and return their records in their order."""
        runs, makers = self.runs, [self._maker(trial) for trial in trials]
        if runs.queue is not None:
            results = runs.queue.run("whole", self.row, trials, makers, runs.progress, runs.budget.search > 1)
            return [result for result in results if isinstance(result, TrialRecord)]
        records = []
        for trial, maker in zip(trials, makers, strict=True):
            runs.context.preparations.maker = maker
            records.append(
                run(trial, runs.context, runs.trials, finish=True, progress=for_row(runs.progress, self.row))
            )
        return records

    def train(self, recipe: Technique, share: float) -> Outcome:
        """Train a candidate of the search for a share of the steps, from the start."""
        return self.train_all([recipe], share)[0]

    def train_all(self, recipes: Sequence[Technique], share: float) -> list[Outcome]:
        """Train candidates of the search, and return their outcomes in their order."""
        runs = self.runs
        trials = [Trial(recipe, 0, runs.settings, runs.budget.tokens, share) for recipe in recipes]
        makers = [self._maker(trial) for trial in trials]
        if runs.queue is not None:
            results = runs.queue.run("stage", self.row, trials, makers, runs.progress, runs.budget.search > 1)
            return [_outcome(result) for result in results]
        outcomes = []
        for trial, maker in zip(trials, makers, strict=True):
            runs.context.preparations.maker = maker
            outcomes.append(_outcome(run_stage(trial, runs.context, runs.trials, for_row(runs.progress, self.row))))
        return outcomes


def _outcome(stage: Stage | TrialRecord) -> Outcome:
    """Return what a search learns of a stage."""
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
