"""Commands on many techniques: compare them on a task, show a comparison again, and the demo."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.resolve import COMPARED

if TYPE_CHECKING:
    from tunewise.comparison.request import Request
    from tunewise.results.schema import Comparison


def compare(
    context: typer.Context,
    model: Model,
    data: Data,
    out: Out,
    techniques: Annotated[str, typer.Option("--techniques", "-t", help="Names joined by commas, or all.")] = COMPARED,
    budget_steps: Annotated[int, typer.Option(help="Optimiser steps of each trial.")] = 100,
    budget_tokens: Annotated[int | None, typer.Option(help="Training tokens of each trial instead.")] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(help="Minutes for everything instead; techniques that train share them equally.")
    ] = None,
    search: Annotated[
        int, typer.Option(help="Trials' worth of training that each technique may spend on finding its settings.")
    ] = 1,
    seeds: Annotated[int, typer.Option(help="Runs of each technique.")] = 1,
    test_examples: Annotated[int | None, typer.Option(help="Default: 500, or 200 where answers are written.")] = None,
    validation_examples: Annotated[int, typer.Option(help="Examples that choices are made on.")] = 128,
    retention: RetentionFile = None,
    probe: Annotated[str | None, typer.Option(help="Data of a task that the model can do and should not lose.")] = None,
    batch_size: BatchSize = 8,
    accumulate: Accumulate = 1,
    lr_scheduler_type: Schedule = "cosine",
    save_steps: SaveSteps = 500,
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
    need: Annotated[
        list[str] | None,
        typer.Option(help="What the recommended row must have: memory<8GB, artifact<50MB, mergeable, retain, ..."),
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="US dollars that an hour of this machine costs.")] = None,
    report_to: Annotated[
        str | None, typer.Option(help="Follow training in tensorboard, wandb, mlflow or trackio (joined by commas).")
    ] = None,
    advised: Annotated[
        bool, typer.Option("--advised", help="Run what advice says could win, best first, and stop when it is settled.")
    ] = False,
    patience: Annotated[float, typer.Option(help="Seconds without a sign of life after which a trial hangs.")] = 1800,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run trials here: a crash then ends the comparison.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Run techniques side by side under one budget and say which to use; run it again to continue."""
    from tunewise.comparison.request import SAME, Request

    request = Request(
        **{name: context.params[name] for name in SAME},
        out=str(out),
        budget={
            "steps": budget_steps,
            "tokens": budget_tokens,
            "minutes": budget_minutes,
            "search": search,
            "seeds": seeds,
            "test_examples": test_examples,
            "validation_examples": validation_examples,
        },
        settings=train_arguments(budget_steps, context.params),
        sets=sets or [],
        needs=need or [],
        price=price_per_hour,
        report_to=[name.strip() for name in report_to.split(",")] if report_to else [],
        started=time.time(),
        command=["tunewise", *sys.argv[1:]],
        advised=advised,
    )
    _compare(request, as_json, patience, in_process)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    other: Annotated[Path | None, typer.Argument(help="Folder of another one, to show both side by side.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page of HTML to this file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the charts as pictures to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Show a comparison again, or two side by side."""
    from tunewise.core import artifact_writer
    from tunewise.results.report.page import page
    from tunewise.results.report.png_charts import pngs
    from tunewise.results.report.side_by_side import beside
    from tunewise.results.report.tables import picture, terminal

    if other is not None and (html or svg or png):
        raise SettingError("--html, --svg and --png show one comparison; give one folder")
    results = [_comparison(path) for path in (folder, other) if path is not None]
    shown = beside(*results) if other is not None else terminal(results[0])
    texts = [(html, page(results[0]) if html else ""), (svg, picture(results[0]) if svg else "")]
    if png:
        pngs(results[0], png)
    for path, text in texts:
        if path is not None:
            artifact_writer.write_text(path, text)
    if as_json:
        written = [result.to_json() for result in results]
        print_json(written[0] if other is None else written)
    else:
        console().print(shown)


def _comparison(folder: Path) -> Comparison:
    """The content of a comparison's `compare.json`."""
    from tunewise.results.schema import Comparison

    if not (folder / "compare.json").is_file():
        raise SettingError(f"{folder}: holds no comparison (no compare.json); give the --out of tunewise compare")
    return Comparison.read(folder / "compare.json")


def demo(
    out: Out = Path("tunewise-demo"),
    task: Annotated[str, typer.Option(help="town, reviews, records, skill or letters.")] = "reviews",
    techniques: Annotated[str, typer.Option("--techniques", "-t", help="Names joined by commas, or all.")] = COMPARED,
    all_techniques: Annotated[bool, typer.Option("--all", help="Every technique that there is.")] = False,
    as_json: Json = False,
) -> None:
    """Compare on the shipped model and a task of its world: no network; eight rows in under three minutes."""
    from tunewise.comparison.request import Request
    from tunewise.data import world

    request = Request(
        model="world",
        data=f"world:{task}",
        out=str(out / task),
        techniques="all" if all_techniques else techniques,
        budget={"steps": 100},
        settings={"per_device_train_batch_size": 16},
        retention="world:text",
        probe="world:memory",
        default_sources=[found.source for found in world.sources().values()],
        command=["tunewise", *sys.argv[1:]],
    )
    _compare(request, as_json)


def _compare(request: Request, as_json: bool, patience: float = 1800, in_process: bool = False) -> None:
    """Run the comparison and print it; nothing at all finished is a failure."""
    with progress() as show:
        if in_process:
            result = request.run(show, on_row=show.rows)
        else:
            from tunewise.comparison.supervisor import supervise

            result = supervise(request, patience=patience, progress=show, on_row=show.rows)
    out = Path(request.out)
    if as_json:
        print_json(result.to_json())
    else:
        from tunewise.results.report.tables import terminal

        console().print(terminal(result))
        console().print(f"\nReport: {out / 'report.html'} and report.md", markup=False, highlight=False)
    if not any(row.status == "ok" for row in result.rows):
        raise TunewiseError(f"no technique finished; the reasons are in {out / 'compare.json'}")
