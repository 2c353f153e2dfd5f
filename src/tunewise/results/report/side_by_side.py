"""Shows two comparisons side by side, technique by technique."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunewise.core.units import size
from tunewise.results.report.tables import heading
from tunewise.results.schema import Comparison, Row, ScoredRow

_SCORES = "the scores are not comparable"
_TIMES = "times and memory are not comparable"
_MACHINE = ("device", "processor", "cores", "threads")


def differences(a: Comparison, b: Comparison) -> list[str]:
    """Say what makes two comparisons incomparable, and which figures it affects; empty if nothing does."""
    sentences = []
    for what, one, two in (
        ("model", (a.model.fingerprint, a.model.name), (b.model.fingerprint, b.model.name)),
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


def beside(a: Comparison, b: Comparison) -> RenderableType:
    """Return what differs between the settings of two comparisons, then a table of both: scores, difference, costs.

    The rows are those of `a`, best score first, then those that only `b` has. The difference is mean(b) - mean(a),
    without a test of significance. Cells are plain text, so that data cannot inject markup.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("technique", "score A", "score B", "B − A", "train A", "train B", "memory A", "memory B")
    for place, name in enumerate(heads):
        table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    firsts, seconds = ({row.technique: row for row in result.rows} for result in (a, b))
    same = a.task.metric == b.task.metric
    for name in sorted({**firsts, **seconds}, key=lambda name: (name not in firsts, -_mean_score(firsts.get(name)))):
        one, two = firsts.get(name), seconds.get(name)
        both = isinstance(one, ScoredRow) and isinstance(two, ScoredRow) and same
        difference = f"{_mean_score(two) - _mean_score(one):+.3f}" if both else ""
        cells = [
            name,
            _score_cell(one),
            _score_cell(two),
            difference,
            *map(_train_cell, (one, two)),
            *map(_memory_cell, (one, two)),
        ]
        table.add_row(*map(Text, cells))
    return Group(
        *(Text(line, style="bold yellow") for line in differences(a, b)),
        Text(f"A: {heading(a)}, {a.created}"),
        Text(f"B: {heading(b)}, {b.created}"),
        Text(""),
        table,
        Text(f"score: {a.task.metric}, with its 95 % interval; train: seconds", style="dim"),
    )


def _mean_score(row: Row | None) -> float:
    return row.score.mean if isinstance(row, ScoredRow) else 0.0


def _score_cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if not isinstance(row, ScoredRow):
        return row.status
    return f"{row.score.mean:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]"


def _train_cell(row: Row | None) -> str:
    return f"{row.cost.train_seconds:.1f}" if isinstance(row, ScoredRow) else ""


def _memory_cell(row: Row | None) -> str:
    return size(row.cost.peak_memory_bytes) if isinstance(row, ScoredRow) else ""
