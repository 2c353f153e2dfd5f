"""Holds a training of a trial that is over, saves its adaptation, and loads it again."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from tunewise.adaptation import artifact
from tunewise.adaptation.record import given_places
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.preparation import PreparationCost
from tunewise.comparison.trial_identity import Trial, identity_of
from tunewise.contract.attachment import Attachment
from tunewise.contract.places import Places
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.core.progress import Progress
from tunewise.engine.forward import why_not_packed
from tunewise.fitting.loop import Trained
from tunewise.fitting.settings import TrainSettings
from tunewise.fitting.trackers import Trackers
from tunewise.results.schema import Curve, Finding, FitCost, FittedTrial, Training

_log = logging.getLogger("tunewise")


@dataclass(frozen=True)
class Fit:
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


def memory_note(requested: TrainSettings, used: TrainSettings) -> str | None:
    """Say which smaller batches a trial was run with, or None if it was run as requested."""
    if used == requested:
        return None
    examples, passes = used.per_device_train_batch_size, used.gradient_accumulation_steps
    checkpointing = used.gradient_checkpointing and not requested.gradient_checkpointing
    return f"out of memory: {examples} examples per pass, {passes} passes per step" + (
        ", with gradient checkpointing" if checkpointing else ""
    )


def saved_attachment(trial: Trial, context: ComparisonContext, folder: Path, progress: Progress) -> Attachment | None:
    """Load the adaptation of a fitted trial; None, with a warning, if it is damaged or of another trial."""
    progress("loading its adaptation", 0, 0)
    try:
        settings, places = given_places(trial.technique), Places(knowledge=context.task.knowledge)
        adaptation = artifact.load(folder, base=context.base, settings=settings, places=places)
        record = adaptation.record
        if record is None or record.record.get("trial") != json.loads(json.dumps(identity_of(trial).to_json())):
            raise ArtifactError(f"{folder} is of another trial")
        if record.text not in (None, context.text):
            raise ArtifactError(f"{folder} was trained on other data")
        return adaptation.attachment
    except ArtifactError as error:
        _log.warning("%s; its trial is run again", str(error).partition("; ")[0])
        context.base.release()
        return None


def save_fit(trial: Trial, context: ComparisonContext, fit: Fit, folder: Path, progress: Progress) -> FittedTrial:
    """Save the adaptation of a training that is over, and return its record."""
    identity, attachment, trained = identity_of(trial), fit.attachment, fit.trained
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
        memory=memory_note(trial.settings, fit.settings),
    )


_CURVE_POINTS = 100  # at most, of a learning curve


def _read_curve(path: Path, kind: str) -> Curve:
    """Read (step, loss) of at most a hundred evenly spaced lines with this kind of loss, the last one among them."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    points = [(line["step"], line[kind]) for line in lines if kind in line]
    every = -(-len(points) // _CURVE_POINTS) or 1
    return tuple(points[::-every][::-1])
