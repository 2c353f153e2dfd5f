"""The command that predicts what techniques need, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import console, print_json, shows_all
from tunewise.cli.options import BudgetSteps, Data, Model, ShownOptions, Techniques, grouped_options, only
from tunewise.cli.progress_display import ProgressDisplay, progress_display
from tunewise.core.logs import quiet
from tunewise.core.text import model_name
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
    from tunewise.advice.plan.plan_row import PlanRow
    from tunewise.advice.plan.planner import Planner
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base
    from tunewise.fitting.settings import TrainSettings


_VALIDATION = 128  # examples of the validation sample of a comparison, by default


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
    reading: Annotated[DataOptions, only("columns", "template", "kind", "skip_bad_rows", "label_list")],
    recipes: TechniqueOptions,
    loading: Annotated[ModelOptions, only("max_length", "revision", "dtype", "resize_embeddings")],
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Run three real steps of each technique that fits, to calibrate memory and time on this machine.",
        ),
    ] = False,
    shown: ShownOptions,
) -> None:
    """Predict how much memory, time and disk techniques need, and which fit, from a model's configuration alone."""
    task = read_task(data, reading)
    candidates = recipes_of(techniques, recipes)
    quiet()
    import torch

    from tunewise.advice.plan.machine_rates import Rates
    from tunewise.advice.plan.planner import Planner
    from tunewise.advice.plan.weightless import sketch
    from tunewise.data.task import sample
    from tunewise.engine.device import device_of

    task = replace(task, validation=sample(task.validation, _VALIDATION))
    kind, limit = device_of(device)
    settings = train_settings(budget_steps, training, compute)
    base_sketch = sketch(
        model,
        revision=loading.revision,
        dtype=loading.dtype,
        device_kind=kind,
        max_length=loading.max_length,
        resize_embeddings=loading.resize_embeddings,
    )
    with progress_display() as display:
        display(model, "measuring this machine's rates", 0, 0)
        is_here = device.startswith(("cpu", "cuda"))  # not a GPU that is known only by its memory
        rates = Rates.measured(torch.bfloat16 if compute.bf16 else base_sketch.dtype, device) if is_here else None

        def report(name: str, done: int, total: int) -> None:
            display(model_name(model), f"planning {name}", done, total)

        estimates_run = kind == "cpu" and rates is not None
        planner = Planner(base_sketch, task, candidates, settings, kind, rates, report, estimates_run)
        rows = planner.rows(limit)
        if probe:
            display(model, "loading", 0, 0)
            base = load_model(model, replace(loading, device=device if kind == "cuda" else "cpu"))
            rows = _calibrated(rows, candidates, base, task, settings, display)
    if estimates_run:
        rows = _with_whole_runs(rows, planner)
    result = {
        "model": model,
        "task": task.name,
        "device": {"kind": kind, "bytes": limit},
        "budget": {"steps": budget_steps, "per_device_train_batch_size": training.batch_size},
        "rows": [row.to_json() for row in rows],
    }
    if shown.as_json:
        print_json(result)
    else:
        from tunewise.cli.views.plan import plan_page

        console().print(plan_page(rows, limit, wide=shows_all(shown.wide)))


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
        display(model_name(base.name), f"trying {recipe.name}", index, len(rows))
        if row.verdict == "fits" and recipe.trains:
            row = row.calibrated(probe(base, task, recipe, settings), settings.max_steps, steps_per_epoch)
        calibrated.append(row)
    return calibrated


def _with_whole_runs(rows: Sequence[PlanRow], planner: Planner) -> list[PlanRow]:
    """Add the time and memory of a comparison of one seed with the default samples to the rows that are possible."""
    from tunewise.advice.plan.whole_run import WholeRun, Workload
    from tunewise.data.task import default_test_examples, sample

    task = planner.task
    workload = Workload(
        task=task,
        validation=task.validation,
        test=sample(task.test, default_test_examples(task.kind)),
        settings=planner.settings,
    )
    run = WholeRun.here(planner.sketched, workload, planner.tracer)
    completed = []
    for row, recipe in zip(rows, planner.techniques, strict=True):
        if row.verdict != "not possible":
            estimate = run.row(recipe)
            row = replace(row, run=estimate.seconds, process=float(estimate.peak_memory_bytes))
        completed.append(row)
    return completed
