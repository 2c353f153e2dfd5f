"""Two comparisons side by side, technique by technique."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunewise.core.units import size
from tunewise.results.report.tables import heading

Result = Mapping[str, Any]

_SCORES = "the scores cannot be compared as they stand"
_TIMES = "times and memory cannot be compared as they stand"
_MACHINE = ("device", "processor", "cores", "threads")


def differences(a: Result, b: Result) -> list[str]:
    """What keeps two comparisons from being compared as they stand, each with what follows; empty if nothing does."""
    said = []
    for what, one, two in (
        ("model", a["model"]["fingerprint"], b["model"]["fingerprint"]),
        ("task", a["task"]["fingerprint"], b["task"]["fingerprint"]),
        ("metric", a["task"]["metric"], b["task"]["metric"]),
    ):
        if one != two:
            named = (a[what]["name"], b[what]["name"]) if what in a else (one, two)
            said.append(f"The {what} differs ({named[0]}, {named[1]}): {_SCORES}.")
    for part in ("budget", "settings"):
        if changed := _changed(a[part], b[part], sorted({*a[part], *b[part]})):
            said.append(f"The {part} differ{'s' if part == 'budget' else ''} ({changed}): {_SCORES}.")
    if changed := _changed(a["machine"], b["machine"], _MACHINE):
        said.append(f"The machine differs ({changed}): {_TIMES}.")
    return said


def _changed(one: Result, two: Result, names: list[str] | tuple[str, ...]) -> str:
    changed = [name for name in names if one.get(name) != two.get(name)]
    return ", ".join(f"{name}: {one.get(name)}, {two.get(name)}" for name in changed)


def beside(a: Result, b: Result) -> RenderableType:
    """What differs in how two comparisons were made, then the techniques of both: score, its difference, costs.

    The rows are those of `a`, best score first, then those that only `b` has. A difference is that of the means, b
    less a, and says nothing of chance. Cells are plain text, so that no data can carry markup.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("technique", "score A", "score B", "B less A", "train A", "train B", "memory A", "memory B")
    for place, name in enumerate(heads):
        table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    firsts, seconds = ({row["technique"]: row for row in result["rows"]} for result in (a, b))
    same = a["task"]["metric"] == b["task"]["metric"]
    for name in sorted({**firsts, **seconds}, key=lambda name: (name not in firsts, -_mean(firsts.get(name)))):
        one, two = firsts.get(name), seconds.get(name)
        both = one and two and "score" in one and "score" in two and same
        difference = f"{_mean(two) - _mean(one):+.3f}" if both else ""
        cells = [name, _score(one), _score(two), difference, *map(_train, (one, two)), *map(_memory, (one, two))]
        table.add_row(*map(Text, cells))
    return Group(
        *(Text(line, style="bold yellow") for line in differences(a, b)),
        Text(f"A: {heading(a)}, {a['created']}"),
        Text(f"B: {heading(b)}, {b['created']}"),
        Text(""),
        table,
        Text(f"score: {a['task']['metric']}, with its 95 % interval; train: seconds", style="dim"),
    )


def _mean(row: Mapping[str, Any] | None) -> float:
    return float(row["score"]["mean"]) if row and "score" in row else 0.0


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if "score" not in row:
        return str(row["status"])
    score = row["score"]
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _train(row: Mapping[str, Any] | None) -> str:
    return f"{row['cost']['train_seconds']:.1f}" if row and "cost" in row else ""


def _memory(row: Mapping[str, Any] | None) -> str:
    return size(row["cost"]["peak_memory_bytes"]) if row and "cost" in row else ""
