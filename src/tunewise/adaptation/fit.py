"""Fits one technique on a task and writes the adaptation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from tunewise.adaptation import artifact
from tunewise.adaptation.label_list import FILE as LABEL_LIST
from tunewise.adaptation.label_list import label_list_choice
from tunewise.adaptation.record import AdaptationRecord
from tunewise.adaptation.run_files import TOKENIZER_FILES, write_tokenizer, write_trainer_state
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, ModelError, SettingError
from tunewise.core.json_record import JsonObject
from tunewise.core.lock import lock
from tunewise.core.progress import PREPARING, TRAINING, Progress, silent, training_report
from tunewise.core.seeds import generator
from tunewise.data.task import Task, sample
from tunewise.engine.forward import require_division, why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.row_file import truncated_of
from tunewise.engine.rows import fitted_to
from tunewise.engine.run_text import RunText
from tunewise.engine.sharding import INSTEAD
from tunewise.fitting.allowance import allowance
from tunewise.fitting.encoded_rows import FOLDER as ROWS
from tunewise.fitting.encoded_rows import encoded_rows, remove_rows
from tunewise.fitting.loop import train
from tunewise.fitting.rehearsal import Rehearsal
from tunewise.fitting.run_request import STATE, RunRequest
from tunewise.fitting.scoring import loss, study
from tunewise.fitting.settings import TrainSettings
from tunewise.fitting.source_training import SourceTraining

_ADAPTATION, _PREPARING = "adaptation", "preparing"
CONFIG, CARD = "config.yaml", "README.md"  # the command line writes them beside the adaptation


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
    on_saving: Callable[[AdaptationRecord], None] | None = None,
) -> JsonObject:
    """Fit a technique on a task and write `out/adaptation`; return its record.

    Checkpoints, `metrics.jsonl`, the tokenizer and `trainer_state.json` in Hugging Face's form are written to `out`.
    `resume` continues from the newest complete checkpoint, to the same bits as an uninterrupted run.

    Args:
        base: the bare model; it is bare again afterwards.
        task: the data.
        technique: the technique with its settings.
        out: the folder of the run.
        settings: steps, batch size, schedule, early stopping.
        num_train_epochs: passes over the training split; replaces `settings.max_steps`.
        seed: everything random follows from it.
        resume: continue a run that was stopped.
        validation_examples: how many validation examples are scored before and after training; the losses on the way
            are taken on the first `settings.evaluated_examples(...)` of them.
        remembered: texts that `settings.replay` and `settings.kl_to_base` rehearse; default: sampled from the base.
        progress: called as progress(what, done, total).
        on_saving: called with what the adaptation will hold, before it is there.

    Raises:
        SettingError: `out` holds a finished adaptation already.
        ArtifactError: the run that is to be resumed was begun with other data, settings or another model.
        DivergedError: the loss is no longer finite.
        TechniqueError: the base is sharded, and the technique needs whole weights; or devices compute rows together,
            and it needs whole ones.
        ModelError: the same, where the base is at fault.

    Examples:
        >>> base, task = load_base("world"), Task.read("world:reviews")
        >>> record = fit(base, task, make("lora"), "runs/lora", settings=TrainSettings(max_steps=30))
        >>> record["technique"]
        'lora'
    """
    folder, settings = artifact_writer.output_folder(out), settings or TrainSettings()
    task = fitted_to(base, task)
    if num_train_epochs is not None:
        settings = replace(settings, max_steps=settings.steps_for(num_train_epochs, len(task.train)))
    validation = sample(task.validation, validation_examples)
    recipe = technique.resolved(base)
    if base.ranks.sharded:
        require_shards(base, recipe)
    if base.ranks.divides_rows:
        recipe.require_context()
        require_division(base)
    with lock(folder) if base.ranks.writes else nullcontext():
        if base.ranks.writes:
            remove_leftovers(folder)
            require_free(folder, resume)
            require_same_text(base, task, folder)
        base.ranks.wait()
        try:
            # Weights that wait are packed before anything is run on them; what that gives stands for the base below.
            packed = recipe.attach(base, generator(seed, "attach")) if base.waiting is not None else None
            label_list = label_list_choice(
                base, task, folder, has_results=any(folder.glob("checkpoint-*")), progress=progress
            )
            if label_list is not None:
                task = label_list.applied_to(task)
            progress(PREPARING, 0, 0)
            rehearsal = Rehearsal.of(base, remembered) if settings.rehearses else None
            attachment = packed or recipe.attach(base, generator(seed, "attach"))
            started = time.perf_counter()
            loss_before = loss(attachment, task, validation, progress)
            allowed = allowance(base, task, settings)
            trains = SourceTraining(settings, folder / _PREPARING, resume)
            started_preparing = time.perf_counter()
            attachment.prepare(study(attachment, task, validation, seed, progress, allowed, trains))
            preparing_seconds = time.perf_counter() - started_preparing
            record: JsonObject = {"seed": seed, "validation_loss_before": loss_before}
            if allowed.spent:
                record |= {"preparing_tokens": allowed.spent, "preparing_seconds": preparing_seconds}
            if label_list is not None:
                record["label_list"] = label_list.note
            if recipe.trains:
                evaluated = validation[: settings.evaluated_examples(len(validation))]
                progress("encoding the training examples", 0, 0)
                sequences = encoded_rows(attachment, task, folder / ROWS, progress)
                total = settings.max_steps
                progress(TRAINING, 0, total)
                trained = train(
                    attachment,
                    sequences,
                    settings,
                    seed=seed,
                    folder=folder,
                    resume=resume,
                    on_step=lambda step, value: progress(training_report(value), step, total),
                    evaluate=lambda: loss(attachment, task, evaluated, progress),
                    rehearsal=rehearsal,
                    text=RunText.of(base, task),
                )
                record |= {"training": asdict(trained), "train_settings": settings.to_json()}
                record["training"]["cut"] = truncated_of(sequences)
            record |= {
                "validation_loss": loss(attachment, task, validation, progress),
                "seconds": time.perf_counter() - started,
                "optimised_parameters": sum(p.numel() for p in attachment.params().values()),
                "stored_parameters": sum(t.numel() for t in attachment.state().values()),
            }
            record["findings"] = attachment.findings(lambda: loss(attachment, task, validation))
            progress("saving", 0, 0)
            if base.ranks.writes:
                if "training" in record:
                    write_trainer_state(folder, trained, settings, len(task.train))
                write_tokenizer(folder, base.tokenizer)
            artifact.save(attachment, task, folder / _ADAPTATION, record, on_saving=on_saving)
        finally:
            base.release()
        if base.ranks.writes:
            remove_leftovers(folder)
            remove_rows(folder)
        base.ranks.wait()
    return {**recipe.to_json(), "adaptation": str(folder / _ADAPTATION), **record}


def require_shards(base: Base, recipe: Technique) -> None:
    """Refuse what cannot be trained on a base whose weights are shared out over devices.

    Raises:
        TechniqueError: the technique needs whole weights.
        ModelError: forward passes cannot be laid out alike on all devices.
    """
    recipe.require_shards()
    reason = why_not_packed(base)
    if reason is not None:
        raise ModelError(f"{base.name} cannot be sharded, as its rows cannot be packed ({reason}); {INSTEAD}")


def remove_leftovers(folder: Path) -> None:
    """Remove what a fit no longer needs once its adaptation is complete, and what killed ones left; hold the lock."""
    names = (_ADAPTATION, "metrics.jsonl", "budget.json", LABEL_LIST, STATE, CONFIG, CARD, *TOKENIZER_FILES)
    artifact_writer.remove_leftovers(folder, *names, checkpoints=True)
    if (folder / _ADAPTATION).exists() and _needless(folder):
        try:
            artifact_writer.read(folder / _ADAPTATION)
        except ArtifactError:
            return  # it may have to be made again from them
        artifact_writer.prune(folder, keep=0)
        artifact_writer.remove_runs(folder / _PREPARING)


def _needless(folder: Path) -> bool:
    return bool(artifact_writer.checkpoint_folders(folder)) or (folder / _PREPARING).exists()


def require_free(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds a finished adaptation, or a stopped run that is not to be resumed.

    Raises:
        SettingError: says which, and what to do.
    """
    target = folder / _ADAPTATION
    if target.exists():
        raise SettingError(f"{target}: there is a finished adaptation here already; choose another --out")
    if not resume and artifact_writer.checkpoint_folders(folder):
        raise SettingError(
            f"{folder}: holds checkpoints of a stopped run; continue it with --resume or choose another --out"
        )


def require_same_text(base: Base, task: Task, folder: Path) -> None:
    """Refuse to resume the run in a folder with other data; nothing is written.

    Raises:
        ArtifactError: names what differs, and what to do.
    """
    stopped = RunRequest.newest(folder)
    if stopped is not None:
        stopped.refuse_other_text(RunText.of(base, task), folder)
