"""Lays a table out for the width of a terminal: the columns that decide stay, and no name or figure is cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

_GAP = 2  # blanks between two columns
_NARROWEST_PROSE = 28  # prose that has less room than this follows below the table
_NARROWEST_WORDS = 6  # in a terminal that is narrower than its longest words


@dataclass(frozen=True)
class Column:
    """Describes a column of a table.

    Attributes:
        name: its heading.
        rank: how soon it is left out where the table is too wide: the highest rank first; 0 always stays.
        kind: `figure` is never wrapped; `words`, such as a name, wrap between words; `prose` gets a column of its own
            where there is room, and follows below the table where there is none.
        meaning: what the legend says of it; empty where the heading says enough.
    """

    name: str
    rank: int = 0
    kind: Literal["figure", "words", "prose"] = "figure"
    meaning: str = ""


@dataclass(frozen=True)
class TableRow:
    """Holds the cells of a row, plain text in the order of the columns, and their style."""

    cells: Sequence[str]
    style: str = ""


@dataclass(frozen=True)
class FittedTable:
    """A table that rich prints with as many of its columns as fit; what was left out is named below it.

    Attributes:
        columns: the columns in the order in which they are shown; the first of kind `words` names the rows.
        rows: the rows.
        wide: show all columns; those that do not fit follow in further tables, with the names repeated.
        below: lines that stand right below the rows, such as those of rows without figures.
        explained: name the columns that were left out, and explain those that are shown.
    """

    columns: Sequence[Column]
    rows: Sequence[TableRow]
    wide: bool = False
    below: Sequence[Text] = field(default=())
    explained: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the table, or several where it is wide, and what belongs below it."""
        shown, left_out = self._fitting(self._tabular, options.max_width)
        widths, prose_below = self._with_prose(self._widths(shown, options.max_width), options.max_width)
        yield self._table(widths)
        explained = [*shown, *self._prose]
        while self.wide and left_out:
            more, left_out = self._fitting([self._name, *left_out], options.max_width, [self._name])
            yield Text()
            yield self._table(self._widths(more, options.max_width))
            explained += more
        yield from self.below
        yield from self._footnotes(explained, left_out)
        for row in self.rows if prose_below else ():
            if texts := [row.cells[place] for place in self._prose if row.cells[place]]:
                yield Text(f"{row.cells[self._name]}: {'; '.join(texts)}", row.style)

    def _footnotes(self, shown: Sequence[int], left_out: Sequence[int]) -> Iterator[Text]:
        """Yield the names of the columns that were left out and the meanings of those that are shown."""
        if not self.explained:
            return
        if left_out:
            yield Text(f"Further columns: {', '.join(self.columns[place].name for place in left_out)}: --wide", "dim")
        columns = [self.columns[place] for place in sorted(set(shown))]
        meanings = [f"{column.name}: {column.meaning}" for column in columns if column.meaning]
        if meanings:
            yield Text("; ".join(meanings) + ".", "dim")

    @property
    def _name(self) -> int:
        """Return the index of the column that names the rows."""
        return next(place for place, column in enumerate(self.columns) if column.kind == "words")

    @property
    def _tabular(self) -> list[int]:
        return [place for place, column in enumerate(self.columns) if column.kind != "prose"]

    @property
    def _prose(self) -> list[int]:
        return [place for place, column in enumerate(self.columns) if column.kind == "prose"]

    def _cells(self, place: int) -> list[str]:
        return [row.cells[place] for row in self.rows]

    def _longest_word(self, place: int) -> int:
        texts = [self.columns[place].name, *self._cells(place)]
        return max((cell_len(word) for text in texts for word in text.split()), default=1)

    def _natural(self, place: int) -> int:
        """Return the width at which no cell wraps, and only a long heading does."""
        return max([self._longest_word(place), *map(cell_len, self._cells(place))])

    def _narrowest(self, place: int, width: int) -> int:
        """Return the width that a column must have: words may wrap, though not into slivers where there is room."""
        if self.columns[place].kind == "figure":
            return self._natural(place)
        return min(self._natural(place), max(self._longest_word(place), width // 4))

    def _fitting(self, places: Sequence[int], width: int, kept: Sequence[int] = ()) -> tuple[list[int], list[int]]:
        """Return the columns that fit, in their order, and those that are left out.

        The columns of rank 0 or, if any are given, those in `kept` stay, and at least one other does where `kept` is
        given, so that every further table shows something new.
        """
        stay = list(kept) or [place for place in places if self.columns[place].rank == 0]
        candidates = sorted((place for place in places if place not in stay), key=lambda p: self.columns[p].rank)
        for place in candidates:
            needed = sum(self._narrowest(p, width) for p in [*stay, place]) + _GAP * len(stay)
            if needed > width and not (kept and len(stay) == len(kept)):
                break
            stay.append(place)
        return sorted(stay), sorted(place for place in places if place not in stay)

    def _widths(self, places: Sequence[int], width: int) -> list[tuple[int, int]]:
        """Return each column with its width: what words need to wrap little is taken from what is left over."""
        widths = {place: self._narrowest(place, width) for place in places}
        room = width - _GAP * (len(places) - 1)
        words = [place for place in places if self.columns[place].kind == "words"]
        for place in words:
            spare = room - sum(widths.values())
            least = min(_NARROWEST_WORDS, widths[place])
            widths[place] = max(least, min(self._natural(place), widths[place] + spare))
        return list(widths.items())

    def _with_prose(self, widths: list[tuple[int, int]], width: int) -> tuple[list[tuple[int, int]], bool]:
        """Return the widths with those of the prose, where there is room for it; and whether it goes below instead."""
        prose = self._prose
        natural = [min(self._natural(place), 2 * _NARROWEST_PROSE) for place in prose]
        room = width - sum(columns for _, columns in widths) - _GAP * (len(widths) - 1 + len(prose))
        if room < sum(min(columns, _NARROWEST_PROSE) for columns in natural):
            return widths, True
        shares = [room * columns // max(sum(natural), 1) for columns in natural]
        return [
            *widths,
            *((place, max(1, min(share, self._natural(place)))) for place, share in zip(prose, shares, strict=True)),
        ], False

    def _table(self, widths: Sequence[tuple[int, int]]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for place, width in sorted(widths):
            column = self.columns[place]
            justify: Literal["left", "right"] = "right" if column.kind == "figure" else "left"
            table.add_column(Text(column.name), justify=justify, width=width, overflow="fold", vertical="top")
        for row in self.rows:
            table.add_row(*(Text(row.cells[place], row.style) for place, _ in sorted(widths)))
        return table


def decimals_of_intervals(widths: Sequence[float]) -> int:
    """Return how many decimals the ends of a table's intervals need: three where one is narrower than a tenth."""
    return 3 if any(0 < width < 0.1 for width in widths) else 2


def with_interval(mean: float, low: float, high: float, decimals: int = 2, form: str = ".3f") -> str:
    """Write a figure with its interval in one cell: 0.562 [.49, .63]."""
    return f"{mean:{form}} [{_end(low, decimals)}, {_end(high, decimals)}]"


def _end(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and text.lstrip("-").startswith("0.") else text
