"""Two comparisons side by side, technique by technique."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunewise.core.units import size
from tunewise.results.report.tables import heading
from tunewise.results.schema import Comparison, Row, ScoredRow

_SCORES = "the scores cannot be compared as they stand"
_TIMES = "times and memory cannot be compared as they stand"
_MACHINE = ("device", "processor", "cores", "threads")


def differences(a: Comparison, b: Comparison) -> list[str]:
    """What keeps two comparisons from being compared as they stand, each with what follows; empty if nothing does."""
    said = []
    for what, one, two in (
        ("model", (a.model.fingerprint, a.model.name), (b.model.fingerprint, b.model.name)),
        ("task", (a.task.fingerprint, a.task.name), (b.task.fingerprint, b.task.name)),
        ("metric", (a.task.metric, a.task.metric), (b.task.metric, b.task.metric)),
    ):
        if one[0] != two[0]:
            said.append(f"The {what} differs ({one[1]}, {two[1]}): {_SCORES}.")
    budgets = a.budget.to_json(), b.budget.to_json()
    if changed := _changed(*budgets, sorted({*budgets[0], *budgets[1]})):
        said.append(f"The budget differs ({changed}): {_SCORES}.")
    if changed := _changed(a.settings, b.settings, sorted({*a.settings, *b.settings})):
        said.append(f"The settings differ ({changed}): {_SCORES}.")
    if changed := _changed(a.machine.to_json(), b.machine.to_json(), _MACHINE):
        said.append(f"The machine differs ({changed}): {_TIMES}.")
    return said


def _changed(one: Mapping[str, object], two: Mapping[str, object], names: Iterable[str]) -> str:
    changed = [name for name in names if one.get(name) != two.get(name)]
    return ", ".join(f"{name}: {one.get(name)}, {two.get(name)}" for name in changed)


def beside(a: Comparison, b: Comparison) -> RenderableType:
    """What differs in how two comparisons were made, then the techniques of both: score, its difference, costs.

    The rows are those of `a`, best score first, then those that only `b` has. A difference is that of the means, b
    less a, and says nothing of chance. Cells are plain text, so that no data can carry markup.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("technique", "score A", "score B", "B less A", "train A", "train B", "memory A", "memory B")
    for place, name in enumerate(heads):
        table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    firsts, seconds = ({row.technique: row for row in result.rows} for result in (a, b))
    same = a.task.metric == b.task.metric
    for name in sorted({**firsts, **seconds}, key=lambda name: (name not in firsts, -_mean(firsts.get(name)))):
        one, two = firsts.get(name), seconds.get(name)
        both = isinstance(one, ScoredRow) and isinstance(two, ScoredRow) and same
        difference = f"{_mean(two) - _mean(one):+.3f}" if both else ""
        cells = [name, _score(one), _score(two), difference, *map(_train, (one, two)), *map(_memory, (one, two))]
        table.add_row(*map(Text, cells))
    return Group(
        *(Text(line, style="bold yellow") for line in differences(a, b)),
        Text(f"A: {heading(a)}, {a.created}"),
        Text(f"B: {heading(b)}, {b.created}"),
        Text(""),
        table,
        Text(f"score: {a.task.metric}, with its 95 % interval; train: seconds", style="dim"),
    )


def _mean(row: Row | None) -> float:
    return row.score.mean if isinstance(row, ScoredRow) else 0.0


def _score(row: Row | None) -> str:
    if row is None:
        return "–"
    if not isinstance(row, ScoredRow):
        return row.status
    return f"{row.score.mean:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]"


def _train(row: Row | None) -> str:
    return f"{row.cost.train_seconds:.1f}" if isinstance(row, ScoredRow) else ""


def _memory(row: Row | None) -> str:
    return size(row.cost.peak_memory_bytes) if isinstance(row, ScoredRow) else ""
