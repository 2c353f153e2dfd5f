"""Commands on one technique: fit it, score its adaptation, and interpolate between the base and the adaptation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.console import print_json, print_result, print_text, progress_display
from tunewise.cli.options import (
    AdaptationFolder,
    BaseLocation,
    Data,
    Json,
    Model,
    Out,
    Retention,
    grouped_options,
    only,
)
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
    settings_of,
    train_settings,
)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How one technique is trained, for how long, and whether a stopped run is continued."""

    max_steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100
    num_train_epochs: Annotated[float | None, typer.Option(help="Passes over the training data, instead of steps.")] = (
        None
    )
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate; default: the technique's own for this model.")
    ] = None
    steps: TrainOptions = field(default_factory=TrainOptions)
    eval_steps: Annotated[
        int, typer.Option(help="Optimiser steps between validation losses in metrics.jsonl; 0: none.")
    ] = 0
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run; the result is the same, bit for bit.")
    ] = False


@grouped_options
def fit(
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
    """Fit one technique and write its adaptation."""
    task, remembered = read_task(data, reading), read_texts(remedies.remember)
    if "," in technique or not technique.strip():
        raise SettingError(
            f'fit takes one technique, not "{technique}"; join with + to compose, or use tunewise compare'
        )
    recipe = recipes_of(technique, recipes, learning_rate=training.learning_rate)[0]
    base = load_model(model, loading)
    from tunewise.adaptation.fit import fit

    settings = train_settings(training.max_steps, training.steps, compute, remedies, eval_steps=training.eval_steps)
    with progress_display() as display:
        record = fit(
            base,
            task,
            recipe,
            out,
            settings=settings,
            num_train_epochs=training.num_train_epochs,
            seed=training.seed,
            resume=training.resume,
            remembered=remembered,
            progress=for_row(display, recipe.name),
        )
    if as_json:
        print_json(record)
        return
    from tunewise.core.units import count

    print_text(
        f"{recipe.name}: validation loss {record['validation_loss_before']:.4f} before, "
        f"{record['validation_loss']:.4f} after; {count(record['optimised_parameters'])} parameters optimised, "
        f"{record['seconds']:.1f} s.\nSaved to {record['adaptation']}\n"
        f"Score it: tunewise eval {record['adaptation']} --data {data}"
        + (f" --columns {reading.columns}" if reading.columns else "")
        + (f" --metric {reading.metric}" if reading.metric else "")
    )


@grouped_options
def evaluate(
    adaptation: AdaptationFolder,
    data: Data,
    split: Annotated[str, typer.Option(help="Split to score: train, validation or test.")] = "test",
    model: BaseLocation = None,
    examples: Annotated[
        int | None,
        typer.Option(
            "--test-examples", help="Examples that are scored; default: 500, or 200 where answers are generated."
        ),
    ] = None,
    *,
    reading: DataOptions,
    predictions: Annotated[Path | None, typer.Option(help="Write the answers to this JSONL file.")] = None,
    recipes: Annotated[TechniqueOptions, only("sets")],
    as_json: Json = False,
) -> None:
    """Score an adaptation on data, exactly as a comparison scores it."""
    task = read_task(data, reading)
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

    loaded = load(folder, model=model, settings=settings_of(recipes.sets))
    if task.template is None:
        task = replace(task, template=loaded.style.template if (folder / "adaptation.json").is_file() else None)
    chosen_examples = sample(getattr(task, split), examples or (200 if task.kind == "generation" else 500))
    with progress_display() as display:
        scores = score(
            loaded.attachment, task, chosen_examples, progress=for_row(display, loaded.attachment.recipe.name)
        )
    if predictions is not None:
        rows = [
            {"prompt": example.prompt, "prediction": text, "answer": example.answer, scores.metric: value}
            | ({"sources": cited} if (cited := loaded.attachment.citations(example)) else {})
            for example, text, value in zip(chosen_examples, scores.predictions, scores.per_example, strict=True)
        ]
        artifact_writer.write_text(predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    others = ", ".join(f"{name} {value:.4f}" for name, value in scores.others.items())
    print_result(
        {"adaptation": str(folder), "split": split, **describe(scores)},
        as_json,
        lambda: (
            f"{scores.metric} {scores.mean:.4f} on {len(chosen_examples)} {split} examples; "
            f"nll {scores.nll:.4f} per token; {others}"
        ),
    )


def folder_of(path: Path) -> Path:
    """Return the adaptation's folder, given itself or the folder of a trial or a fit around it."""
    folder = path / "adaptation" if (path / "adaptation").is_dir() else path
    if not folder.is_dir():
        raise SettingError(f"{path}: there is no such folder; give the folder of an adaptation")
    if (folder / "compare.json").is_file():
        raise SettingError(
            f"{folder}: is a comparison; give the adaptation of one row, e.g. {folder}/trials/.../adaptation"
        )
    return folder


@grouped_options
def interpolate(
    adaptation: Annotated[Path, typer.Argument(help="Folder of an adaptation that merges into its base.")],
    data: Data,
    alphas: Annotated[str, typer.Option(help="Points between the base (0) and the adaptation (1).")] = "0,.25,.5,.75,1",
    examples: Annotated[int, typer.Option("--test-examples", help="Test examples scored per point.")] = 200,
    retention: Retention = None,
    model: BaseLocation = None,
    *,
    reading: Annotated[DataOptions, only("columns", "metric")],
    as_json: Json = False,
) -> None:
    """Score models interpolated between a base and its adaptation: what is learnt against what is forgotten."""
    task, texts = read_task(data, reading), read_texts(retention)
    try:
        shares = [float(share) for share in alphas.split(",")]
    except ValueError as error:
        raise SettingError(f'alphas is "{alphas}" but must be numbers joined by commas, such as 0,0.5,1') from error
    quiet()
    from tunewise.adaptation.artifact import load
    from tunewise.adaptation.interpolate import measured

    loaded = load(folder_of(adaptation), model=model)
    task = replace(task, template=task.template or loaded.style.template)
    with progress_display() as display:
        rows = measured(loaded.attachment, task, shares, texts, examples, display)
    from tunewise.results.report.tables import curve_table

    print_result(rows, as_json, lambda: curve_table(rows, task.metric))
