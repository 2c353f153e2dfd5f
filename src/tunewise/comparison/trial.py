"""One technique, one setting, one seed: fitted, measured and written down.

A trial has two halves. `fit` trains, saves the adaptation and takes the validation loss; `finish` scores the test
split, once, and what was forgotten. A search fits many trials and finishes its winners alone; either half is skipped
when its result is already on disk.
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

ANSWERS = 10  # test examples whose answers are kept to be shown


@dataclass(frozen=True)
class Trial:
    """What is to be run; `key` names it by everything that its result depends on."""

    technique: Technique
    seed: int
    settings: TrainSettings
    tokens: int | None = None  # training tokens; overrides settings.max_steps

    def key(self, context: ComparisonContext) -> str:
        """Folder name: technique, seed, and a hash of base, task, samples, recipe and training settings."""
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
    report: Progress = silent,
) -> TrialRecord: ...


@overload
def run(
    trial: Trial,
    context: ComparisonContext,
    trials: Path,
    *,
    finish: Literal[False],
    until: float,
    report: Progress = silent,
) -> TrialRecord | Stage: ...


def run(
    trial: Trial,
    context: ComparisonContext,
    trials: Path,
    *,
    finish: bool,
    until: float | None = None,
    report: Progress = silent,
) -> TrialRecord | Stage:
    """Run a trial, or read its record where it is on disk already. A failure is a record too, with its reason.

    With `until`, training stops after that share of the steps: the stage there is returned, and a later call goes on.
    """
    folder = trials / trial.key(context)
    path = folder / "trial.json"
    record = _recorded(path)
    if isinstance(record, FinishedTrial if finish else FittedTrial) or context.stands(record):
        return record
    stages = _stages(folder)
    if until is not None and str(until) in stages:
        return stages[str(until)]
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    outcome: TrialRecord | Stage
    try:
        with context.running(folder, replace(_identity(trial), trains=trial.technique.trains)):
            before = record if isinstance(record, FittedTrial) else None
            outcome = _run(trial, context, folder, before, finish, until, report)
    except Exception as error:  # whatever it is, it costs this trial alone
        if isinstance(error, OSError) and not isinstance(error, TunewiseError):
            raise  # a full or vanished disk fails the comparison, not the technique
        life = None if isinstance(error, DivergedError) else context.life
        outcome = TrialRecord.failure(_identity(trial), _reason(error), life)
    if isinstance(outcome, Stage):
        return outcome
    outcome = replace(outcome, seconds=(outcome.seconds or 0.0) + time.perf_counter() - begun)
    artifact_writer.write_json(path, outcome.to_json())
    return outcome


def _recorded(path: Path) -> TrialRecord | None:
    if not path.is_file():
        return None
    return TrialRecord.from_json(artifact_writer.read_json(path, limit_bytes=LIMIT_BYTES), path)


def _stages(folder: Path) -> dict[str, Stage]:
    path = folder / "stages.json"
    stages = artifact_writer.read_json(path) if path.is_file() else {}
    return {share: Stage.from_json(stage, path) for share, stage in stages.items()}


def _reason(error: BaseException) -> str:
    """One line; what is not our own error keeps its type's name."""
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return f"out of memory, even one example at a time with recomputed activations ({text[:200]})"
    return text if isinstance(error, TunewiseError) else f"{type(error).__name__}: {text[:300]}"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or in this process."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _identity(trial: Trial) -> TrialIdentity:
    return TrialIdentity(
        **trial.technique.to_json(),
        family=trial.technique.family,
        seed=trial.seed,
        learning_rate=getattr(trial.technique, "learning_rate", None),
    )


def _memory_note(wanted: TrainSettings, used: TrainSettings) -> str | None:
    """Say what a trial was run with in place of what was wanted, or None where that is the same."""
    if used == wanted:
        return None
    rows, passes = used.per_device_train_batch_size, used.gradient_accumulation_steps
    again = used.gradient_checkpointing and not wanted.gradient_checkpointing
    return f"out of memory: {rows} examples a pass, {passes} passes a step" + (
        ", activations computed again" if again else ""
    )


def _run(
    trial: Trial,
    context: ComparisonContext,
    folder: Path,
    before: FittedTrial | None,
    finish: bool,
    until: float | None,
    report: Progress,
) -> FittedTrial | Stage:
    target = folder / "adaptation"
    try:
        context.measure_bare(trial.settings)
        record: FittedTrial | Stage
        if before is not None and target.is_dir():
            attachment, record = artifact.load(target, base=context.base).attachment, before
        else:
            attachment, record = _fitted(trial, context, folder, until, report)
        if finish and isinstance(record, FittedTrial):
            record = _finish(context, attachment, record, report)
        return record
    finally:
        context.base.release()


def _fitted(
    trial: Trial, context: ComparisonContext, folder: Path, until: float | None, report: Progress
) -> tuple[Attachment, FittedTrial | Stage]:
    """Trained, with as little memory as it takes; where memory ran out before, there it begins."""
    note = folder / "memory.json"
    start = artifact_writer.read_json(note)["rung"] if note.is_file() else 0
    rungs = list(ever_lighter(trial.settings))
    for rung, settings in enumerate(rungs[start:], start):
        release_unused_memory()
        attachment = trial.technique.attach(context.base, generator(trial.seed, "attach"))
        try:
            record = _fit(trial, settings, context, attachment, folder, until, report)
            shortage = _memory_note(trial.settings, settings)
            return attachment, replace(record, memory=shortage) if isinstance(record, FittedTrial) else record
        except Exception as error:
            if not out_of_memory(error) or not trial.technique.trains or rung + 1 == len(rungs):
                raise
        context.base.release()
        del attachment
        artifact_writer.prune(folder, keep=0)  # other settings go another way from the start
        artifact_writer.write_json(note, {"rung": rung + 1})
        report(str(_memory_note(trial.settings, rungs[rung + 1])), 0, 0)
    raise MemoryError("the system killed its process")


def _fit(
    trial: Trial,
    settings: TrainSettings,
    context: ComparisonContext,
    attachment: Attachment,
    folder: Path,
    until: float | None,
    report: Progress,
) -> FittedTrial | Stage:
    base, task, identity = context.base, context.task, _identity(trial)
    done = Trained(0, 0, 0, 0.0, None)
    cut = 0
    with peak_memory(base.device, context.held_bytes) as memory:
        started = time.perf_counter()
        attachment.prepare(study(attachment, task, context.validation, trial.seed, report))
        seconds = time.perf_counter() - started
        if trial.technique.trains:
            sequences = context.train_sequences(attachment)
            cut = sum(sequence.truncated for sequence in sequences)
            steps = settings.max_steps
            if trial.tokens is not None:
                steps = steps_for_tokens(sequences, settings, trial.seed, trial.tokens)
            trackers = Trackers(context.report_to, folder.parent.parent / "logs", folder.name, identity.to_json())

            def on_step(step: int, value: float) -> None:
                report(f"loss {value:.3f}", step, steps)
                trackers.log({"loss": value}, step)

            try:
                done = train(
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
            seconds += done.seconds
        validation = loss(attachment, task, context.validation)
        if until is not None and trial.technique.trains and done.steps < steps:
            return _stage(context, attachment, folder, until, done, validation)
        findings = attachment.findings(lambda: loss(attachment, task, context.validation))
    training = Training(
        steps=done.steps,
        tokens=done.tokens,
        labelled_tokens=done.labelled_tokens,
        final_loss=done.final_loss,
        cut=cut,
    )
    made = {"trial": identity.to_json(), "training": training.to_json()}
    artifact.save(attachment, task, folder / "adaptation", made)
    artifact_writer.prune(folder, keep=0)
    weights = sum(file.stat().st_size for file in (folder / "adaptation").iterdir() if file.name in _OWN_FILES)
    cost = FitCost(
        train_seconds=seconds,
        tokens_per_second=done.tokens / done.seconds if done.seconds else 0.0,
        peak_memory_bytes=memory[0],
        optimised_parameters=sum(p.numel() for p in attachment.params().values()),
        stored_parameters=sum(t.numel() for t in attachment.state().values()),
        artifact_bytes=weights,
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
        curve=_curve(folder / "metrics.jsonl"),
        packed=why_not_packed(base) or True,
        cost=cost,
    )


_OWN_FILES = ("adaptation.json", "weights.safetensors", "rows.jsonl")
_POINTS = 100  # of a learning curve


def _stage(
    context: ComparisonContext, attachment: Attachment, folder: Path, share: float, done: Trained, validation: float
) -> Stage:
    """What is known of a trial that is not over, written beside its checkpoint."""
    stage = Stage(
        steps=done.steps,
        tokens=done.tokens,
        seconds=done.seconds,
        validation_loss=validation,
        nll_rise=context.retention.compare(attachment)["nll_rise"] if context.retention is not None else None,
    )
    stages = {**_stages(folder), str(share): stage}
    artifact_writer.write_json(folder / "stages.json", {name: each.to_json() for name, each in stages.items()})
    return stage


def _curve(path: Path) -> Curve:
    """(step, training loss) of at most a hundred steps, the last among them."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    every = -(-len(points) // _POINTS) or 1
    return tuple(points[::-every][::-1])


def _finish(context: ComparisonContext, attachment: Attachment, record: FittedTrial, report: Progress) -> FinishedTrial:
    with peak_memory(context.base.device, context.held_bytes) as memory:
        found = score(attachment, context.task, context.test, progress=report)
    forgetting: Forgetting | None = None
    if context.retention is not None:
        left = context.retention.compare(attachment)
        kl_task, weight_change = moved(attachment, context)
        forgetting = Forgetting(
            nll_rise=left["nll_rise"],
            nll_rise_low=left["nll_rise_low"],
            nll_rise_high=left["nll_rise_high"],
            kl=left["kl"],
            kl_task=kl_task,
            weight_change=weight_change,
        )
    if forgetting is not None and context.probe is not None:
        found_again = score(
            attachment,
            context.probe,
            context.probed,
            progress=lambda what, done, total: report("probing", done, total),
            as_given=True,
        )
        forgetting = replace(forgetting, probe=found_again.mean)
    cost = record.cost.extended(
        Cost,
        scoring_peak_memory_bytes=memory[0],
        seconds_per_example=found.seconds_per_example,
        prompt_tokens=found.prompt_tokens,
    )
    return record.extended(
        FinishedTrial,
        cost=cost,
        score=TrialScore(**describe(found)),
        nll=found.nll,
        per_example=tuple(found.per_example),
        answers=tuple(found.predictions[:ANSWERS]),
        forgetting=forgetting,
    )


def moved(attachment: Attachment, context: ComparisonContext) -> tuple[float | None, float | None]:
    """Say how far the answers' distribution moved on the task, and the weights, ||W - W_0|| / ||W_0||, if they did."""
    kl = context.on_task.divergence(attachment, context.task) if context.on_task is not None else None
    distance = attachment.moved()
    return kl, distance / context.norm if distance is not None else None
