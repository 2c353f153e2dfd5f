"""Shows in the terminal what techniques are planned to need, and which of them fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.advice.plan.plan_row import PlanRow
from tunewise.core.units import count, duration, size
from tunewise.results.report.layout import Column, FittedTable, TableRow

_COLUMNS = (
    Column("technique", kind="words"),
    Column("verdict", kind="words"),
    Column("memory", rank=1, meaning="peak in training"),
    Column("time", rank=2, meaning="of the budget's steps, without what is trained before them"),
    Column("run", rank=3, meaning="time of the whole row of a comparison: training, scoring and forgetting"),
    Column("process", rank=4, meaning="peak of memory of the whole process in a comparison"),
    Column("on disk", rank=5, meaning="size of the adaptation"),
    Column("largest batch", rank=6, meaning="examples of a pass that still fit"),
    Column("prompt", rank=8, meaning="largest number of tokens of a request"),
    Column("request", rank=7, meaning="time of one request on its own"),
    Column("optimised", rank=9, meaning="number of parameters that training changes"),
    Column("stored", rank=10, meaning="number of parameters in the adaptation"),
)


def plan_page(rows: Sequence[PlanRow], limit: float, *, wide: bool = False) -> RenderableType:
    """Show the plan of each technique for a device of `limit` bytes, and the reasons of those that do not fit.

    `wide` shows all columns, whatever the width of the terminal.
    """
    table = FittedTable(_COLUMNS, [TableRow(_cells(row)) for row in rows], wide)
    reasons = [Text(f"{row.technique}: {row.reason}") for row in rows if row.reason]
    return Group(Text(f"what fits into {size(limit)}", style="italic"), table, *reasons)


def _cells(row: PlanRow) -> list[str]:
    verdict: str = row.verdict
    if row.changed:
        verdict += f" batches of {row.changed['per_device_train_batch_size']}"
        verdict += " and recomputation" if row.changed["gradient_checkpointing"] else ""
    stored = row.parameters.stored if row.parameters is not None else None
    return [
        row.technique,
        verdict,
        _cell(row.peak, size),
        _cell(row.train_seconds, duration),
        _cell(row.run, duration),
        _cell(row.process, size),
        _cell(row.artifact_bytes, size),
        _cell(row.micro_batch, "{:,}".format),
        _cell(row.prompt_tokens, "{:,.0f}".format),
        _cell(row.request.seconds if row.request is not None else None, _request_time),
        _cell(row.optimised_parameters, count),
        _cell(stored, count),
    ]


def _request_time(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds < 1 else duration(seconds)


def _cell(figure: float | None, show: Callable[[float], str]) -> str:
    """Format a figure as a cell of the table; an unknown one is left empty."""
    return "" if figure is None else show(figure)
