"""The command that fits one technique."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import echo, print_json, print_text
from tunewise.cli.devices import gpu_memory, is_launched, is_rank, run_on
from tunewise.cli.options import (
    Data,
    Json,
    Model,
    Out,
    grouped_options,
    option_values,
)
from tunewise.cli.progress_display import progress_display
from tunewise.cli.signs_of_life import watching_one_another
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.core.progress import for_row
from tunewise.resolve import (
    ComputeOptions,
    DataOptions,
    ModelOptions,
    RemedyOptions,
    TechniqueOptions,
    TrainOptions,
    load_model,
    read_task,
    read_texts,
    recipes_of,
    train_settings,
)

if TYPE_CHECKING:
    from tunewise.adaptation.record import AdaptationRecord
    from tunewise.cli.progress_display import ProgressDisplay
    from tunewise.contract.technique import Technique
    from tunewise.core.json_record import JsonObject
    from tunewise.data.task import Task
    from tunewise.engine.model import Base
    from tunewise.engine.ranks import Ranks
    from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How one technique is trained, for how long, and whether a stopped run is continued."""

    max_steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps; default: three epochs, or as many as four minutes allow, at least 60 steps."
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option("--epochs", "--num-train-epochs", help="Passes over the training data, instead of steps."),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate; default: the technique's own for this model.")
    ] = None
    optim: Annotated[
        str | None,
        typer.Option(help="Optimiser by Hugging Face's name, e.g. adafactor; most techniques have AdamW only."),
    ] = None
    steps: TrainOptions = field(default_factory=TrainOptions)
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0
    devices: Annotated[int, typer.Option(help="Devices of this machine that share out the examples of a step.")] = 1
    shard: Annotated[
        bool | None,
        typer.Option(
            "--shard/--no-shard",
            help="Let each device hold a part of the model; default: where the plan says that one GPU is too small.",
        ),
    ] = None
    context_devices: Annotated[
        int,
        typer.Option(
            "--context",
            help="How many of the devices compute each row together, for rows that are too long for one of them.",
        ),
    ] = 1
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run; the result is the same, bit for bit.")
    ] = False


@grouped_options
def fit(
    context: typer.Context,
    technique: Annotated[str, typer.Argument(help="A technique, or several joined by + (icl+lora).")],
    model: Model,
    data: Data,
    out: Out,
    training: FitOptions,
    reading: DataOptions,
    recipes: TechniqueOptions,
    loading: ModelOptions,
    compute: ComputeOptions,
    remedies: RemedyOptions,
    as_json: Json = False,
) -> None:
    """Fit one technique and write its adaptation, with the configuration that makes it again and a model card."""
    task, remembered = read_task(data, reading), read_texts(remedies.remember)
    if "," in technique or not technique.strip():
        raise SettingError(
            f'fit takes one technique, not "{technique}"; join with + to compose, or use tunewise compare'
        )
    if training.max_steps is not None and training.epochs is not None:
        raise SettingError("--max-steps and --epochs both say how long to train; give one of them")
    recipe = recipes_of(technique, recipes, learning_rate=training.learning_rate, optim=training.optim)[0]
    settings = train_settings(training.max_steps, training.steps, compute, remedies)
    if training.shard:
        recipe.require_shards()
    if training.context_devices != 1:
        recipe.require_context()
    quiet()
    from tunewise.engine.ranks import joined_ranks, require_groups

    # What sharding excludes is the user's word against it.
    excluded = loading.device is not None or loading.resize_embeddings
    chooses = training.shard is None and training.context_devices == 1 and not excluded
    shards = False
    if not is_rank():
        require_groups(training.devices, training.context_devices)
        shards = chooses and _shards(model, task, recipe, settings, training.devices, loading, _say)
    run_on(training.devices, ["--shard"] if shards else [])
    from tunewise.adaptation.fit import fit
    from tunewise.engine.rows import fitted_to

    joined = joined_ranks(bool(training.shard), training.context_devices)
    with joined as ranks, watching_one_another(ranks), progress_display(shown=ranks.writes) as display:
        if chooses and not is_launched():
            wanted = ranks.writes and _shards(model, task, recipe, settings, ranks.size, loading, display.message)
            ranks = replace(ranks, sharded=ranks.first(wanted))
        display(recipe.name, "loading the model", 0, 0)
        base = load_model(model, loading, ranks, waits=recipe.packs_weights)
        fitted = fitted_to(base, task)
        for note in fitted.notes[len(task.notes) :]:
            display.message(note)
        task = fitted
        if training.max_steps is None and training.epochs is None and recipe.trains:
            if ranks.writes:
                settings = _with_chosen_steps(base, task, settings, out, training.resume, display)
            settings = ranks.first(settings)
        record = fit(
            base,
            task,
            recipe,
            out,
            settings=settings,
            num_train_epochs=training.epochs,
            seed=training.seed,
            resume=training.resume,
            remembered=remembered,
            progress=for_row(display, recipe.name),
            on_saving=lambda content: _write_run_files(out, _with_choice(option_values(context), ranks), content),
        )
    if not ranks.writes:
        return
    if as_json:
        print_json(record)
        return
    from tunewise.core.units import count

    if "label_list" in record:
        print_text(record["label_list"])
    print_text(
        f"{recipe.name}: validation loss {record['validation_loss_before']:.4f} before, "
        f"{record['validation_loss']:.4f} after; {count(record['optimised_parameters'])} parameters optimised, "
        f"{record['seconds']:.1f} s.\nSaved to {record['adaptation']}\n"
        f"Score it: tunewise eval {record['adaptation']} --data {data}"
        + (f" --columns {reading.columns}" if reading.columns else "")
        + (f" --metric {reading.metric}" if reading.metric else "")
        + "".join(f" --{name} {place}" for name, place in recipes.places.given().items())
        + (f" --judge-url {reading.judge_url} --judge-model {reading.judge_model}" if reading.judge_url else "")
    )


def _shards(
    model: str,
    task: Task,
    recipe: Technique,
    settings: TrainSettings,
    devices: int,
    loading: ModelOptions,
    say: Callable[[str], None],
) -> bool:
    """Choose to share the weights out where the plan says that a GPU is too small for all; say so, or that none fits.

    The smallest GPU that is seen here stands for all devices.
    """
    memory = gpu_memory() if devices > 1 else None
    if memory is None:
        return False
    quiet()
    from tunewise.advice.plan.sharding_choice import choose_sharding
    from tunewise.advice.plan.weightless import sketch

    sketched = sketch(
        model,
        revision=loading.revision,
        dtype=loading.dtype,
        device_kind="cuda",
        max_length=loading.max_length,
        resize_embeddings=loading.resize_embeddings,
    )
    choice = choose_sharding(sketched, task, recipe, settings, devices, memory)
    if choice.why:
        say(choice.why)
    return choice.shards


def _say(sentence: str) -> None:
    echo(sentence, err=True)


def _with_choice(options: dict[str, object], ranks: Ranks) -> dict[str, object]:
    """Return the options with the choice to shard that was made for the user."""
    return {**options, "shard": True} if ranks.sharded else options


def _write_run_files(out: Path, options: dict[str, object], content: AdaptationRecord) -> None:
    """Write `config.yaml`, which `--config` reads, with everything that was chosen; and the model card."""
    import yaml

    from tunewise.adaptation.fit import CARD, CONFIG
    from tunewise.core import artifact_writer
    from tunewise.export.card import card
    from tunewise.export.provenance import Provenance

    recipe: str = content.technique
    record: JsonObject = content.record
    parts: JsonObject = content.settings if "+" in recipe else {recipe: content.settings}
    sets = [
        f"{part}.{name}={json.dumps(value)}"
        for part, settings in parts.items()
        for name, value in settings.items()
        if value is not None
    ]
    for settled in ("learning_rate", "optim", "num_train_epochs", "max_steps", "set"):
        options.pop(settled, None)
    if "train_settings" in record:
        options["max_steps"] = record["train_settings"]["max_steps"]
    options |= {"set": sets} if sets else {}
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=120)
    artifact_writer.write_text(out / CONFIG, text)
    artifact_writer.write_text(out / CARD, card(Provenance.of(content), None, out.resolve().name, None))


def _with_chosen_steps(
    base: Base, task: Task, settings: TrainSettings, out: Path, resume: bool, display: ProgressDisplay
) -> TrainSettings:
    """Return the settings with the steps of the stopped run, or else those that data, model and machine suggest."""
    from tunewise.adaptation.fit import require_free, require_same_text
    from tunewise.comparison.budget import Budget, chosen_budget, keep_choice, training_device
    from tunewise.core import artifact_writer
    from tunewise.fitting.run_request import RunRequest

    folder = artifact_writer.output_folder(out)
    require_free(folder, resume)
    require_same_text(base, task, folder)
    stopped = RunRequest.newest(folder)
    if stopped is not None and stopped.max_steps is not None:
        return replace(settings, max_steps=stopped.max_steps)
    chosen = chosen_budget(Budget(), base, task, settings, folder, training_device((base.waiting or base.device).type))
    keep_choice(chosen, folder)
    display.message(chosen.why)
    return replace(settings, max_steps=chosen.steps)
