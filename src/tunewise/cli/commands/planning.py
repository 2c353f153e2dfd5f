"""The command that predicts what techniques need, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import ProgressDisplay, console, print_json, print_text, progress_display
from tunewise.cli.options import BudgetSteps, Data, Json, Model, Techniques, grouped_options, only
from tunewise.core.logs import quiet
from tunewise.resolve import (
    ComputeOptions,
    DataOptions,
    ModelOptions,
    TechniqueOptions,
    TrainOptions,
    load_model,
    read_task,
    recipes_of,
    train_settings,
)

if TYPE_CHECKING:
    from rich.table import Table

    from tunewise.advice.plan.plan_row import PlanRow
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base
    from tunewise.fitting.settings import TrainSettings


@grouped_options
def plan(
    model: Model,
    data: Data,
    techniques: Techniques = "all",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or the memory of a GPU, such as 24GB.")] = "cpu",
    budget_steps: BudgetSteps = 100,
    *,
    training: Annotated[TrainOptions, only("batch_size", "accumulate")],
    compute: ComputeOptions,
    reading: Annotated[DataOptions, only("columns", "template")],
    recipes: TechniqueOptions,
    loading: Annotated[ModelOptions, only("max_length", "revision", "dtype")],
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Run three real steps of each technique that fits, to calibrate memory and time on this machine.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict how much memory, time and disk techniques need, and which fit, from a model's configuration alone."""
    task = read_task(data, reading)
    candidates = recipes_of(techniques, recipes)
    quiet()
    import torch

    from tunewise.advice.plan.machine_rates import Rates
    from tunewise.advice.plan.planner import Planner
    from tunewise.advice.plan.weightless import sketch
    from tunewise.engine.device import device_of

    kind, limit = device_of(device)
    settings = train_settings(budget_steps, training, compute)
    base_sketch = sketch(model, revision=loading.revision, dtype=loading.dtype, max_length=loading.max_length)
    with progress_display() as display:
        is_here = device.startswith(("cpu", "cuda"))  # not a GPU that is known only by its memory
        rates = Rates.measured(torch.bfloat16 if compute.bf16 else torch.float32, device) if is_here else None

        def report(name: str, done: int, total: int) -> None:
            display(model, f"planning {name}", done, total)

        rows = Planner(base_sketch, task, candidates, settings, kind, rates, report).rows(limit)
        if probe:
            base = load_model(model, replace(loading, device=device if kind == "cuda" else "cpu"))
            rows = _calibrated(rows, candidates, base, task, settings, display)
    result = {
        "model": model,
        "task": task.name,
        "device": {"kind": kind, "bytes": limit},
        "budget": {"steps": budget_steps, "per_device_train_batch_size": training.batch_size},
        "rows": [row.to_json() for row in rows],
    }
    if as_json:
        print_json(result)
    else:
        console().print(_table(rows, limit))
        for row in rows:
            if row.reason:
                print_text(f"{row.technique}: {row.reason}")


def _calibrated(
    rows: Sequence[PlanRow],
    recipes: Sequence[Technique],
    base: Base,
    task: Task,
    settings: TrainSettings,
    display: ProgressDisplay,
) -> list[PlanRow]:
    """Replace predictions by what three real steps took, in the rows of techniques that fit as they are."""
    from tunewise.advice.plan.probe import probe

    steps_per_epoch = max(1, round(len(task.train) / settings.rows))
    calibrated = []
    for index, (row, recipe) in enumerate(zip(rows, recipes, strict=True)):
        display(base.name, f"trying {recipe.name}", index, len(rows))
        if row.verdict == "fits" and recipe.trains:
            row = row.calibrated(probe(base, task, recipe, settings), settings.max_steps, steps_per_epoch)
        calibrated.append(row)
    return calibrated


def _table(rows: Sequence[PlanRow], limit: float) -> Table:
    from rich.table import Table

    from tunewise.core.units import count, size

    table = Table(
        title=f"what fits into {size(limit)}",
        caption="memory: peak in training; time: of the budget's steps, without what is trained before them; "
        "prompt: largest number of tokens of a request; request: time of one request on its own",
    )
    for name in (
        "technique",
        "verdict",
        "optimised",
        "stored",
        "on disk",
        "memory",
        "time",
        "prompt",
        "request",
        "largest batch",
    ):
        table.add_column(name, justify="left" if name in ("technique", "verdict") else "right")
    for row in rows:
        verdict: str = row.verdict
        if row.changed:
            verdict += f" batches of {row.changed['per_device_train_batch_size']}"
            verdict += " and recomputation" if row.changed["gradient_checkpointing"] else ""
        stored = row.parameters.stored if row.parameters is not None else None
        request = row.request.seconds if row.request is not None else None
        table.add_row(
            row.technique,
            verdict,
            _cell(row.optimised_parameters, count),
            _cell(stored, count),
            _cell(row.artifact_bytes, size),
            _cell(row.peak, size),
            _cell(row.train_seconds, lambda s: f"{s:,.0f} s" if s < 600 else f"{s / 60:,.0f} min"),
            _cell(row.prompt_tokens, "{:,.0f}".format),
            _cell(request, lambda s: f"{1000 * s:,.0f} ms" if s < 10 else f"{s:,.0f} s"),
            _cell(row.micro_batch, "{:,}".format),
        )
    return table


def _cell(figure: float | None, show: Callable[[float], str]) -> str:
    """Format a figure as a cell of the table; an unknown one is left empty."""
    return "" if figure is None else show(figure)
