"""Holds the rows of a file with their numbers, the rows that could not be read, and the errors that name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from tunewise.core.errors import DataError
from tunewise.core.text import show

_PLACES = 5  # bad rows that a message describes; it counts the others
_PLACE = 140  # characters of each

Row = tuple[int, Mapping[str, object]]  # its number and its cells


class Rows(Protocol):
    """Rows that can be read any number of times: a list of them, or a file that is read anew each time."""

    def __len__(self) -> int:
        """Count them."""
        ...

    def __iter__(self) -> Iterator[Row]:
        """Begin with the first."""
        ...


class Survey:
    """Takes in rows one by one, and tells which columns they have.

    Attributes:
        lists: the number of the first row with a list in a column, for each column that has any.
        count: how many rows there are.
        last: the number of the last row.
    """

    def __init__(self) -> None:
        self.lists: dict[str, int] = {}
        self.count = self.last = 0
        self._counts: dict[str, int] = {}
        self._alike = 0  # rows with exactly the columns that are known, which most have

    def add(self, row: Row) -> None:
        """Take in a row."""
        number, cells = row
        self.count, self.last = self.count + 1, number
        if cells.keys() == self._counts.keys():
            self._alike += 1
        else:
            self._counts = {name: count + self._alike for name, count in self._counts.items()}
            self._alike = 0
            for name in cells:
                self._counts[name] = self._counts.get(name, 0) + 1
        for name, value in cells.items():
            if isinstance(value, list) and name not in self.lists:
                self.lists[name] = number

    def extend(self, later: Survey, before: int) -> None:
        """Take in the rows of another survey, which are numbered from `before` on."""
        counts = dict(self.name_counts)
        for name, count in later.name_counts.items():
            counts[name] = counts.get(name, 0) + count
        self._counts, self._alike = counts, 0
        for name, number in later.lists.items():
            self.lists.setdefault(name, before + number)
        self.count, self.last = self.count + later.count, before + later.last

    @property
    def name_counts(self) -> Mapping[str, int]:
        """Return every column, in the order of the file, with the number of rows that have it."""
        return {name: count + self._alike for name, count in self._counts.items()}


@dataclass(frozen=True, slots=True)
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
        rows: the number and the cells of each row, in order; a row may lack columns that others have.
        unit: what a number counts: the "line" of a text file, or the "row" of anything else.
        empty_lines: how many lines were skipped because nothing stands in them.
        faults: the rows that could not be split into cells; they are not among `rows`.
        notes: what was decided while reading, one sentence each.
        parts: of rows that were joined from several files, the number before the first row of each, and its path.
        surveyed: what was found out while the rows were read for the first time, if it was.
    """

    path: str
    rows: Rows
    unit: str = "line"
    empty_lines: int = 0
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[tuple[int, str], ...] = ()
    surveyed: Survey | None = None

    @cached_property
    def survey(self) -> Survey:
        """Tell which columns the rows have."""
        if self.surveyed is not None:
            return self.surveyed
        survey = Survey()
        for row in self.rows:
            survey.add(row)
        return survey

    @cached_property
    def name_counts(self) -> Mapping[str, int]:
        """Return every column, in the order of the file, with the number of rows that have it."""
        return self.survey.name_counts

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


@dataclass(frozen=True)
class _JoinedRows:
    """The rows of several tables, one after the other, each with the number before its first row."""

    parts: Sequence[tuple[int, Table]]

    def __len__(self) -> int:
        return sum(len(table.rows) for _, table in self.parts)

    def __iter__(self) -> Iterator[Row]:
        for before, table in self.parts:
            for number, cells in table.rows:
                yield before + number, cells


def joined(path: str, tables: Sequence[Table]) -> Table:
    """Return the rows of several tables as one table, which still knows the file of each row."""
    if len(tables) == 1:
        return tables[0]
    faults: list[Fault] = []
    placed: list[tuple[int, Table]] = []
    survey, before = Survey(), 0
    for table in tables:
        placed.append((before, table))
        survey.extend(table.survey, before)
        faults += [replace(fault, number=before + fault.number) for fault in table.faults]
        before += max([table.survey.last, *(fault.number for fault in table.faults)])
    units = {table.unit for table in tables}
    return Table(
        path,
        _JoinedRows(placed),
        unit=units.pop() if len(units) == 1 else "row",
        empty_lines=sum(table.empty_lines for table in tables),
        faults=tuple(faults),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        parts=tuple((before, table.path) for before, table in placed),
        surveyed=survey,
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
