"""Commands that score an adaptation: on data, and between it and its base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import print_result
from tunewise.cli.options import (
    AdaptationFolder,
    BaseLocation,
    Data,
    Json,
    Retention,
    grouped_options,
    only,
)
from tunewise.cli.progress_display import progress_display
from tunewise.contract.places import Places
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.core.progress import for_row
from tunewise.resolve import (
    DataOptions,
    TechniqueOptions,
    read_task,
    read_texts,
    settings_of,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunewise.core.progress import Progress
    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base
    from tunewise.fitting.scoring import Scores


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
    judge_against: Annotated[
        str, typer.Option(help="For --metric judge: compare with the reference, as a comparison does, or the base.")
    ] = "reference",
    predictions: Annotated[Path | None, typer.Option(help="Write the answers to this JSONL file.")] = None,
    recipes: Annotated[TechniqueOptions, only("sets", "places")],
    as_json: Json = False,
) -> None:
    """Score an adaptation on data, exactly as a comparison scores it."""
    from tunewise.fitting.judge import Judge

    task = read_task(data, reading)
    if judge_against not in ("reference", "base"):
        raise SettingError(f'judge_against is "{judge_against}" but must be reference or base')
    if judge_against == "base" and Judge.of(task.metric) is None:
        raise SettingError("--judge-against is for --metric judge; give it, or leave this out")
    if split not in ("train", "validation", "test"):
        raise SettingError(f'split is "{split}" but must be train, validation or test')
    if examples is not None and examples < 1:
        raise SettingError(f"test_examples is {examples} but must be at least 1")
    folder = folder_of(adaptation)
    quiet()
    from tunewise.adaptation.artifact import load
    from tunewise.adaptation.record import require_used
    from tunewise.core import artifact_writer
    from tunewise.data.task import default_test_examples, sample
    from tunewise.engine.rows import fitted_to
    from tunewise.fitting.scoring import describe, score
    from tunewise.results.diagnostics import class_scores

    with progress_display() as display:
        display(folder.name, "loading", 0, 0)
        loaded = load(folder, model=model, settings=settings_of(recipes.sets), places=recipes.places)
        require_used(recipes.places, [loaded.attachment.recipe])
        if (folder / "adaptation.json").is_file():
            task = task.in_style_of(loaded.style)
        task = fitted_to(loaded.attachment.base, task)
        chosen_examples = sample(getattr(task, split), examples or default_test_examples(task.kind))
        opponents = None
        if judge_against == "base":
            loaded.attachment.detach()
            base = loaded.attachment.base
            base.place()
            opponents = _base_answers(base, task, chosen_examples, for_row(display, "base"))
            loaded = load(folder, base=base, settings=settings_of(recipes.sets), places=recipes.places)
        report = for_row(display, loaded.attachment.recipe.name)
        scores = score(loaded.attachment, task, chosen_examples, progress=report, opponents=opponents)
    if predictions is not None:
        rows = [
            {"prompt": example.prompt, "prediction": text, "answer": example.answer, scores.metric: value}
            | ({"sources": cited} if (cited := [each.source for each in loaded.attachment.citations(example)]) else {})
            | ({"opponent": opponents[place]} if opponents is not None else {})
            for place, (example, text, value) in enumerate(
                zip(chosen_examples, scores.predictions, scores.per_example, strict=True)
            )
        ]
        artifact_writer.write_text(predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = {"adaptation": str(folder), "split": split, **describe(scores)}
    if Judge.of(task.metric) is not None:
        result["judge_against"] = judge_against
    if scores.confusion is not None:
        classes = class_scores(scores.confusion, task.labels)
        result |= {"confusion": scores.confusion.counts, "classes": [asdict(one) for one in classes]}
    if scores.lengths is not None:
        result |= {"lengths": scores.lengths.to_json()}
    print_result(result, as_json, lambda: _scores_view(scores, split, task.labels))


def _base_answers(base: Base, task: Task, examples: Sequence[Example], progress: Progress) -> list[str]:
    """Return what the base answers, with nothing attached."""
    from tunewise.core.seeds import generator
    from tunewise.fitting.scoring import score
    from tunewise.techniques.registry import make

    attachment = make("base").attach(base, generator(0, "attach"))
    scores = score(attachment, replace(task, metric="exact_match"), examples, progress)
    attachment.detach()
    return scores.predictions


def _scores_view(scores: Scores, split: str, labels: Sequence[str]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from tunewise.results.report.answer_tables import score_details

    others = ", ".join(f"{name} {value:.4f}" for name, value in scores.others.items())
    line = (
        f"{scores.metric} {scores.mean:.4f} on {len(scores.per_example)} {split} examples; "
        f"nll {scores.nll:.4f} per token; {others}"
    )
    return Group(Text(line), *score_details(scores.confusion, scores.lengths, labels))


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
    reading: Annotated[DataOptions, only("columns", "metric", "kind", "skip_bad_rows", "judge_url", "judge_model")],
    places: Places,
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
    from tunewise.adaptation.record import require_used
    from tunewise.engine.rows import fitted_to

    folder = folder_of(adaptation)
    with progress_display() as display:
        display(folder.name, "loading", 0, 0)
        loaded = load(folder, model=model, places=places)
        require_used(places, [loaded.attachment.recipe])
        task = fitted_to(loaded.attachment.base, task.in_style_of(loaded.style))
        rows = measured(loaded.attachment, task, shares, texts, examples, display)
    from tunewise.results.report.tables import curve_table

    print_result(rows, as_json, lambda: curve_table(rows, task.metric))
