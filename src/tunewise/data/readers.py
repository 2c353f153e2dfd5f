"""Reads data files into rows, each row with its line number.

Nothing is guessed or converted here: a value is exactly what the file says, and whatever a format leaves open
(NaN, repeated keys, missing cells, other encodings) is refused with its line, before anything is computed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.text import first_line, listed, show

MAX_LINE = 10 * 1024 * 1024  # bytes
MAX_DEPTH = 32  # of nested lists and objects
_BLOCK = 1024 * 1024  # bytes
BOM = b"\xef\xbb\xbf"

_BLANKS = re.compile(r"[ \t\n\r]*")
_SAVE = "save it as UTF-8 text"


@dataclass(frozen=True)
class Table:
    """Holds the rows of one file (or Hub split) with their numbers, which start at 1.

    `unit` says what a number counts: the "line" of a text file or the "row" of a Parquet file or Hub split.
    """

    path: str
    rows: list[tuple[int, Mapping[str, object]]]
    unit: str = "line"
    empty_lines: int = 0

    def error(self, problem: str, remedy: str, *, number: int | None = None, column: str | None = None) -> DataError:
        """Make the error for this table, or for a row or column of it."""
        line = number if self.unit == "line" else None
        if number is not None and line is None:
            problem = f"row {number}: {problem}"
        name = None if column is None else show(column)
        return DataError(problem, path=self.path, line=line, column=name, remedy=remedy)


def read_file(path: Path) -> Table:
    """Read one local file with the reader for its ending.

    Raises:
        DataError: the ending is unknown, or the file is empty, damaged, or not what its ending says.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f'the ending "{show(path.suffix)}" is not one that can be read',
            path=path,
            remedy=f"save it as one of {' '.join(READERS)}",
        )
    if not path.is_file():
        raise DataError("not a regular file", path=path, remedy="give a file or a folder of files")
    try:
        table = reader(path)
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror or first_line(error)})",
            path=path,
            remedy="check the file and its permissions",
        ) from error
    if not table.rows:
        raise DataError("the file holds no rows", path=path, remedy="add at least one row of data")
    return table


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines, with their ends, and their numbers.

    Whole blocks are decoded at a time, because a file may have millions of lines of two bytes.
    """
    number = offset = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK) + file.readline(MAX_LINE + 1):
            for raw_line, raw in enumerate(io.BytesIO(block) if len(block) > MAX_LINE else (), number + 1):
                if len(raw) > MAX_LINE:
                    raise DataError(
                        "the line is longer than 10 MB", path=path, line=raw_line, remedy="write one row per line"
                    )
            for line in io.StringIO(_decode(block, path, number + 1, offset), newline="\n"):
                number += 1
                yield number, line
            offset += len(block)


def _decode(raw: bytes, path: Path, line: int, offset: int) -> str:
    """Decode UTF-8 bytes that start at this line and byte offset of the file; a byte-order mark is dropped."""
    skipped = len(BOM) if offset == 0 and raw.startswith(BOM) else 0
    try:
        text = raw[skipped:].decode("utf-8")
        bad = raw.find(b"\0")
    except UnicodeDecodeError as error:
        text, bad = "", error.start + skipped
    if bad < 0:
        return text
    kind = "a NUL byte" if raw[bad] == 0 else f"byte 0x{raw[bad]:02x}, which is not UTF-8 there,"
    bad_line = line + raw.count(b"\n", 0, bad)
    raise DataError(f"{kind} at byte offset {offset + bad}", path=path, line=bad_line, remedy=_SAVE)


def _text_lines(path: Path) -> Table:
    """Read plain text as one row per line that is not blank."""
    rows: list[tuple[int, Mapping[str, object]]] = []
    empty = 0
    for number, line in _lines(path):
        if line.isspace() or not line:
            empty += 1
        else:
            rows.append((number, {"text": line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")}))
    return Table(str(path), rows, empty_lines=empty)


class _NotAllowed(ValueError):
    """Refuses JSON that Python's parser accepts and this package does not."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotAllowed(f'the key "{show(twice)}" occurs twice in one object')
    return row


def _constant(name: str) -> object:
    raise _NotAllowed(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _parse(text: str, start: int) -> tuple[object, int]:
    """Parse the JSON value at `start` and return it with its end.

    Raises:
        ValueError: the text is not JSON; a `JSONDecodeError` has the position.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise _NotAllowed(f"lists and objects are nested more than {MAX_DEPTH} deep") from None
    if _deeper(value, MAX_DEPTH):
        raise _NotAllowed(f"lists and objects are nested more than {MAX_DEPTH} deep")
    return value, end


def _deeper(value: object, depth: int) -> bool:
    """Tell whether lists and objects are nested deeper than `depth`."""
    if not isinstance(value, (dict, list)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_deeper(item, depth - 1) for item in items if isinstance(item, (dict, list)))


def _json_problem(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg.removesuffix(' at')} at character {error.colno})"
    if isinstance(error, _NotAllowed):
        return str(error)
    return "a number has too many digits"


def _json_lines(path: Path) -> Table:
    rows: list[tuple[int, object]] = []
    empty = 0
    for number, line in _lines(path):
        start = len(line) - len(line.lstrip(" \t\r\n"))
        if start == len(line):
            empty += 1
            continue
        try:
            value, end = _parse(line, start)
            if line[end:].strip(" \t\r\n"):
                raise _NotAllowed(f"more text follows the JSON value at character {end + 1}")
        except ValueError as error:
            raise DataError(
                _json_problem(error), path=path, line=number, remedy="write one complete JSON object per line"
            ) from None
        rows.append((number, value))
    return _objects(path, rows, empty)


def _json_list(path: Path) -> Table:
    """Read a JSON list of objects; a file that starts with an object is read as JSON lines, which many are."""
    text = _decode(path.read_bytes(), path, 1, 0)
    opening = _skip(text, 0)
    if text.startswith("{", opening):
        return _json_lines(path)
    if opening == len(text):
        return Table(str(path), [])
    rows: list[tuple[int, object]] = []
    line = 1 + text.count("\n", 0, opening)

    def refused(problem: str, line: int) -> DataError:
        return DataError(problem, path=path, line=line, remedy="write the file as one JSON list of objects")

    if text[opening] != "[":
        raise refused("the file does not start with a list", line)
    first = _skip(text, opening + 1)
    end = first if text.startswith("]", first) else opening
    while text[end] != "]":
        start = _skip(text, end + 1)
        line += text.count("\n", end, start)
        try:
            value, stop = _parse(text, start)
        except ValueError as error:
            problem_line = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise refused(_json_problem(error), problem_line) from None
        if stop - start > MAX_LINE:
            raise refused("the item is longer than 10 MB", line)
        rows.append((line, value))
        end = _skip(text, stop)
        line += text.count("\n", start, end)
        if not text.startswith((",", "]"), end):
            raise refused("a comma or the end of the list is missing", line)
    if _skip(text, end + 1) != len(text):
        raise refused("more text follows the list", line)
    return _objects(path, rows, 0)


def _skip(text: str, start: int) -> int:
    """Return the position of the first character from `start` on that is not blank."""
    match = _BLANKS.match(text, start)
    return match.end() if match else start


def _objects(path: Path, values: list[tuple[int, object]], empty: int) -> Table:
    """Make a table of JSON values; raises `DataError` unless all are objects with the columns of the first."""
    rows: list[tuple[int, Mapping[str, object]]] = []
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError(
                f"the row is {kind_of(value)}, not an object",
                path=path,
                line=number,
                remedy='write each row as {"column": value, ...}',
            )
        if rows and value.keys() != rows[0][1].keys():
            first_number, first = rows[0]
            parts = [("lacks", first.keys() - value.keys()), ("adds", value.keys() - first.keys())]
            difference = " and ".join(f"{verb} {listed(sorted(names))}" for verb, names in parts if names)
            raise DataError(
                f"the columns differ from those of line {first_number}: this row {difference}",
                path=path,
                line=number,
                remedy="give every row the same columns",
            )
        rows.append((number, value))
    return Table(str(path), rows, empty_lines=empty)


_KINDS: dict[type, str] = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
_KINDS |= {str: "text", list: "a list", dict: "an object", bytes: "bytes"}


def kind_of(value: object) -> str:
    """Name the type of a value in a user's words."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _separated(path: Path, delimiter: str) -> Table:
    """Read CSV or TSV; every cell is text, exactly as in the file."""
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(MAX_LINE)
    numbered: list[tuple[int, list[str]]] = []
    start, empty = 1, 0
    try:
        for cells in reader:
            if cells:
                numbered.append((start, cells))
            else:
                empty += 1
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"the row cannot be split into cells ({first_line(error)})",
            path=path,
            line=start,
            remedy='put the cell in quotes and write each quote inside it as ""',
        ) from None
    finally:
        csv.field_size_limit(limit)
    if not numbered:
        return Table(str(path), [])
    (line, header), *body = numbered
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(
            f'the header names "{show(twice)}" twice',
            path=path,
            line=line,
            remedy="rename one of the columns",
        )
    for number, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"the row has {len(cells)} cells and the header {len(header)}",
                path=path,
                line=number,
                remedy=f'put cells that contain "{show(delimiter)}" or a line break in quotes',
            )
    return Table(str(path), [(n, dict(zip(header, cells, strict=True))) for n, cells in body], "line", empty)


def _parquet(path: Path) -> Table:
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            data = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
        names: list[str] = data.column_names
        rows: list[dict[str, object]] = data.to_pylist() if len(set(names)) == len(names) else []
    except Exception as error:  # a damaged file can raise anything: Arrow errors, Unicode, memory, overflow
        raise DataError(
            f"not a readable Parquet file ({first_line(error)})", path=path, remedy="write the file again"
        ) from error
    if len(set(names)) != len(names):
        raise DataError(
            f"a column name occurs twice among {listed(names)}", path=path, remedy="rename one of the columns"
        )
    return Table(str(path), list(enumerate(rows, 1)), unit="row")


READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
    ".parquet": _parquet,
    ".txt": _text_lines,
}
