"""Reads text whose rows are cells between separators: CSV, TSV, and what Excel and GLUE make of them.

The separator is the one that splits the header and the first rows alike. Every cell is text, exactly as in the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from tunewise.core.errors import DataError
from tunewise.core.text import first_line, show
from tunewise.data.table import Fault, Table
from tunewise.data.text_files import MAX_LINE, numbered_lines

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UNQUOTED = "\t|"  # what is separated by these is often written without quoting
_SAMPLED = 100  # lines that the separator is found on
_EXCEL = re.compile(r'"?sep=(.)"?\r?\n?')
_QUOTE = 'put the cell in quotes and write each quote inside it as ""'
_LOCAL = "expected after"  # of the csv module's errors, the one that is about a single row


@dataclass(frozen=True)
class _Records:
    """Holds the cells of each row with its first line, the rows that have none, and an error that ends the file."""

    cells: list[tuple[int, list[str]]]
    faults: list[Fault]
    empty: int
    broken: DataError | None
    over_lines: bool  # a cell goes on over several lines

    @property
    def is_consistent(self) -> bool:
        """Tell whether every row has as many cells as the header."""
        alike = {len(cells) for _, cells in self.cells}
        return self.broken is None and not self.faults and len(alike) == 1


def read_separated(path: Path, usual: str) -> Table:
    """Read CSV or TSV; `usual` is the separator that the file's ending stands for."""
    with _long_cells():
        head = list(islice((line for _, line in numbered_lines(path)), _SAMPLED))
        named = _EXCEL.fullmatch(head[0]) if head else None
        separator = named[1] if named else _separator(head, usual)
        skipped = 1 if named else 0
        records = _records(path, separator, skipped, quoted=True)
        quoted = True
        if separator in _UNQUOTED and (not records.is_consistent or records.over_lines):
            plain = _records(path, separator, skipped, quoted=False)
            if plain.is_consistent:
                records, quoted = plain, False
    if records.broken is not None:
        raise records.broken
    name, notes = show(path.name), []
    if separator != usual:
        notes.append(f"{name} is separated by {_SEPARATORS.get(separator, show(separator))}")
    if not quoted:
        notes.append(f"{name} was read without quoting: a quote in it is a character like any other")
    return _table(path, records, separator, notes)


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be as long as lines may be."""
    limit = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _separator(head: Sequence[str], usual: str) -> str:
    """Return the separator that splits all sampled rows into as many cells as the header, and the usual one if none."""
    shares = {
        candidate: max(_agreement(head, candidate, quoted) for quoted in (True, candidate not in _UNQUOTED))
        for candidate in dict.fromkeys((usual, *_SEPARATORS))
    }
    best = max(shares, key=lambda candidate: shares[candidate])  # the first of equals, which is the usual one
    return best if shares[best] == 1 or (not shares[usual] and shares[best] > 0.5) else usual


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _agreement(head: Sequence[str], separator: str, quoted: bool) -> float:
    """Return the share of sampled rows with as many cells as the header; 0 where the header is a single cell."""
    try:
        header, *rows = [cells for cells in csv.reader(head, delimiter=separator, quoting=_quoting(quoted)) if cells]
    except (csv.Error, ValueError):  # ValueError: there is no row at all
        return 0
    if len(header) < 2:
        return 0
    if len(head) == _SAMPLED and len(rows) > 1:
        rows.pop()  # its last cell may go on behind the sample
    return sum(len(cells) == len(header) for cells in rows) / len(rows) if rows else 1


def _records(path: Path, separator: str, skipped: int, *, quoted: bool) -> _Records:
    """Split a file into cells, from the line after the `skipped` ones."""
    lines: Iterable[str] = (line for _, line in islice(numbered_lines(path), skipped, None))
    reader = csv.reader(lines, delimiter=separator, strict=True, quoting=_quoting(quoted))
    numbered: list[tuple[int, list[str]]] = []
    faults: list[Fault] = []
    start, empty, over_lines, broken = 1, 0, False, None
    ended = False
    while not ended:
        try:
            for cells in reader:
                if cells:
                    numbered.append((start + skipped, cells))
                else:
                    empty += 1
                over_lines = over_lines or reader.line_num != start
                start = reader.line_num + 1
            ended = True
        except csv.Error as error:
            problem = f"the row cannot be split into cells ({first_line(error)})"
            if _LOCAL not in str(error) or not numbered:
                broken = DataError(problem, path=path, line=start + skipped, remedy=_QUOTE)
                break
            faults.append(Fault(start + skipped, problem, _QUOTE))
            start = reader.line_num + 1
    return _Records(numbered, faults, empty, broken, over_lines)


def _table(path: Path, records: _Records, separator: str, notes: list[str]) -> Table:
    """Give the cells of each row their names; rows with more or fewer cells than the header are bad rows."""
    if not records.cells:
        return Table(str(path), [])
    (line, header), *body = records.cells
    header = _named(header)
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(
            f'the header names "{show(twice)}" twice', path=path, line=line, remedy="rename one of the columns"
        )
    width = len(header)
    faults = [
        Fault(
            number,
            f"the row has {len(cells)} cells and the header {width}",
            f'put cells that contain "{show(separator)}" or a line break in quotes',
        )
        for number, cells in body
        if len(cells) != width
    ]
    rows: list[tuple[int, Mapping[str, object]]] = [
        (number, dict(zip(header, cells, strict=True))) for number, cells in body if len(cells) == width
    ]
    faults = sorted(records.faults + faults, key=lambda fault: fault.number)
    return Table(str(path), rows, "line", records.empty, tuple(faults), tuple(notes))


def _named(header: list[str]) -> list[str]:
    """Return the header; where several names are empty, as behind a spreadsheet's last column, with numbers."""
    if header.count("") < 2:
        return header
    return [name or f"column {number}" for number, name in enumerate(header, 1)]
