"""The command that says what techniques will need before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

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

    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base
    from tunewise.fitting.settings import TrainSettings


@grouped_options
def plan(
    model: Model,
    data: Data,
    techniques: Techniques = "all",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or a size such as 24GB, taken as a GPU's.")] = "cpu",
    budget_steps: BudgetSteps = 100,
    *,
    training: Annotated[TrainOptions, only("batch_size", "accumulate")],
    compute: ComputeOptions,
    reading: Annotated[DataOptions, only("columns", "template")],
    recipes: TechniqueOptions,
    loading: Annotated[ModelOptions, only("max_length", "revision", "dtype")],
    probe: Annotated[
        bool, typer.Option("--probe", help="Run three real steps of each, to calibrate memory and time here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what techniques need of memory, time and disk, and which fit, from a model's configuration alone."""
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
    drawn = sketch(model, revision=loading.revision, dtype=loading.dtype, max_length=loading.max_length)
    with progress_display() as display:
        there = device.startswith(("cpu", "cuda"))  # a GPU of some size is nowhere
        rates = Rates.measured(torch.bfloat16 if compute.bf16 else torch.float32, device) if there else None

        def report(name: str, done: int, total: int) -> None:
            display(model, f"planning {name}", done, total)

        rows = Planner(drawn, task, candidates, settings, kind, rates, report).rows(limit)
        if probe:
            base = load_model(model, replace(loading, device=device if kind == "cuda" else "cpu"))
            _calibrate(rows, candidates, base, task, settings, display)
    result = {
        "model": model,
        "task": task.name,
        "device": {"kind": kind, "bytes": limit},
        "budget": {"steps": budget_steps, "per_device_train_batch_size": training.batch_size},
        "rows": rows,
    }
    if as_json:
        print_json(result)
    else:
        console().print(_table(rows, limit))
        for row in rows:
            if row["reason"]:
                print_text(f"{row['technique']}: {row['reason']}")


def _calibrate(
    rows: list[dict[str, Any]],
    recipes: list[Technique],
    base: Base,
    task: Task,
    settings: TrainSettings,
    display: ProgressDisplay,
) -> None:
    """Put what three real steps took into the rows of techniques that fit as they are; the figures foreseen stay."""
    from tunewise.advice.plan.probe import probe as tried

    for place, (row, recipe) in enumerate(zip(rows, recipes, strict=True)):
        display(base.name, f"trying {recipe.name}", place, len(rows))
        if row["verdict"] != "fits" or not recipe.trains:
            continue
        found = tried(base, task, recipe, settings)
        factor = settings.max_steps * found["step"]
        row["probe"] = found | {"foreseen_peak": row["memory"]["peak"], "foreseen_time": row["time"]}
        row["memory"] = row["memory"] | {"peak": found["peak"]}
        epoch = found["step"] * max(1, round(len(task.train) / settings.rows))
        row["time"] = {"seconds_per_step": found["step"], "seconds_per_epoch": epoch, "seconds": factor}


def _table(rows: list[dict[str, Any]], limit: float) -> Table:
    from rich.table import Table

    from tunewise.core.units import count, size

    table = Table(
        title=f"what fits into {size(limit)}",
        caption="memory: peak in training; time: of the budget's steps, without what is learnt before them; prompt: "
        "tokens of a request, at most; request: its time, alone",
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
        if row["verdict"] == "not possible":
            table.add_row(row["technique"], row["verdict"])
            continue
        seconds, asked, changed = row["time"]["seconds"], row["request"]["seconds"], row["with"]
        said = row["verdict"]
        if changed:
            said += f" batches of {changed['per_device_train_batch_size']}"
            said += " and recomputation" if changed["gradient_checkpointing"] else ""
        table.add_row(
            row["technique"],
            said,
            count(row["parameters"]["optimised"]),
            count(row["parameters"]["stored"]),
            size(row["artifact_bytes"]),
            size(row["memory"]["peak"]),
            "" if seconds is None else f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min",
            f"{row['request']['prompt_tokens']:,.0f}",
            "" if asked is None else f"{1000 * asked:,.0f} ms" if asked < 10 else f"{asked:,.0f} s",
            "" if row["micro_batch"] is None else f"{row['micro_batch']:,}",
        )
    return table
