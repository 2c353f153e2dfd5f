"""Estimates what a comparison is going to take, without what is on disk already."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tunewise.comparison.budget import Budget
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.invocation import Invocation
from tunewise.comparison.probe import TaskProbe
from tunewise.comparison.search import Outcome, find, preparations
from tunewise.comparison.trial_identity import Trial
from tunewise.comparison.trial_records import read_record, read_stage
from tunewise.contract.technique import Technique
from tunewise.core.progress import RowProgress
from tunewise.engine.forward import why_not_packed
from tunewise.engine.memory import release_unused_memory
from tunewise.fitting.settings import TrainSettings
from tunewise.results.estimate import Estimate
from tunewise.results.schema import FinishedTrial, FittedTrial

if TYPE_CHECKING:
    from tunewise.advice.plan.whole_run import Share


def expected(
    context: ComparisonContext,
    techniques: Sequence[Technique],
    budget: Budget,
    settings: TrainSettings,
    *,
    trials: Path,
    invocation: Invocation,
    progress: RowProgress,
) -> Estimate:
    """Estimate the rows that are not finished yet; what was done since the command was started counts as its start.

    Args:
        context: the bare base, measured, and the samples of the task.
        techniques: the recipes.
        budget: what each may spend.
        settings: training settings, with the budget's steps.
        trials: the folder of the trials.
        invocation: when the command started, and which settings a search does not vary.
        progress: is told which technique is estimated.
    """
    from tunewise.advice.plan.weightless import Sketch
    from tunewise.advice.plan.whole_run import WholeRun, Workload

    base, process = context.base, psutil.Process()
    release_unused_memory()  # what measuring the base has freed is not held
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    on_gpu = base.device.type == "cuda"
    workload = Workload(
        task=context.task,
        validation=context.validation,
        test=context.test,
        settings=settings,
        tokens=budget.tokens,
        search=budget.search,
        seeds=budget.seeds,
        minutes=budget.minutes,
        retention=sum(len(row.ids) for row in context.retention.sequences) if context.retention is not None else 0,
        probe=context.probe.task if isinstance(context.probe, TaskProbe) else None,
        probed=context.probe.examples if isinstance(context.probe, TaskProbe) else (),
        device="cuda" if on_gpu else "cpu",
        held_bytes=max(process.memory_info().rss - (0 if on_gpu else weights), 0),
        spent=time.monotonic() - invocation.started if invocation.started is not None else 0.0,
    )
    shares: dict[str, Share] = {}
    for technique in techniques:
        resolved = technique.resolved(base)
        whole = replace(
            workload.share(technique),
            preparations=preparations(resolved, budget.search, invocation.held)
            + (budget.seeds - 1 if technique.seeded else 0),
        )
        done = _done(resolved, context, budget, settings, trials, invocation.held)
        shares[technique.name] = whole.without(done)
    if all(share.nothing for share in shares.values()):
        return Estimate(startup=0.0, rows=())
    sketched = Sketch(
        base.name, base.model.config, base.tokenizer, base.model.dtype, base.max_length, why_not_packed(base)
    )
    run = WholeRun.here(sketched, workload)
    return run.estimate(techniques, shares, lambda name: progress(name, "estimating time and memory", 0, 0))


class _NotOnDisk(Exception):
    """A trial has no record yet."""


def _done(
    technique: Technique,
    context: ComparisonContext,
    budget: Budget,
    settings: TrainSettings,
    trials: Path,
    held: Collection[str],
) -> Share:
    """Return what need not be done again: trainings of full length, scored seeds, and preparations."""
    from tunewise.advice.plan.whole_run import Share

    def read(recipe: Technique, share: float) -> Outcome:
        folder = trials / Trial(recipe, 0, settings, budget.tokens, share).key(context)
        stage, record = read_stage(folder), read_record(folder)
        if stage is not None:
            return Outcome(stage.validation_loss)
        if context.stands(record):
            return Outcome(None, record.reason)
        raise _NotOnDisk

    try:
        recipe, searched = find(technique, budget.search, read, held)
    except _NotOnDisk:
        return Share(trainings=0.0, scorings=0, preparations=0)
    done = Share(
        trainings=budget.search - 1.0 if searched or technique.trains else 0.0,
        scorings=0,
        preparations=preparations(technique, budget.search, held) - 1,
    )
    for seed in range(budget.seeds if technique.seeded else 1):
        record = read_record(trials / Trial(recipe, seed, settings, budget.tokens).key(context))
        final = context.stands(record)
        trained = isinstance(record, FittedTrial) or final
        done = Share(
            trainings=done.trainings + trained,
            scorings=done.scorings + (isinstance(record, FinishedTrial) or final),
            preparations=done.preparations + trained,
        )
    return done
