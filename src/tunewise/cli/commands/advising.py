"""Commands that foresee: advice on which technique to choose, and the recorded comparisons that it is drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.cli.console import console, print_json, progress
from tunewise.cli.options import (
    BatchSize,
    Columns,
    Config,
    Data,
    Json,
    Knowledge,
    MaxLength,
    Metric,
    Model,
    Revision,
    Sources,
    Template,
)
from tunewise.core.errors import ArtifactError
from tunewise.core.logs import quiet
from tunewise.resolve import read_task, recipes_of

if TYPE_CHECKING:
    from tunewise.advice.atlas.schema import Record
    from tunewise.advice.question import Planner
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task


def advise(
    model: Model,
    data: Data,
    memory: Annotated[str | None, typer.Option(help="Memory of the device, e.g. 24GB.")] = None,
    time: Annotated[str | None, typer.Option(help="Time that training may take, e.g. 2h.")] = None,
    requests_per_day: Annotated[float, typer.Option(help="Requests that will be answered in a day.")] = 1000.0,
    tenants: Annotated[int, typer.Option(help="Adaptations that one loaded model must serve.")] = 1,
    need: Annotated[
        list[str] | None, typer.Option(help="What it must have: mergeable, swappable, retain, artifact<50MB, ...")
    ] = None,
    forget_nothing: Annotated[
        bool, typer.Option("--forget-nothing", help="The model's own weights must stay, to be had back at any time.")
    ] = False,
    knowledge: Knowledge = None,
    documents_change: Annotated[
        bool, typer.Option("--documents-change", help="Answers must follow documents that change after training.")
    ] = False,
    plan: Annotated[Path | None, typer.Option(help="What tunewise plan --json printed, to say what fits.")] = None,
    budget_steps: Annotated[int, typer.Option(help="Optimiser steps that a technique may train for.")] = 100,
    batch_size: BatchSize = 8,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    sources: Sources = None,
    max_length: MaxLength = None,
    revision: Revision = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Say which technique to choose, why, on what evidence, and what would change the answer; nothing is trained."""
    from tunewise.advice.question import Asked
    from tunewise.core.units import BYTES, SECONDS, quantity

    asked = Asked(
        memory=quantity("--memory", memory, BYTES) if memory is not None else None,
        time=quantity("--time", time, SECONDS) if time is not None else None,
        requests_per_day=requests_per_day,
        tenants=tenants,
        needs=tuple(need or ()),
        forget_nothing=forget_nothing,
        documents_change=documents_change,
    )
    task = read_task(data, columns, template, metric)
    recipes = recipes_of("all", {}, sources, (), knowledge)
    quiet()
    from tunewise.advice import advise
    from tunewise.advice.plan.weightless import consulted
    from tunewise.cli.views.advice import page

    planner = read_plan(plan) if plan is not None else None
    if planner is None and asked.planned:
        planner = _planned(model, task, recipes, budget_steps, batch_size, revision, max_length)
    found = advise.advise(
        consulted(model, revision, max_length),
        task,
        recipes=recipes,
        asked=asked,
        knowledge=knowledge,
        examples=budget_steps * batch_size,
        planner=planner,
    )
    if as_json:
        print_json(found)
    else:
        console().print(page(found))


def _planned(
    model: str, task: Task, recipes: list[Technique], steps: int, size: int, revision: str | None, length: int | None
) -> Planner:
    """Plans for this machine's own size, or the memory that is asked for."""
    import psutil

    from tunewise.advice.plan import planner as plans
    from tunewise.advice.plan.machine_rates import Rates
    from tunewise.advice.plan.weightless import sketch
    from tunewise.fitting.settings import TrainSettings

    drawn = sketch(model, revision=revision, max_length=length)
    settings = TrainSettings(max_steps=steps, per_device_train_batch_size=size)
    planner = plans.Planner(drawn, task, recipes, settings, "cpu", Rates.measured())

    def rows(memory: float | None) -> list[dict[str, Any]]:
        with progress() as show:
            planner.report = lambda name, done, total: show(model, f"planning {name}", done, total)
            return planner.rows(memory or float(psutil.virtual_memory().total))

    return rows


def read_plan(path: Path) -> Planner:
    """A planner that always gives the rows of a file."""
    from tunewise.core import artifact_reader

    rows = artifact_reader.read_json(path).get("rows")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("technique"), str) and isinstance(row.get("verdict"), str)
        for row in rows
    ):
        raise ArtifactError(f"{path}: is no plan; give what tunewise plan --json printed")
    return lambda memory: rows


atlas = typer.Typer(
    help="The recorded comparisons that advice is drawn from: list them, show one, add your own.",
    invoke_without_command=True,
)


@atlas.callback()
def listed(context: typer.Context, as_json: Json = False) -> None:
    """The recorded comparisons that advice is drawn from; `atlas show NAME` shows one, `atlas add RUN` adds one."""
    if context.invoked_subcommand is not None:
        return
    from tunewise.advice.atlas.records import all_records, own_folder
    from tunewise.cli.views.advice import atlas_table

    records = all_records()
    if as_json:
        print_json([_facts(record) for record in records.values()])
    else:
        console().print(atlas_table(records.values(), own_folder()))


def _facts(record: Record) -> dict[str, object]:
    best, score = record.best
    return {
        "name": record.name,
        "model": record.model.name,
        "parameters": record.model.parameters,
        "task": record.task.name,
        "kind": record.task.kind,
        "metric": record.task.metric,
        "train": record.task.train,
        "base": record.base,
        "best": best,
        "score": score,
        "seeds": record.budget.seeds,
        "created": record.provenance.created,
    }


@atlas.command("show")
def show(name: Annotated[str, typer.Argument(help="A record's name.")], as_json: Json = False) -> None:
    """Show one record: where it is from, its features and its rows."""
    from tunewise.advice.atlas.records import find
    from tunewise.cli.views.advice import record_page

    record = find(name)
    if as_json:
        print_json(record.to_json())
    else:
        console().print(record_page(record))


@atlas.command("add")
def add(
    run: Annotated[Path, typer.Argument(help="Folder of a finished comparison.")],
    name: Annotated[str | None, typer.Option(help="Name of the record; default: MODEL.TASK.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now, if it has moved.")] = None,
    data: Annotated[str | None, typer.Option(help="Where the data is now, if it has moved.")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder for the record; default: your own atlas.")] = None,
    as_json: Json = False,
) -> None:
    """Add a finished comparison to your own atlas, so that advice draws on it too."""
    from tunewise.advice.atlas import records
    from tunewise.advice.atlas.from_comparison import pack

    quiet()
    record = pack(run, model=model, data=data, name=name)
    path = records.add(record, into)
    if as_json:
        print_json({**_facts(record), "path": str(path)})
    else:
        console().print(f"{record.name} is recorded in {path}", markup=False, highlight=False)
