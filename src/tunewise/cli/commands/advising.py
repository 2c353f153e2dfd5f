"""Commands that advise which technique to choose, and manage the recorded comparisons that advice is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import console, print_json, print_result, print_text, shows_all
from tunewise.cli.options import Data, Json, Model, ShownOptions, Wide, grouped_options, only
from tunewise.cli.progress_display import ProgressDisplay, progress_display
from tunewise.contract.places import Places
from tunewise.core.logs import quiet
from tunewise.core.text import model_name
from tunewise.resolve import (
    DataOptions,
    ModelOptions,
    TechniqueOptions,
    TrainOptions,
    read_task,
    recipes_of,
    train_settings,
)

if TYPE_CHECKING:
    from tunewise.advice.atlas.schema import Record
    from tunewise.advice.question import Planner, Question
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base
    from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """What a user needs besides a good score."""

    memory: Annotated[str | None, typer.Option(help="Memory of the device, e.g. 24GB.")] = None
    time: Annotated[str | None, typer.Option(help="Maximum training time, e.g. 2h.")] = None
    requests_per_day: Annotated[float, typer.Option(help="Requests that will be answered per day.")] = 1000.0
    tenants: Annotated[int, typer.Option(help="Number of adaptations that one loaded model must serve.")] = 1
    need: Annotated[
        list[str] | None,
        typer.Option(help="What the technique must meet: mergeable, swappable, retain, artifact<50MB, ..."),
    ] = None
    forget_nothing: Annotated[
        bool,
        typer.Option(
            "--forget-nothing", help="The base's weights must stay as they are, so that the base can be restored."
        ),
    ] = False
    knowledge: str | None = None
    documents_change: Annotated[
        bool, typer.Option("--documents-change", help="Answers must follow documents that change after training.")
    ] = False

    def question(self) -> Question:
        """Read these options as the question to the advisor; a `SettingError` says which cannot be read."""
        from tunewise.advice.question import Question
        from tunewise.core.units import BYTES, SECONDS, quantity

        return Question(
            memory=quantity("--memory", self.memory, BYTES) if self.memory is not None else None,
            time=quantity("--time", self.time, SECONDS) if self.time is not None else None,
            requests_per_day=self.requests_per_day,
            tenants=self.tenants,
            needs=tuple(self.need or ()),
            forget_nothing=self.forget_nothing,
            documents_change=self.documents_change,
        )


@grouped_options
def advise(
    model: Model,
    data: Data,
    needs: QuestionOptions,
    plan: Annotated[
        Path | None, typer.Option(help="File with the output of tunewise plan --json, which says what fits.")
    ] = None,
    budget_steps: Annotated[int, typer.Option(help="Optimiser steps that a technique may train for.")] = 100,
    *,
    training: Annotated[TrainOptions, only("batch_size")],
    reading: DataOptions,
    recipes: Annotated[TechniqueOptions, only("sources")],
    loading: Annotated[ModelOptions, only("max_length", "revision", "resize_embeddings")],
    shown: ShownOptions,
) -> None:
    """Advise which technique to choose, why, on what evidence, and what would change it; nothing is trained."""
    question = needs.question()
    task = read_task(data, reading)
    quiet()
    from tunewise.advice.advise import advise as draw_up_advice
    from tunewise.advice.advise import candidate_names
    from tunewise.advice.plan.weightless import consulted
    from tunewise.cli.views.advice import render_advice

    names = candidate_names(documents=bool(needs.knowledge or task.knowledge))
    candidates = recipes_of(",".join(names), replace(recipes, places=Places(knowledge=needs.knowledge)))
    with progress_display() as display:
        display(model, "loading", 0, 0)
        base = consulted(model, loading.revision, loading.max_length, resize_embeddings=loading.resize_embeddings)
        planner = read_plan(plan) if plan is not None else None
        if planner is None:
            planner = _planned(base, task, candidates, train_settings(budget_steps, training), display)
        display(model, "measuring the task", 0, 0)
        advice = draw_up_advice(
            base,
            task,
            recipes=candidates,
            question=question,
            knowledge=needs.knowledge,
            examples=budget_steps * training.batch_size,
            planner=planner,
        )
    print_result(advice.to_json(), shown.as_json, lambda: render_advice(advice, wide=shows_all(shown.wide)))


def _planned(
    base: Base, task: Task, recipes: list[Technique], settings: TrainSettings, display: ProgressDisplay
) -> Planner:
    """Make a planner that reports which candidate it plans."""
    from tunewise.advice.plan.machine_rates import Rates
    from tunewise.advice.planning import planner_for

    name = model_name(base.name)
    display(name, "measuring this machine's rates", 0, 0)
    return planner_for(
        base,
        task,
        recipes,
        float(settings.max_steps * settings.rows),
        settings=settings,
        rates=Rates.measured(),
        report=lambda technique, done, total: display(name, f"planning {technique}", done, total),
    )


def read_plan(path: Path) -> Planner:
    """Make a planner that always returns the rows of a file."""
    from tunewise.advice.plan.plan_row import read_rows

    rows = read_rows(path)
    return lambda memory: rows


atlas = typer.Typer(
    help="The recorded comparisons that advice is drawn from: list them, show one, add your own.",
    invoke_without_command=True,
)


@atlas.callback()
def listed(
    context: typer.Context,
    published: Annotated[
        bool, typer.Option("--published", help="List results from publications instead, with their sources.")
    ] = False,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """List the recorded comparisons that advice draws on; `atlas show NAME` shows one, `atlas add RUN` adds one."""
    if context.invoked_subcommand is not None:
        return
    if published:
        _list_published(wide=wide, as_json=as_json)
        return
    from tunewise.advice.atlas.records import all_records, own_folder
    from tunewise.cli.views.advice import atlas_table

    records = all_records()
    if as_json:
        print_json([_facts(record) for record in records.values()])
    else:
        console().print(atlas_table(records.values(), own_folder(), wide=shows_all(wide)))


def _list_published(*, wide: bool, as_json: bool) -> None:
    from tunewise.advice.published.publications import publications
    from tunewise.cli.views.published import published_page

    if as_json:
        print_json([publication.to_json() for publication in publications().values()])
    else:
        console().print(published_page(publications().values(), wide=shows_all(wide)))


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
def show(
    name: Annotated[str, typer.Argument(help="A record's name.")], wide: Wide = False, as_json: Json = False
) -> None:
    """Show one record: its source, features and rows."""
    from tunewise.advice.atlas.records import find
    from tunewise.cli.views.advice import record_page

    record = find(name)
    if as_json:
        print_json(record.to_json())
    else:
        console().print(record_page(record, wide=shows_all(wide)))


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
        print_text(f"{record.name} is recorded in {path}")
