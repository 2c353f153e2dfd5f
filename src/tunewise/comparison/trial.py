"""Runs one trial: one technique with one setting and one seed is fitted, measured and recorded on disk.

A trial has two halves. Fitting trains, saves the adaptation and takes the validation loss. Finishing scores the test
split once and measures forgetting. Either half is skipped when its result is already on disk. A stage of a search is a
training for a share of a trial's steps, from the start to the end of a schedule of its own. It takes the validation
loss and keeps no adaptation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.preparation import PreparationCost
from tunewise.comparison.search import HALF, QUARTER
from tunewise.comparison.trial_fit import Fit, memory_note, save_fit, saved_attachment
from tunewise.comparison.trial_identity import Trial, identity_of
from tunewise.comparison.trial_measures import measure_test_split
from tunewise.comparison.trial_records import (
    read_record,
    read_rung,
    read_stage,
    write_record,
    write_rung,
    write_stage,
)
from tunewise.contract.attachment import Attachment
from tunewise.core import artifact_writer
from tunewise.core.errors import DivergedError, TunewiseError
from tunewise.core.progress import PREPARING, TRAINING, Progress, silent, training_report
from tunewise.core.seeds import generator
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.memory import peak_memory, release_unused_memory
from tunewise.engine.row_file import truncated_of
from tunewise.fitting.allowance import allowance
from tunewise.fitting.loop import Trained, train
from tunewise.fitting.row_order import steps_for_tokens
from tunewise.fitting.scoring import loss, study
from tunewise.fitting.settings import TrainSettings, ever_lighter
from tunewise.fitting.source_training import SourceTraining
from tunewise.fitting.trackers import Trackers
from tunewise.results.schema import (
    FinishedTrial,
    FittedTrial,
    Stage,
    TrialRecord,
)


def run(
    trial: Trial, context: ComparisonContext, trials: Path, *, finish: bool, progress: Progress = silent
) -> TrialRecord:
    """Run a whole trial, or read its record if it is already on disk. A failure is a record too, with its reason.

    Args:
        trial: what to run.
        context: what the trials of the comparison share.
        trials: the folder that holds one folder per trial.
        finish: also score the test split and measure forgetting.
        progress: is told the loss of each step.

    Raises:
        OSError: the disk is full or gone; every other error of a trial becomes its record.
    """
    folder = trials / trial.key(context)
    record = read_record(folder)
    if isinstance(record, FinishedTrial if finish else FittedTrial) or context.stands(record):
        return record
    fitted = record if isinstance(record, FittedTrial) else None
    started = time.perf_counter()
    outcome = _attempt(trial, context, folder, lambda: _load_or_fit(trial, context, folder, fitted, finish, progress))
    outcome = replace(outcome, seconds=(outcome.seconds or 0.0) + time.perf_counter() - started)
    write_record(folder, outcome)
    return outcome


def run_stage(
    trial: Trial, context: ComparisonContext, trials: Path, progress: Progress = silent
) -> Stage | TrialRecord:
    """Run a stage of a search, or read its result if it is already on disk; a failure is a record with its reason.

    Args:
        trial: what to run, with a share of less than 1.
        context: what the trials of the comparison share.
        trials: the folder that holds one folder per trial.
        progress: is told the loss of each step.

    Raises:
        OSError: the disk is full or gone; every other error becomes a record.
    """
    folder = trials / trial.key(context)
    known = read_stage(folder)
    if known is not None:
        return known
    record = read_record(folder)
    if context.stands(record):
        return record
    outcome = _attempt(trial, context, folder, lambda: _fit_stage(trial, context, folder, progress))
    if isinstance(outcome, Stage):
        write_stage(folder, outcome)
        artifact_writer.prune(folder, keep=0)  # nothing is trained on from a stage
    else:
        write_record(folder, outcome)
    return outcome


def known_result(trial: Trial, context: ComparisonContext, folder: Path) -> Stage | TrialRecord | None:
    """Return what is on disk of a stage or of a whole trial that need not be run; None if it must be."""
    stage = read_stage(folder) if trial.share < 1 else None
    if stage is not None:
        return stage
    record = read_record(folder)
    return record if isinstance(record, FinishedTrial) or context.stands(record) else None


Result = TypeVar("Result")


def _attempt(
    trial: Trial, context: ComparisonContext, folder: Path, work: Callable[[], Result]
) -> Result | TrialRecord:
    """Do the work of a trial in its folder; return what it gives, or the record of its failure."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with context.running(folder, replace(identity_of(trial), trains=trial.technique.trains)):
            return work()
    except Exception as error:  # any error of a technique fails only this trial
        if isinstance(error, OSError) and not isinstance(error, TunewiseError):
            raise  # a full or missing disk fails the whole comparison
        attempt_id = None if isinstance(error, DivergedError) else context.attempt_id
        return TrialRecord.failure(identity_of(trial), _failure_reason(error), attempt_id)


def _failure_reason(error: BaseException) -> str:
    """Describe an error in one line; errors that are not tunewise's own keep the name of their type."""
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return f"out of memory, even with one example per pass and gradient checkpointing ({text[:200]})"
    return text if isinstance(error, TunewiseError) else f"{type(error).__name__}: {text[:300]}"


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a device or in this process."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _load_or_fit(
    trial: Trial,
    context: ComparisonContext,
    folder: Path,
    fitted: FittedTrial | None,
    finish: bool,
    progress: Progress,
) -> FittedTrial:
    """Load the adaptation of a fitted trial or fit it, then score it if it is to be finished."""
    target = folder / "adaptation"
    try:
        if trial.technique.adapts:
            context.measure_bare(trial.settings, progress)
        saved = saved_attachment(trial, context, target, progress) if fitted is not None else None
        if fitted is not None and saved is not None:
            attachment, record = saved, fitted
        else:
            fit = _fit_within_memory(trial, context, folder, progress)
            attachment, record = fit.attachment, save_fit(trial, context, fit, folder, progress)
        return measure_test_split(context, attachment, record, progress) if finish else record
    finally:
        context.base.release()


def _fit_stage(trial: Trial, context: ComparisonContext, folder: Path, progress: Progress) -> Stage:
    """Train for the trial's share of the steps, and return what is known then."""
    try:
        context.measure_bare(trial.settings, progress)
        fit = _fit_within_memory(trial, context, folder, progress)
        if fit.trackers is not None:
            fit.trackers.finish()  # nothing is saved
        attachment, retention, preparation = fit.attachment, context.retention, fit.preparation
        prepares = preparation.tokens > 0 and preparation.trial == folder.name
        return Stage(
            steps=fit.trained.steps,
            tokens=fit.trained.tokens,
            seconds=fit.trained.seconds,
            preparing_tokens=preparation.tokens if prepares else None,
            preparing_seconds=preparation.seconds if prepares else None,
            validation_loss=fit.validation,
            nll_rise=retention.nll_rise(attachment) if retention is not None else None,
        )
    finally:
        context.base.release()


def _fit_within_memory(trial: Trial, context: ComparisonContext, folder: Path, progress: Progress) -> Fit:
    """Fit a trial, with smaller batches each time that memory runs out.

    The rung of `ever_lighter` that is tried is written down, so that a restarted process begins there, and so does a
    trial whose stages needed it.
    """
    stages = [replace(trial, share=share) for share in (QUARTER, HALF) if share < trial.share]
    start = max(read_rung(path) for path in (folder, *(folder.parent / stage.key(context) for stage in stages)))
    rungs = list(ever_lighter(trial.settings))
    for rung, settings in enumerate(rungs[start:], start):
        release_unused_memory()
        progress(PREPARING, 0, 0)
        attachment = trial.technique.attach(context.base, generator(trial.seed, "attach"))
        try:
            return _fit_once(trial, settings, context, attachment, folder, progress)
        except Exception as error:
            if not out_of_memory(error) or not trial.technique.trains or rung + 1 == len(rungs):
                raise
        context.base.release()
        del attachment
        artifact_writer.prune(folder, keep=0)  # checkpoints of other batch sizes cannot be resumed
        write_rung(folder, rung + 1)
        progress(str(memory_note(trial.settings, rungs[rung + 1])), 0, 0)
    raise MemoryError("the operating system killed its process")


def _prepare(
    trial: Trial,
    settings: TrainSettings,
    context: ComparisonContext,
    attachment: Attachment,
    folder: Path,
    progress: Progress,
) -> PreparationCost:
    """Prepare an attachment; return what that took, or took the training that first read the same."""
    base, task = context.base, context.task
    facts = {
        "base": base.fingerprint,
        "task": task.fingerprint,
        "samples": len(context.validation),
        "preparation": trial.technique.preparation(),
        "files": trial.technique.files_fingerprint(task),
        "seed": trial.seed,
        "settings": settings.to_json(),
        "tokens": trial.tokens,
        "label_list": task.label_list,
    }
    preparation = context.preparations.of(facts, folder.parent, trial.technique.name)
    allowed = allowance(base, task, settings, trial.tokens)
    with peak_memory(base.device) as memory:
        started = time.perf_counter()
        attachment.prepare(
            study(
                attachment,
                task,
                context.validation,
                trial.seed,
                progress,
                allowed,
                SourceTraining(settings, preparation.folder),
                preparation.readings,
            )
        )
        seconds = time.perf_counter() - started
    return preparation.cost(
        PreparationCost(
            trial=preparation.maker or folder.name, tokens=allowed.spent, seconds=seconds, peak_memory_bytes=memory[0]
        )
    )


def _fit_once(
    trial: Trial,
    settings: TrainSettings,
    context: ComparisonContext,
    attachment: Attachment,
    folder: Path,
    progress: Progress,
) -> Fit:
    """Prepare, train and validate a trial with these settings, for its share of the steps."""
    trackers = None
    if trial.technique.trains:
        logs = folder.parent.parent / "logs"
        trackers = Trackers(context.report_to, logs, folder.name, identity_of(trial).to_json())
    try:
        return _fit_tracked(trial, settings, context, attachment, folder, progress, trackers)
    except BaseException:
        if trackers is not None:
            trackers.finish()
        raise


def _fit_tracked(
    trial: Trial,
    settings: TrainSettings,
    context: ComparisonContext,
    attachment: Attachment,
    folder: Path,
    progress: Progress,
    trackers: Trackers | None,
) -> Fit:
    base, task = context.base, context.task
    preparation = _prepare(trial, settings, context, attachment, folder, progress)
    trained, truncated = Trained(0, 0, 0, 0.0, None), 0
    with peak_memory(base.device) as memory:
        if trial.technique.trains:
            sequences = context.train_sequences(attachment, progress)
            truncated = truncated_of(sequences)
            steps = _steps(trial, settings, sequences, attachment)

            def on_step(step: int, value: float) -> None:
                progress(training_report(value), step, steps)
                if trackers is not None:
                    trackers.log({"loss": value}, step)

            scheduled = replace(settings, max_steps=steps)
            evaluated = context.validation[: scheduled.evaluated_examples(len(context.validation))]
            progress(TRAINING, 0, steps)
            trained = train(
                attachment,
                sequences,
                scheduled,
                seed=trial.seed,
                folder=folder,
                resume=True,
                on_step=on_step,
                evaluate=lambda: loss(attachment, task, evaluated),
                rehearsal=context.rehearsal,
                text=context.text,
            )
        validation = loss(attachment, task, context.validation, progress)
        whole = trial.share == 1
        findings = attachment.findings(lambda: loss(attachment, task, context.validation, progress)) if whole else {}
    return Fit(
        attachment,
        settings,
        preparation,
        trained,
        truncated,
        validation,
        findings,
        max(memory[0], preparation.peak_memory_bytes),
        trackers,
    )


def _steps(trial: Trial, settings: TrainSettings, sequences: Sequence[TokenSequence], attachment: Attachment) -> int:
    """Return the optimiser steps of a trial: its share of all, rounded down, and at least one for each phase."""
    if trial.tokens is not None:
        steps = steps_for_tokens(sequences, settings, trial.seed, max(int(trial.tokens * trial.share), 1))
    else:
        steps = int(settings.max_steps * trial.share)
    return steps if trial.share == 1 else max(steps, attachment.phases)
