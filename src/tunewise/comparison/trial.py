"""Runs one trial: one technique with one setting and one seed is fitted, measured and recorded on disk.

A trial has two halves. Fitting trains, saves the adaptation and takes the validation loss. Finishing scores the test
split once and measures forgetting. A search fits many trials and finishes only its winner. Either half is skipped when
its result is already on disk.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, overload

import torch

from tunewise.adaptation import artifact
from tunewise.comparison.context import ComparisonContext
from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import DivergedError, TunewiseError
from tunewise.core.progress import Progress, silent
from tunewise.core.seeds import generator
from tunewise.engine.forward import why_not_packed
from tunewise.engine.memory import peak_memory, release_unused_memory
from tunewise.fitting.loop import Trained, steps_for_tokens, train
from tunewise.fitting.scoring import describe, loss, score, study
from tunewise.fitting.settings import TrainSettings, ever_lighter
from tunewise.fitting.trackers import Trackers
from tunewise.results.schema import (
    LIMIT_BYTES,
    Cost,
    Curve,
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

ANSWERS = 10  # test examples whose answers the report shows


@dataclass(frozen=True)
class Trial:
    """Holds what to run: a recipe, a seed and training settings; `key` covers all that its result depends on."""

    technique: Technique
    seed: int
    settings: TrainSettings
    tokens: int | None = None  # training tokens; overrides settings.max_steps

    def key(self, context: ComparisonContext) -> str:
        """Return its folder name: technique, seed, and a hash of base, task, samples, recipe and training settings."""
        facts = {
            "base": context.base.fingerprint,
            "window": context.base.window,
            "task": context.task.fingerprint,
            "metric": context.task.metric,
            "samples": [len(context.validation), len(context.test)],
            "technique": self.technique.to_json(),
            "settings": asdict(self.settings) if self.technique.trains else None,
            "tokens": self.tokens,
            "retention": context.retention.fingerprint if context.retention is not None else None,
            "seed": self.seed,
        }
        if files := self.technique.files_fingerprint(context.task):
            facts["files"] = files
        if self.settings.rehearses:
            facts["remembered"] = context.remembered
        if context.probe is not None:
            facts["probe"] = context.probe.fingerprint
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{self.technique.name}-seed{self.seed}-{digest[:12]}"


@overload
def run(
    trial: Trial,
    context: ComparisonContext,
    trials: Path,
    *,
    finish: bool,
    until: None = None,
    progress: Progress = silent,
) -> TrialRecord: ...


@overload
def run(
    trial: Trial,
    context: ComparisonContext,
    trials: Path,
    *,
    finish: Literal[False],
    until: float,
    progress: Progress = silent,
) -> TrialRecord | Stage: ...


def run(
    trial: Trial,
    context: ComparisonContext,
    trials: Path,
    *,
    finish: bool,
    until: float | None = None,
    progress: Progress = silent,
) -> TrialRecord | Stage:
    """Run a trial, or read its record if it is already on disk. A failure is a record too, with its reason.

    Args:
        trial: what to run.
        context: what the trials of the comparison share.
        trials: the folder that holds one folder per trial.
        finish: also score the test split and measure forgetting.
        until: stop training after this share of the steps and return the stage reached; a later call resumes there.
        progress: is told the loss of each step.

    Raises:
        OSError: the disk is full or gone; every other error of a trial becomes its record.
    """
    folder = trials / trial.key(context)
    path = folder / "trial.json"
    stages = _read_stages(folder)
    if until is not None and str(until) in stages:  # first, so that a search continued later sees what it saw before
        return stages[str(until)]
    record = _read_record(path)
    if isinstance(record, FinishedTrial if finish else FittedTrial) or context.stands(record):
        return record
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    outcome: TrialRecord | Stage
    try:
        with context.running(folder, replace(_identity(trial), trains=trial.technique.trains)):
            fitted = record if isinstance(record, FittedTrial) else None
            outcome = _load_or_fit(trial, context, folder, fitted, finish, until, progress)
    except Exception as error:  # any error of a technique fails only this trial
        if isinstance(error, OSError) and not isinstance(error, TunewiseError):
            raise  # a full or missing disk fails the whole comparison
        attempt_id = None if isinstance(error, DivergedError) else context.attempt_id
        outcome = TrialRecord.failure(_identity(trial), _failure_reason(error), attempt_id)
    if isinstance(outcome, Stage):
        return outcome
    outcome = replace(outcome, seconds=(outcome.seconds or 0.0) + time.perf_counter() - started)
    artifact_writer.write_json(path, outcome.to_json())
    return outcome


def _read_record(path: Path) -> TrialRecord | None:
    if not path.is_file():
        return None
    return TrialRecord.from_json(artifact_writer.read_json(path, limit_bytes=LIMIT_BYTES), path)


def _read_stages(folder: Path) -> dict[str, Stage]:
    path = folder / "stages.json"
    stages = artifact_writer.read_json(path) if path.is_file() else {}
    return {share: Stage.from_json(stage, path) for share, stage in stages.items()}


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
    until: float | None,
    progress: Progress,
) -> FittedTrial | Stage:
    """Load the adaptation of a fitted trial or fit it, then score it if it is to be finished."""
    target = folder / "adaptation"
    try:
        context.measure_bare(trial.settings)
        record: FittedTrial | Stage
        if fitted is not None and target.is_dir():
            attachment, record = artifact.load(target, base=context.base).attachment, fitted
        else:
            attachment, record = _fit_within_memory(trial, context, folder, until, progress)
        if finish and isinstance(record, FittedTrial):
            record = _measure_test_split(context, attachment, record, progress)
        return record
    finally:
        context.base.release()


def _fit_within_memory(
    trial: Trial, context: ComparisonContext, folder: Path, until: float | None, progress: Progress
) -> tuple[Attachment, FittedTrial | Stage]:
    """Fit a trial, with smaller batches each time that memory runs out.

    The rung of `ever_lighter` that is tried is written to `memory.json`, so that a restarted process begins there.
    """
    note = folder / "memory.json"
    start = artifact_writer.read_json(note)["rung"] if note.is_file() else 0
    rungs = list(ever_lighter(trial.settings))
    for rung, settings in enumerate(rungs[start:], start):
        release_unused_memory()
        attachment = trial.technique.attach(context.base, generator(trial.seed, "attach"))
        try:
            record = _fit_once(trial, settings, context, attachment, folder, until, progress)
            shortage = _memory_note(trial.settings, settings)
            return attachment, replace(record, memory=shortage) if isinstance(record, FittedTrial) else record
        except Exception as error:
            if not out_of_memory(error) or not trial.technique.trains or rung + 1 == len(rungs):
                raise
        context.base.release()
        del attachment
        artifact_writer.prune(folder, keep=0)  # checkpoints of other batch sizes cannot be resumed
        artifact_writer.write_json(note, {"rung": rung + 1})
        progress(str(_memory_note(trial.settings, rungs[rung + 1])), 0, 0)
    raise MemoryError("the operating system killed its process")


def _fit_once(
    trial: Trial,
    settings: TrainSettings,
    context: ComparisonContext,
    attachment: Attachment,
    folder: Path,
    until: float | None,
    progress: Progress,
) -> FittedTrial | Stage:
    """Train, validate and save a trial with these settings; with `until`, stop at that share of the steps."""
    base, task, identity = context.base, context.task, _identity(trial)
    trained = Trained(0, 0, 0, 0.0, None)
    truncated = 0
    with peak_memory(base.device, context.held_bytes) as memory:
        started = time.perf_counter()
        attachment.prepare(study(attachment, task, context.validation, trial.seed, progress))
        seconds = time.perf_counter() - started
        if trial.technique.trains:
            sequences = context.train_sequences(attachment)
            truncated = sum(sequence.truncated for sequence in sequences)
            steps = settings.max_steps
            if trial.tokens is not None:
                steps = steps_for_tokens(sequences, settings, trial.seed, trial.tokens)
            trackers = Trackers(context.report_to, folder.parent.parent / "logs", folder.name, identity.to_json())

            def on_step(step: int, value: float) -> None:
                progress(f"loss {value:.3f}", step, steps)
                trackers.log({"loss": value}, step)

            try:
                trained = train(
                    attachment,
                    sequences,
                    replace(settings, max_steps=steps),
                    seed=trial.seed,
                    folder=folder,
                    resume=True,
                    until=max(int(steps * until), 1) if until is not None else None,
                    on_step=on_step,
                    rehearsal=context.rehearsal,
                )
            finally:
                trackers.finish()
            seconds += trained.seconds
        validation = loss(attachment, task, context.validation)
        if until is not None and trial.technique.trains and trained.steps < steps:
            return _write_stage(context, attachment, folder, until, trained, validation)
        findings = attachment.findings(lambda: loss(attachment, task, context.validation))
    training = Training(
        steps=trained.steps,
        tokens=trained.tokens,
        labelled_tokens=trained.labelled_tokens,
        final_loss=trained.final_loss,
        cut=truncated,
    )
    provenance = {"trial": identity.to_json(), "training": training.to_json()}
    artifact.save(attachment, task, folder / "adaptation", provenance)
    artifact_writer.prune(folder, keep=0)
    files = [file for file in (folder / "adaptation").iterdir() if file.name in _ARTIFACT_FILES]
    cost = FitCost(
        train_seconds=seconds,
        tokens_per_second=trained.tokens / trained.seconds if trained.seconds else 0.0,
        peak_memory_bytes=memory[0],
        optimised_parameters=sum(p.numel() for p in attachment.params().values()),
        stored_parameters=sum(t.numel() for t in attachment.state().values()),
        artifact_bytes=sum(file.stat().st_size for file in files),
        merges=trial.technique.mergeable,
        swappable=attachment.swappable,
    )
    return identity.extended(
        FittedTrial,
        status="ok",
        reason=None,
        label=attachment.label,
        validation_loss=validation,
        findings=findings,
        training=training,
        curve=_read_curve(folder / "metrics.jsonl"),
        packed=why_not_packed(base) or True,
        cost=cost,
    )


_ARTIFACT_FILES = ("adaptation.json", "weights.safetensors", "rows.jsonl")
_CURVE_POINTS = 100  # at most, of a learning curve


def _write_stage(
    context: ComparisonContext, attachment: Attachment, folder: Path, share: float, trained: Trained, validation: float
) -> Stage:
    """Record what is known of a partly trained trial beside its checkpoint, and return it."""
    stage = Stage(
        steps=trained.steps,
        tokens=trained.tokens,
        seconds=trained.seconds,
        validation_loss=validation,
        nll_rise=context.retention.compare(attachment)["nll_rise"] if context.retention is not None else None,
    )
    stages = {**_read_stages(folder), str(share): stage}
    artifact_writer.write_json(folder / "stages.json", {share: stage.to_json() for share, stage in stages.items()})
    return stage


def _read_curve(path: Path) -> Curve:
    """Read (step, training loss) of at most a hundred evenly spaced steps, the last one among them."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    every = -(-len(points) // _CURVE_POINTS) or 1
    return tuple(points[::-every][::-1])


def _measure_test_split(
    context: ComparisonContext, attachment: Attachment, record: FittedTrial, progress: Progress
) -> FinishedTrial:
    """Score the test split once and measure what was forgotten and how far the model moved."""
    with peak_memory(context.base.device, context.held_bytes) as memory:
        test = score(attachment, context.task, context.test, progress=progress)
    forgetting: Forgetting | None = None
    if context.retention is not None:
        retained = context.retention.compare(attachment)
        kl_task, weight_change = _distances_from_base(attachment, context)
        forgetting = Forgetting(
            nll_rise=retained["nll_rise"],
            nll_rise_low=retained["nll_rise_low"],
            nll_rise_high=retained["nll_rise_high"],
            kl=retained["kl"],
            kl_task=kl_task,
            weight_change=weight_change,
        )
    if forgetting is not None and context.probe is not None:
        probe = score(
            attachment,
            context.probe,
            context.probed,
            progress=lambda what, done, total: progress("probing", done, total),
            as_given=True,
        )
        forgetting = replace(forgetting, probe=probe.mean)
    cost = record.cost.extended(
        Cost,
        scoring_peak_memory_bytes=memory[0],
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
    )


def _distances_from_base(attachment: Attachment, context: ComparisonContext) -> tuple[float | None, float | None]:
    """Return KL(base || adapted) where the task's answers are predicted, and ||W - W_0|| / ||W_0||.

    Each is None where it was not measured; the second one also where the weights are not changed.
    """
    kl_task = context.on_task.divergence(attachment, context.task) if context.on_task is not None else None
    distance = attachment.moved()
    return kl_task, distance / context.norm if distance is not None else None
