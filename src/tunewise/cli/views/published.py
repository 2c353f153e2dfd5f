"""Shows results from publications in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.advice.published.publications import Publication, Row, Table
from tunewise.core.units import count
from tunewise.results.report.layout import Column, FittedTable, TableRow


def published_page(publications: Iterable[Publication], *, wide: bool = False) -> RenderableType:
    """Show of each publication where it was read, its comparisons with one on a line, and what it says.

    `wide` shows all columns, whatever the width of the terminal.
    """
    parts = [part for publication in publications for part in _publication(publication, wide)]
    return Group(*parts, Text(_LEGEND, style="dim"))


def _publication(publication: Publication, wide: bool) -> Iterator[RenderableType]:
    yield Text(f"{publication.cited}, {publication.url}", style="bold")
    for reading in publication.readings.values():
        yield Text(f"Read: {reading.how}, {reading.place}{f'. {reading.note}' if reading.note else ''}", style="dim")
    rows = [_line(publication, table, group) for table in publication.tables for group in table.groups()]
    if rows:
        yield FittedTable(_COMPARISONS, rows, wide, explained=False)
    yield from (Text(claim.says) for claim in publication.claims)
    yield from (Text(constant.says) for constant in publication.constants)
    yield Text()


def _line(publication: Publication, table: Table, rows: tuple[Row, ...]) -> TableRow:
    model, budget = rows[0].model, rows[0].budget
    numbers = sorted({number for row in rows if (number := row.train or table.train) is not None})
    cells = [
        table.id,
        f"{model}, {budget}" if budget else model,
        _scores(rows),
        table.metric,
        " or ".join(f"{number:,}" for number in numbers),
        table.comparable,
        table.kind,
        count(publication.models[model].parameters),
    ]
    return TableRow(cells)


def _scores(rows: tuple[Row, ...]) -> str:
    """Name each technique with the score of its best row, the best first."""
    best: dict[str, float] = {}
    for row in rows:
        best[row.technique] = max(row.score, best.get(row.technique, row.score))
    return ", ".join(f"{name} {best[name]:.4g}" for name in sorted(best, key=lambda name: -best[name]))


_COMPARISONS = (
    Column("table", kind="words"),
    Column("model", rank=1, kind="words"),
    Column("scores", kind="words"),
    Column("metric", rank=3, kind="words"),
    Column("train", rank=2),
    Column("comparable", rank=4, kind="words"),
    Column("kind", rank=5, kind="words"),
    Column("parameters", rank=6),
)
_LEGEND = (
    "scores: as printed, of the best row of each technique; train: training examples; comparable: how far with our own "
    "records; parameters: of the model. --wide shows all columns, --json every figure with its source."
)
