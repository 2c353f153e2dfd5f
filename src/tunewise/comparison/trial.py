"""Runs one trial: one technique with one setting and one seed is fitted, measured and recorded on disk.

A trial has two halves. Fitting trains, saves the adaptation and takes the validation loss. Finishing scores the test
split once and measures forgetting. Either half is skipped when its result is already on disk. A stage of a search is a
training for a share of a trial's steps, from the start to the end of a schedule of its own. It takes the validation
loss and keeps no adaptation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from tunewise.adaptation import artifact
from tunewise.adaptation.record import given_places
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.preparation import PreparationCost
from tunewise.comparison.search import HALF, QUARTER
from tunewise.comparison.trial_records import (
    read_record,
    read_rung,
    read_stage,
    write_record,
    write_rung,
    write_stage,
)
from tunewise.contract.attachment import Attachment
from tunewise.contract.places import Places
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, DivergedError, TunewiseError
from tunewise.core.progress import PREPARING, PROBING, TRAINING, Progress, as_stage, silent, training_report
from tunewise.core.seeds import generator
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.engine.memory import peak_memory, release_unused_memory
from tunewise.export.format import most_readable
from tunewise.fitting.allowance import allowance
from tunewise.fitting.loop import Trained, steps_for_tokens, train
from tunewise.fitting.scoring import describe, loss, score, study
from tunewise.fitting.settings import TrainSettings, ever_lighter
from tunewise.fitting.source_training import SourceTraining
from tunewise.fitting.trackers import Trackers
from tunewise.results.schema import (
    Cost,
    Curve,
    Finding,
    FinishedTrial,
    FitCost,
    FittedTrial,
    Forgetting,
    Stage,
    Training,
    TrialIdentity,
    TrialRecord,
    TrialScore,
)

_log = logging.getLogger("tunewise")
ANSWERS = 10  # test examples whose answers the report shows


@dataclass(frozen=True)
class Trial:
    """Holds what to run: a recipe, a seed and training settings; `key` covers all that its result depends on.

    Attributes:
        technique: the recipe.
        seed: everything random follows from it.
        settings: how it is trained.
        tokens: training tokens; overrides `settings.max_steps`.
        share: the share of the steps or tokens that is trained; less than 1 is a stage of a search.
    """

    technique: Technique
    seed: int
    settings: TrainSettings
    tokens: int | None = None
    share: float = 1.0

    def key(self, context: ComparisonContext) -> str:
        """Return its folder name: technique, seed, and a hash of base, task, samples, recipe and training settings."""
        facts = {
            "base": context.base.fingerprint,
            "window": context.base.window,
            "task": context.task.fingerprint,
            "metric": context.task.metric,
            "samples": [len(context.validation), len(context.test)],
            "technique": self.technique.to_json(),
            "settings": self.settings.to_json() if self.technique.trains else None,
            "tokens": self.tokens,
            "retention": context.retention.fingerprint if context.retention is not None else None,
            "seed": self.seed,
        }
        if self.technique.chooses and not self.technique.trains:
            facts["allowance"] = [self.settings.max_steps, self.settings.rows]
        if files := self.technique.files_fingerprint(context.task):
            facts["files"] = files
        if context.task.label_list is not None:
            facts["label_list"] = context.task.label_list
        if self.settings.rehearses:
            facts["remembered"] = context.remembered
        if context.probe is not None:
            facts["probe"] = context.probe.fingerprint
        if self.share < 1:
            facts["share"] = self.share
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{self.technique.name}-seed{self.seed}-{digest[:12]}"


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


Result = TypeVar("Result")


def _attempt(
    trial: Trial, context: ComparisonContext, folder: Path, work: Callable[[], Result]
) -> Result | TrialRecord:
    """Do the work of a trial in its folder; return what it gives, or the record of its failure."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with context.running(folder, replace(_identity(trial), trains=trial.technique.trains)):
            return work()
    except Exception as error:  # any error of a technique fails only this trial
        if isinstance(error, OSError) and not isinstance(error, TunewiseError):
            raise  # a full or missing disk fails the whole comparison
        attempt_id = None if isinstance(error, DivergedError) else context.attempt_id
        return TrialRecord.failure(_identity(trial), _failure_reason(error), attempt_id)


def _failure_reason(error: BaseException) -> str:
    """Describe an error in one line; errors that are not tunewise's own keep the name of their type."""
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return f"out of memory, even with one example per pass and gradient checkpointing ({text[:200]})"
    return text if isinstance(error, TunewiseError) else f"{type(error).__name__}: {text[:300]}"


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a device or in this process."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _identity(trial: Trial) -> TrialIdentity:
    return TrialIdentity(
        **trial.technique.to_json(),
        family=trial.technique.family,
        seed=trial.seed,
        learning_rate=getattr(trial.technique, "learning_rate", None),
    )


def _memory_note(requested: TrainSettings, used: TrainSettings) -> str | None:
    """Say which smaller batches a trial was run with, or None if it was run as requested."""
    if used == requested:
        return None
    examples, passes = used.per_device_train_batch_size, used.gradient_accumulation_steps
    checkpointing = used.gradient_checkpointing and not requested.gradient_checkpointing
    return f"out of memory: {examples} examples per pass, {passes} passes per step" + (
        ", with gradient checkpointing" if checkpointing else ""
    )


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
        saved = _saved_attachment(trial, context, target, progress) if fitted is not None else None
        if fitted is not None and saved is not None:
            attachment, record = saved, fitted
        else:
            fit = _fit_within_memory(trial, context, folder, progress)
            attachment, record = fit.attachment, _save(trial, context, fit, folder, progress)
        return _measure_test_split(context, attachment, record, progress) if finish else record
    finally:
        context.base.release()


def _saved_attachment(trial: Trial, context: ComparisonContext, folder: Path, progress: Progress) -> Attachment | None:
    """Load the adaptation of a fitted trial; None, with a warning, if it is damaged or of another trial."""
    progress("loading its adaptation", 0, 0)
    try:
        settings, places = given_places(trial.technique), Places(knowledge=context.task.knowledge)
        adaptation = artifact.load(folder, base=context.base, settings=settings, places=places)
        record = adaptation.record
        if record is None or record.record.get("trial") != json.loads(json.dumps(_identity(trial).to_json())):
            raise ArtifactError(f"{folder} is of another trial")
        if record.text not in (None, context.text):
            raise ArtifactError(f"{folder} was trained on other data")
        return adaptation.attachment
    except ArtifactError as error:
        _log.warning("%s; its trial is run again", str(error).partition("; ")[0])
        context.base.release()
        return None


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


@dataclass(frozen=True)
class _Fit:
    """Holds a training that is over, with its attachment still on the base.

    `settings` are those that memory allowed, and `peak_memory_bytes` is that of preparing and training.
    """

    attachment: Attachment
    settings: TrainSettings
    preparation: PreparationCost
    trained: Trained
    truncated: int
    validation: float
    findings: dict[str, Finding]
    peak_memory_bytes: int
    trackers: Trackers | None = None  # still open, for what is saved


def _fit_within_memory(trial: Trial, context: ComparisonContext, folder: Path, progress: Progress) -> _Fit:
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
        progress(str(_memory_note(trial.settings, rungs[rung + 1])), 0, 0)
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
        PreparationCost(trial=folder.name, tokens=allowed.spent, seconds=seconds, peak_memory_bytes=memory[0])
    )


def _fit_once(
    trial: Trial,
    settings: TrainSettings,
    context: ComparisonContext,
    attachment: Attachment,
    folder: Path,
    progress: Progress,
) -> _Fit:
    """Prepare, train and validate a trial with these settings, for its share of the steps."""
    trackers = None
    if trial.technique.trains:
        logs = folder.parent.parent / "logs"
        trackers = Trackers(context.report_to, logs, folder.name, _identity(trial).to_json())
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
) -> _Fit:
    base, task = context.base, context.task
    preparation = _prepare(trial, settings, context, attachment, folder, progress)
    trained, truncated = Trained(0, 0, 0, 0.0, None), 0
    with peak_memory(base.device) as memory:
        if trial.technique.trains:
            sequences = context.train_sequences(attachment, progress)
            truncated = sum(sequence.truncated for sequence in sequences)
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
    return _Fit(
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


def _steps(trial: Trial, settings: TrainSettings, sequences: list[TokenSequence], attachment: Attachment) -> int:
    """Return the optimiser steps of a trial: its share of all, rounded down, and at least one for each phase."""
    if trial.tokens is not None:
        steps = steps_for_tokens(sequences, settings, trial.seed, max(int(trial.tokens * trial.share), 1))
    else:
        steps = int(settings.max_steps * trial.share)
    return steps if trial.share == 1 else max(steps, attachment.phases)


def _save(trial: Trial, context: ComparisonContext, fit: _Fit, folder: Path, progress: Progress) -> FittedTrial:
    """Save the adaptation of a training that is over, and return its record."""
    identity, attachment, trained = _identity(trial), fit.attachment, fit.trained
    training = Training(
        steps=trained.steps,
        tokens=trained.tokens,
        labelled_tokens=trained.labelled_tokens,
        preparing_tokens=fit.preparation.tokens or None,
        final_loss=trained.final_loss,
        cut=fit.truncated,
        best_step=trained.best_step,
        stopped_early=trained.stopped_early,
    )
    provenance = {"trial": identity.to_json(), "training": training.to_json()}
    progress("saving", 0, 0)
    try:
        artifact.save(attachment, context.task, folder / "adaptation", provenance)
        if fit.trackers is not None:
            fit.trackers.keep(folder / "adaptation")
    finally:
        if fit.trackers is not None:
            fit.trackers.finish()
    artifact_writer.prune(folder, keep=0)
    cost = FitCost(
        train_seconds=fit.preparation.seconds + trained.seconds,
        preparing_seconds=fit.preparation.seconds if fit.preparation.tokens else None,
        evaluation_seconds=trained.evaluation_seconds or None,
        tokens_per_second=trained.tokens / trained.seconds if trained.seconds else 0.0,
        peak_memory_bytes=fit.peak_memory_bytes,
        optimised_parameters=sum(p.numel() for p in attachment.params().values()),
        stored_parameters=sum(t.numel() for t in attachment.state().values()),
        artifact_bytes=artifact.size_on_disk(folder / "adaptation"),
        merges=trial.technique.mergeable,
        swappable=attachment.swappable,
    )
    return identity.extended(
        FittedTrial,
        status="ok",
        reason=None,
        label=attachment.label,
        validation_loss=fit.validation,
        findings=fit.findings,
        training=training,
        curve=_read_curve(folder / "metrics.jsonl", "loss"),
        validation_curve=_read_curve(folder / "metrics.jsonl", "validation_loss") or None,
        packed=why_not_packed(context.base) or True,
        cost=cost,
        memory=_memory_note(trial.settings, fit.settings),
    )


_CURVE_POINTS = 100  # at most, of a learning curve


def _read_curve(path: Path, kind: str) -> Curve:
    """Read (step, loss) of at most a hundred evenly spaced lines with this kind of loss, the last one among them."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    points = [(line["step"], line[kind]) for line in lines if kind in line]
    every = -(-len(points) // _CURVE_POINTS) or 1
    return tuple(points[::-every][::-1])


def _measure_test_split(
    context: ComparisonContext, attachment: Attachment, record: FittedTrial, progress: Progress
) -> FinishedTrial:
    """Score the test split once and measure what was forgotten and how far the model moved."""
    release_unused_memory()  # what training has freed; scoring would be added to it
    with peak_memory(context.base.device) as memory:
        test = score(attachment, context.task, context.test, progress=progress)
    forgetting, forgetting_peak = _measure_forgetting(context, attachment, progress)
    cost = record.cost.extended(
        Cost,
        scoring_peak_memory_bytes=memory[0],
        forgetting_peak_memory_bytes=forgetting_peak,
        seconds_per_example=test.seconds_per_example,
        prompt_tokens=test.prompt_tokens,
    )
    return record.extended(
        FinishedTrial,
        cost=cost,
        score=TrialScore(**describe(test)),
        nll=test.nll,
        per_example=tuple(test.per_example),
        answers=tuple(test.predictions[:ANSWERS]),
        forgetting=forgetting,
        confusion=test.confusion,
        lengths=test.lengths,
        export_format=most_readable(attachment),
    )


def _measure_forgetting(
    context: ComparisonContext, attachment: Attachment, progress: Progress
) -> tuple[Forgetting | None, int | None]:
    """Measure what was forgotten; return it with the peak of memory in bytes, both None if it is not to be measured.

    The base's own row is 0 by definition: it would be the base's passes over the same text once more.
    """
    if context.retention is None:
        return None, None
    release_unused_memory()
    with peak_memory(context.base.device) as memory:
        if not attachment.recipe.adapts:
            forgetting = Forgetting(nll_rise=0.0, nll_rise_low=0.0, nll_rise_high=0.0, kl=0.0, kl_task=0.0)
        else:
            retained = context.retention.compare(attachment, progress)
            kl_task, weight_change = _distances_from_base(attachment, context, progress)
            forgetting = Forgetting(
                nll_rise=retained["nll_rise"],
                nll_rise_low=retained["nll_rise_low"],
                nll_rise_high=retained["nll_rise_high"],
                kl=retained["kl"],
                kl_task=kl_task,
                weight_change=weight_change,
            )
        if context.probe is not None:
            probed = context.probe.score(attachment, context.task, as_stage(progress, PROBING))
            forgetting = replace(forgetting, probe=probed)
    return forgetting, memory[0]


def _distances_from_base(
    attachment: Attachment, context: ComparisonContext, progress: Progress
) -> tuple[float | None, float | None]:
    """Return KL(base || adapted) where the task's answers are predicted, and ||W - W_0|| / ||W_0||.

    Each is None where it was not measured; the second one also where the weights are not changed.
    """
    kl_task = context.on_task.divergence(attachment, context.task, progress) if context.on_task is not None else None
    distance = attachment.moved()
    return kl_task, distance / context.norm if distance is not None else None
