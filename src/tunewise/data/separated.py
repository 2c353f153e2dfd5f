"""Reads text whose rows are cells between separators: CSV, TSV, and what Excel and GLUE make of them.

The separator is the one that splits the header and the first rows alike. Every cell is text, exactly as in the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

from tunewise.core.errors import DataError
from tunewise.core.text import first_line, show
from tunewise.data.file_rows import Item, file_table
from tunewise.data.table import Fault, Table
from tunewise.data.text_files import MAX_LINE, numbered_lines

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UNQUOTED = "\t|"  # what is separated by these is often written without quoting
_SAMPLED = 100  # lines that the separator is found on
_EXCEL = re.compile(r'"?sep=(.)"?\r?\n?')
_QUOTE = 'put the cell in quotes and write each quote inside it as ""'
_LOCAL = "expected after"  # of the csv module's errors, the one that is about a single row


Record = tuple[int, list[str]] | Fault | None  # the first line and the cells of a row, a bad row, or an empty line


def read_separated(path: Path, usual: str) -> Table:
    """Read CSV or TSV; `usual` is the separator that the file's ending stands for."""
    head = list(islice((line for _, line in numbered_lines(path)), _SAMPLED))
    named = _EXCEL.fullmatch(head[0]) if head else None
    with _long_cells():
        separator = named[1] if named else _separator(head, usual)
    skipped, quoted = 1 if named else 0, True
    if separator in _UNQUOTED and not _is_consistent(_records(path, separator, skipped, quoted=True), over_lines=False):
        quoted = not _is_consistent(_records(path, separator, skipped, quoted=False))
    name, notes = show(path.name), []
    if separator != usual:
        notes.append(f"{name} is separated by {_SEPARATORS.get(separator, show(separator))}")
    if not quoted:
        notes.append(f"{name} was read without quoting: a quote in it is a character like any other")
    return file_table(
        path, lambda: _rows(path, _records(path, separator, skipped, quoted=quoted), separator), notes=notes
    )


def _is_consistent(records: Iterable[Record], *, over_lines: bool = True) -> bool:
    """Tell whether every row has as many cells as the header; `over_lines` says whether a cell may have several."""
    width = 0
    try:
        for record in records:
            if record is None:
                continue
            if isinstance(record, Fault):
                return False
            width = width or len(record[1])
            if len(record[1]) != width or not (over_lines or all("\n" not in cell for cell in record[1])):
                return False
    except DataError:
        return False
    return width > 0


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


def _records(path: Path, separator: str, skipped: int, *, quoted: bool) -> Iterator[Record]:
    """Split a file into cells, from the line after the `skipped` ones.

    Raises:
        DataError: what follows cannot be told apart, as behind a quote that is never closed.
    """
    lines: Iterable[str] = (line for _, line in islice(numbered_lines(path), skipped, None))
    reader = csv.reader(lines, delimiter=separator, strict=True, quoting=_quoting(quoted))
    start, has_header = 1 + skipped, False
    with _long_cells():
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = f"the row cannot be split into cells ({first_line(error)})"
                if _LOCAL not in str(error) or not has_header:
                    raise DataError(problem, path=path, line=start, remedy=_QUOTE) from error
                yield Fault(start, problem, _QUOTE)
            else:
                yield (start, cells) if cells else None
                has_header = has_header or bool(cells)
            start = reader.line_num + 1 + skipped


def _rows(path: Path, records: Iterable[Record], separator: str) -> Iterator[Item]:
    """Give the cells of each row their names; rows with more or fewer cells than the header are bad rows."""
    header: list[str] = []
    for record in records:
        if not isinstance(record, tuple):
            yield record
            continue
        line, cells = record
        if not header:
            header = _named(cells)
            if len(set(header)) != len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(
                    f'the header names "{show(twice)}" twice', path=path, line=line, remedy="rename one of the columns"
                )
        elif len(cells) != len(header):
            yield Fault(
                line,
                f"the row has {len(cells)} cells and the header {len(header)}",
                f'put cells that contain "{show(separator)}" or a line break in quotes',
            )
        else:
            yield line, dict(zip(header, cells, strict=True))


def _named(header: list[str]) -> list[str]:
    """Return the header; where several names are empty, as behind a spreadsheet's last column, with numbers."""
    if header.count("") < 2:
        return header
    return [name or f"column {number}" for number, name in enumerate(header, 1)]
