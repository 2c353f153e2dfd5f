"""Commands on one technique: fit it, score what it left, and look at the models on the way there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.console import console, print_json, progress
from tunewise.cli.options import (
    Accumulate,
    BatchSize,
    Bf16,
    Columns,
    Config,
    Data,
    Device,
    Dtype,
    Json,
    KlToBase,
    Knowledge,
    L2Sp,
    MaxLength,
    Metric,
    Model,
    Out,
    Recompute,
    Remember,
    Replay,
    RetentionFile,
    Revision,
    SaveSteps,
    Schedule,
    Sets,
    Sources,
    Template,
    train_arguments,
)
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.resolve import load_model, read_task, read_texts, recipes_of, settings_of


def fit(
    context: typer.Context,
    technique: Annotated[str, typer.Argument(help="A technique, or several joined by + (icl+lora).")],
    model: Model,
    data: Data,
    out: Out,
    max_steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    num_train_epochs: Annotated[float | None, typer.Option(help="Passes over the training data instead.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the technique's for this model.")] = None,
    batch_size: BatchSize = 8,
    accumulate: Accumulate = 1,
    lr_scheduler_type: Schedule = "cosine",
    save_steps: SaveSteps = 500,
    eval_steps: Annotated[int, typer.Option(help="Steps between validation losses in metrics.jsonl; 0: none.")] = 0,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run, to the same bits.")] = False,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    sets: Sets = None,
    sources: Sources = None,
    knowledge: Knowledge = None,
    max_length: MaxLength = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    bf16: Bf16 = False,
    gradient_checkpointing: Recompute = False,
    replay: Replay = 0.0,
    kl_to_base: KlToBase = 0.0,
    l2_sp: L2Sp = 0.0,
    remember: Remember = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Fit one technique and leave an adaptation."""
    task, remembered = read_task(data, columns, template, metric), read_texts(remember)
    chosen = settings_of(sets)
    if "," in technique or not technique.strip():
        raise SettingError(
            f'fit takes one technique, not "{technique}"; join with + to compose, or use tunewise compare'
        )
    recipe = recipes_of(technique, chosen, sources, knowledge=knowledge)[0]
    if learning_rate is not None:
        for part in [part for part in getattr(recipe, "parts", (recipe,)) if part.trains]:
            chosen.setdefault(part.name, {}).setdefault("learning_rate", learning_rate)
        recipe = recipes_of(technique, chosen, sources, knowledge=knowledge)[0]
    base = load_model(model, revision, dtype, device, max_length)
    from tunewise.adaptation.fit import fit
    from tunewise.fitting.settings import TrainSettings

    settings = TrainSettings(**train_arguments(max_steps, context.params))

    with progress() as show:
        record = fit(
            base,
            task,
            recipe,
            out,
            settings=settings,
            num_train_epochs=num_train_epochs,
            seed=seed,
            resume=resume,
            remembered=remembered,
            progress=lambda what, done, total: show(recipe.name, what, done, total),
        )
    if as_json:
        print_json(record)
        return
    from tunewise.core.units import count

    console().print(
        f"{recipe.name}: validation loss {record['validation_loss_before']:.4f} before, "
        f"{record['validation_loss']:.4f} after; {count(record['optimised_parameters'])} parameters optimised, "
        f"{record['seconds']:.1f} s.\nSaved to {record['adaptation']}\n"
        f"Score it: tunewise eval {record['adaptation']} --data {data}"
        + (f" --columns {columns}" if columns else "")
        + (f" --metric {metric}" if metric else ""),
        markup=False,
        highlight=False,
    )


def evaluate(
    adaptation: Annotated[Path, typer.Argument(help="Folder of an adaptation, or of a PEFT adapter.")],
    data: Data,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where the base is, if not where it was.")] = None,
    examples: Annotated[
        int | None, typer.Option("--test-examples", help="Default: 500, or 200 where answers are written.")
    ] = None,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the answers to this JSONL file.")] = None,
    sets: Sets = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Score an adaptation on data, to the digit that a comparison showed."""
    task = read_task(data, columns, template, metric)
    if split not in ("train", "validation", "test"):
        raise SettingError(f'split is "{split}" but must be train, validation or test')
    if examples is not None and examples < 1:
        raise SettingError(f"test_examples is {examples} but must be at least 1")
    folder = folder_of(adaptation)
    quiet()
    from tunewise.adaptation.artifact import load
    from tunewise.core import artifact_writer
    from tunewise.data.task import sample
    from tunewise.fitting.scoring import describe, score

    loaded = load(folder, model=model, settings=settings_of(sets))
    if task.template is None:
        task = replace(task, template=loaded.style.template if (folder / "adaptation.json").is_file() else None)
    chosen = sample(getattr(task, split), examples or (200 if task.kind == "generation" else 500))
    from tunewise.core.progress import for_row

    with progress() as show:
        found = score(
            loaded.attachment,
            task,
            chosen,
            progress=for_row(show, loaded.attachment.recipe.name),
        )
    if predictions is not None:
        rows = [
            {"prompt": example.prompt, "prediction": text, "answer": example.answer, found.metric: value}
            | ({"sources": cited} if (cited := loaded.attachment.citations(example)) else {})
            for example, text, value in zip(chosen, found.predictions, found.per_example, strict=True)
        ]
        artifact_writer.write_text(predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = {"adaptation": str(folder), "split": split, **describe(found)}
    if as_json:
        print_json(result)
        return
    others = ", ".join(f"{name} {value:.4f}" for name, value in found.others.items())
    console().print(
        f"{found.metric} {found.mean:.4f} on {len(chosen)} {split} examples; nll {found.nll:.4f} a token; {others}",
        markup=False,
        highlight=False,
    )


def folder_of(given: Path) -> Path:
    """The folder of the adaptation that a trial's or a fit's folder holds, or that was given itself."""
    folder = given / "adaptation" if (given / "adaptation").is_dir() else given
    if not folder.is_dir():
        raise SettingError(f"{given}: there is no such folder; give the folder of an adaptation")
    if (folder / "compare.json").is_file():
        raise SettingError(f"{folder}: is a comparison; give one of its rows, e.g. {folder}/trials/.../adaptation")
    return folder


def interpolate(
    adaptation: Annotated[Path, typer.Argument(help="Folder of an adaptation that merges into its base.")],
    data: Data,
    alphas: Annotated[str, typer.Option(help="Shares of the way from the base.")] = "0,.25,.5,.75,1",
    examples: Annotated[int, typer.Option("--test-examples", help="Examples scored at each.")] = 200,
    retention: RetentionFile = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where the base is, if not where it was.")] = None,
    columns: Columns = None,
    metric: Metric = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Score the models between a base and an adaptation of it: what is learnt against what is forgotten."""
    task, texts = read_task(data, columns, None, metric), read_texts(retention)
    try:
        shares = [float(share) for share in alphas.split(",")]
    except ValueError as error:
        raise SettingError(f'alphas is "{alphas}" but must be numbers joined by commas, such as 0,0.5,1') from error
    quiet()
    from tunewise.adaptation.artifact import load
    from tunewise.adaptation.interpolate import measured

    loaded = load(folder_of(adaptation), model=model)
    task = replace(task, template=task.template or loaded.style.template)
    with progress() as show:
        rows = measured(loaded.attachment, task, shares, texts, examples, show)
    if as_json:
        print_json(rows)
        return
    from tunewise.results.report.tables import curve_table

    console().print(curve_table(rows, task.metric))
