"""Shows two comparisons side by side, technique by technique."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.core.units import duration, size
from tunewise.results.report.layout import Column, FittedTable, TableRow, decimals_of_intervals, with_interval
from tunewise.results.report.tables import heading
from tunewise.results.schema import Comparison, Row, ScoredRow

_SCORES = "the scores are not comparable"
_TIMES = "times and memory are not comparable"
_COLUMNS = (
    Column("technique", kind="words"),
    Column("score A"),
    Column("score B"),
    Column("B − A", rank=1),
    Column("train A", rank=2),
    Column("train B", rank=2),
    Column("memory A", rank=3),
    Column("memory B", rank=3),
)
COLUMNS_BESIDE = tuple(column.name for column in _COLUMNS)
_MACHINE = ("device", "processor", "cores", "threads")


def differences(a: Comparison, b: Comparison) -> list[str]:
    """Say what makes two comparisons incomparable, and which figures it affects; empty if nothing does."""
    sentences = []
    for what, one, two in (
        ("model", (a.model.fingerprint, a.model.short_name), (b.model.fingerprint, b.model.short_name)),
        ("task", (a.task.fingerprint, a.task.name), (b.task.fingerprint, b.task.name)),
        ("metric", (a.task.metric, a.task.metric), (b.task.metric, b.task.metric)),
    ):
        if one[0] != two[0]:
            sentences.append(f"The {what} differs ({one[1]}, {two[1]}): {_SCORES}.")
    budgets = a.budget.to_json(), b.budget.to_json()
    if changed := _describe_changes(*budgets, sorted({*budgets[0], *budgets[1]})):
        sentences.append(f"The budget differs ({changed}): {_SCORES}.")
    if changed := _describe_changes(a.settings, b.settings, sorted({*a.settings, *b.settings})):
        sentences.append(f"The settings differ ({changed}): {_SCORES}.")
    if changed := _describe_changes(a.machine.to_json(), b.machine.to_json(), _MACHINE):
        sentences.append(f"The machine differs ({changed}): {_TIMES}.")
    return sentences


def _describe_changes(one: Mapping[str, object], two: Mapping[str, object], names: Iterable[str]) -> str:
    changed = [name for name in names if one.get(name) != two.get(name)]
    return ", ".join(f"{name}: {one.get(name)}, {two.get(name)}" for name in changed)


def beside(a: Comparison, b: Comparison, *, wide: bool = False) -> RenderableType:
    """Return what differs between the settings of two comparisons, then a table of both: scores, difference, costs.

    The rows are those of `a`, best score first, then those that only `b` has. The difference is mean(b) - mean(a),
    without a test of significance. `wide` shows all columns, whatever the width of the terminal. Cells are plain text,
    so that data cannot inject markup.
    """
    rows = [TableRow(cells) for cells in rows_beside(a, b)]
    return Group(
        *(Text(line, style="bold yellow") for line in differences(a, b)),
        Text(f"A: {heading(a)}, {a.created}"),
        Text(f"B: {heading(b)}, {b.created}"),
        Text(""),
        FittedTable(_COLUMNS, rows, wide),
        Text(f"score: {a.task.metric}, with its 95 % interval; train: time of the fit", style="dim"),
    )


def rows_beside(a: Comparison, b: Comparison) -> list[list[str]]:
    """Return the cells of each technique of two comparisons, in the order of `COLUMNS_BESIDE`."""
    decimals = decimals_of_intervals([row.score.high - row.score.low for row in (*a.scored, *b.scored)])
    rows: list[list[str]] = []
    firsts, seconds = ({row.technique: row for row in result.rows} for result in (a, b))
    same = a.task.metric == b.task.metric
    for name in sorted({**firsts, **seconds}, key=lambda name: (name not in firsts, -_mean_score(firsts.get(name)))):
        one, two = firsts.get(name), seconds.get(name)
        both = isinstance(one, ScoredRow) and isinstance(two, ScoredRow) and same
        difference = f"{_mean_score(two) - _mean_score(one):+.3f}" if both else ""
        cells = [
            name,
            _score_cell(one, decimals),
            _score_cell(two, decimals),
            difference,
            *map(_train_cell, (one, two)),
            *map(_memory_cell, (one, two)),
        ]
        rows.append(cells)
    return rows


def _mean_score(row: Row | None) -> float:
    return row.score.mean if isinstance(row, ScoredRow) else 0.0


def _score_cell(row: Row | None, decimals: int) -> str:
    if row is None:
        return "–"
    if not isinstance(row, ScoredRow):
        return row.status
    return with_interval(row.score.mean, row.score.low, row.score.high, decimals)


def _train_cell(row: Row | None) -> str:
    return duration(row.cost.train_seconds) if isinstance(row, ScoredRow) else ""


def _memory_cell(row: Row | None) -> str:
    return size(row.cost.peak_memory_bytes) if isinstance(row, ScoredRow) else ""
