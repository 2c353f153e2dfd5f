"""Holds the rows of a file with their numbers, the rows that could not be read, and the errors that name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.text import show

_PLACES = 5  # bad rows that a message describes; it counts the others
_PLACE = 140  # characters of each


@dataclass(frozen=True)
class Fault:
    """Says what is wrong with one row and what to do; `column` is the place in the row, where there is one."""

    number: int
    problem: str
    remedy: str
    column: str | None = None


class BadRow(Exception):
    """One row cannot be used; caught while rows are converted, so that all bad rows are counted."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.problem)
        self.fault = fault


@dataclass(frozen=True)
class Table:
    """Holds the rows of one file (or Hub split) with their numbers, which start at 1.

    Attributes:
        path: the file, or what else the rows were read from.
        rows: the number and the cells of each row; a row may lack columns that others have.
        unit: what a number counts: the "line" of a text file, or the "row" of anything else.
        empty_lines: how many lines were skipped because nothing stands in them.
        faults: the rows that could not be split into cells; they are not among `rows`.
        notes: what was decided while reading, one sentence each.
        parts: of rows that were joined from several files, the number before the first row of each, and its path.
    """

    path: str
    rows: list[tuple[int, Mapping[str, object]]]
    unit: str = "line"
    empty_lines: int = 0
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[tuple[int, str], ...] = ()

    @cached_property
    def name_counts(self) -> Mapping[str, int]:
        """Return every column, in the order of the file, with the number of rows that have it."""
        first = self.rows[0][1]
        if all(row.keys() == first.keys() for _, row in self.rows):
            return dict.fromkeys(first, len(self.rows))
        return Counter(name for _, row in self.rows for name in row)

    def error(self, problem: str, remedy: str, *, number: int | None = None, column: str | None = None) -> DataError:
        """Make the error for this table, or for a row or column of it."""
        path, line = self.path, None
        if number is not None:
            path, number = self._place(number)
            if self.unit == "line":
                line = number
            else:
                problem = f"row {number}: {problem}"
        name = None if column is None else show(column)
        return DataError(problem, path=path, line=line, column=name, remedy=remedy)

    def describe(self, fault: Fault) -> str:
        """Say in a few words where a bad row is and what is wrong with it."""
        path, number = self._place(fault.number)
        place = f"{Path(path).name} {self.unit} {number}" if self.parts else f"{self.unit} {number}"
        column = f' column "{show(fault.column)}"' if fault.column is not None else ""
        text = f"{place}{column}: {fault.problem}"
        return text if len(text) <= _PLACE else text[: _PLACE - 1] + "…"

    def _place(self, number: int) -> tuple[str, int]:
        """Return the file of a row and its number there."""
        before, path = max((part for part in self.parts if part[0] < number), default=(0, self.path))
        return path, number - before


def joined(path: str, tables: Sequence[Table]) -> Table:
    """Return the rows of several tables as one table, which still knows the file of each row."""
    if len(tables) == 1:
        return tables[0]
    rows: list[tuple[int, Mapping[str, object]]] = []
    faults: list[Fault] = []
    parts: list[tuple[int, str]] = []
    before = 0
    for table in tables:
        parts.append((before, table.path))
        rows += [(before + number, row) for number, row in table.rows]
        faults += [replace(fault, number=before + fault.number) for fault in table.faults]
        before += max([number for number, _ in table.rows[-1:]] + [fault.number for fault in table.faults], default=0)
    units = {table.unit for table in tables}
    return Table(
        path,
        rows,
        unit=units.pop() if len(units) == 1 else "row",
        empty_lines=sum(table.empty_lines for table in tables),
        faults=tuple(faults),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        parts=tuple(parts),
    )


def places(bad_rows: Sequence[tuple[Table, Fault]]) -> str:
    """Describe the first bad rows and count the others."""
    several = len({table.path for table, _ in bad_rows}) > 1
    described = [
        f"{Path(table.path).name if several and not table.parts else ''} {table.describe(fault)}".strip()
        for table, fault in bad_rows[:_PLACES]
    ]
    more = [f"and {len(bad_rows) - _PLACES} more"] if len(bad_rows) > _PLACES else []
    return "; ".join([*described, *more])


def bad_rows_error(bad_rows: Sequence[tuple[Table, Fault]], rows: int, remedy: str = "") -> DataError:
    """Make the error for bad rows: about the one, or with the number of all and the first few places.

    Args:
        bad_rows: each with its table.
        rows: how many rows there are, the bad ones included.
        remedy: what else may be done than to mend them, as in ", or leave them out".
    """
    table, fault = bad_rows[0]
    if len(bad_rows) == 1:
        return table.error(fault.problem, fault.remedy + remedy, number=fault.number, column=fault.column)
    return table.error(f"{len(bad_rows)} of {rows} rows are bad ({places(bad_rows)})", f"mend them{remedy}")


class SpelledFloat(float):
    """A number of a JSON file that remembers how it is written, so that 3.50 as an answer stays "3.50"."""

    spelling: str

    def __new__(cls, spelling: str) -> SpelledFloat:
        """Read the number; `spelling` is its text in the file."""
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number


_KINDS: dict[type, str] = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
_KINDS |= {str: "text", list: "a list", dict: "an object", bytes: "bytes", SpelledFloat: "a number"}


def kind_of(value: object) -> str:
    """Name the type of a value in a user's words."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")
