"""Fits one technique on a task and writes the adaptation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tunewise.adaptation import artifact
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import SettingError
from tunewise.core.json_record import JsonObject
from tunewise.core.progress import Progress, silent
from tunewise.core.seeds import generator
from tunewise.data.task import Task, sample
from tunewise.engine.model import Base
from tunewise.fitting.loop import train
from tunewise.fitting.rehearsal import Rehearsal
from tunewise.fitting.scoring import encoder_for, loss, study
from tunewise.fitting.settings import TrainSettings


def fit(
    base: Base,
    task: Task,
    technique: Technique,
    out: str | Path,
    *,
    settings: TrainSettings | None = None,
    num_train_epochs: float | None = None,
    seed: int = 0,
    resume: bool = False,
    validation_examples: int = 128,
    remembered: Sequence[str] | None = None,
    progress: Progress = silent,
) -> JsonObject:
    """Fit a technique on a task and write `out/adaptation`; return its record.

    Checkpoints and `metrics.jsonl` are written to `out`. `resume` continues from the newest complete checkpoint, to the
    same bits as an uninterrupted run.

    Args:
        base: the bare model; it is bare again afterwards.
        task: the data.
        technique: the technique with its settings.
        out: the folder of the run.
        settings: steps, batch size, schedule.
        num_train_epochs: passes over the training split; replaces `settings.max_steps`.
        seed: everything random follows from it.
        resume: continue a run that was stopped.
        validation_examples: how many validation examples are scored before and after training.
        remembered: texts that `settings.replay` and `settings.kl_to_base` rehearse; default: sampled from the base.
        progress: called as progress(what, done, total).

    Raises:
        SettingError: `out` holds a finished adaptation already.
        DivergedError: the loss is no longer finite.
    """
    folder, settings = artifact_writer.output_folder(out), settings or TrainSettings()
    target = folder / "adaptation"
    if target.exists():
        raise SettingError(f"{target}: there is a finished adaptation here already; choose another --out")
    if not resume and folder.is_dir() and any(folder.glob("checkpoint-*")):
        raise SettingError(
            f"{folder}: holds checkpoints of a stopped run; continue it with --resume or choose another --out"
        )
    if num_train_epochs is not None and not num_train_epochs > 0:
        raise SettingError(f"num_train_epochs is {num_train_epochs:g} but must be more than 0")
    if num_train_epochs is not None:
        settings = replace(settings, max_steps=max(1, round(len(task.train) * num_train_epochs / settings.rows)))
    validation = sample(task.validation, validation_examples)
    recipe = technique.resolved(base)
    with artifact_writer.lock(folder):
        try:
            rehearsal = Rehearsal.of(base, remembered) if settings.rehearses else None
            attachment = recipe.attach(base, generator(seed, "attach"))
            started = time.perf_counter()
            loss_before = loss(attachment, task, validation)
            attachment.prepare(study(attachment, task, validation, seed, progress))
            record: JsonObject = {"seed": seed, "validation_loss_before": loss_before}
            if recipe.trains:
                sequences = encoder_for(attachment, task).encode([attachment.render(e) for e in task.train])
                total = settings.max_steps
                trained = train(
                    attachment,
                    sequences,
                    settings,
                    seed=seed,
                    folder=folder,
                    resume=resume,
                    on_step=lambda step, value: progress(f"loss {value:.3f}", step, total),
                    evaluate=lambda: loss(attachment, task, validation),
                    rehearsal=rehearsal,
                )
                record |= {"training": asdict(trained), "train_settings": asdict(settings)}
                record["training"]["cut"] = sum(sequence.truncated for sequence in sequences)
            record |= {
                "validation_loss": loss(attachment, task, validation),
                "seconds": time.perf_counter() - started,
                "optimised_parameters": sum(p.numel() for p in attachment.params().values()),
                "stored_parameters": sum(t.numel() for t in attachment.state().values()),
            }
            record["findings"] = attachment.findings(lambda: loss(attachment, task, validation))
            artifact.save(attachment, task, target, record)
        finally:
            base.release()
    artifact_writer.prune(folder, keep=0)
    return {**recipe.to_json(), "adaptation": str(target), **record}
