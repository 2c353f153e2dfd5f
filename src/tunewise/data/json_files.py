"""Reads JSON: a row per line, a list of rows, or one of the objects that rows are commonly wrapped in.

A value is exactly what the file says. What JSON leaves open (NaN, repeated keys) is refused with its line.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.text import listed, show
from tunewise.data.file_rows import Item, file_table
from tunewise.data.split_names import is_split_name, splits_of
from tunewise.data.table import Fault, SpelledFloat, Table, kind_of
from tunewise.data.text_files import MAX_LINE, numbered_lines, whole_text

MAX_DEPTH = 32  # of nested lists and objects

_SPACE = " \t\r\n"
_BLANKS = re.compile(r"[ \t\n\r]*")
_ONE_A_LINE = "write one complete JSON object per line"
_AS_OBJECT = 'write each row as {"column": value, ...}'
_TURN_KEYS = frozenset(("role", "from"))

Tables = dict[str, Table]  # by split, or a single one named "all"


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


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=SpelledFloat)


def parse(text: str, start: int = 0) -> tuple[object, int]:
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
    if depth == 0:
        return True
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)) and _deeper(item, depth - 1):
            return True
    return False


def _problem(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg.removesuffix(' at')} at character {error.colno})"
    if isinstance(error, _NotAllowed):
        return str(error)
    return "a number has too many digits"


def _skip(text: str, start: int) -> int:
    """Return the position of the first character from `start` on that is not blank."""
    match = _BLANKS.match(text, start)
    return match.end() if match else start


def read_json_lines(path: Path) -> Tables:
    """Read a file with one object a line; one that holds a list, or objects over several lines, is read as well."""
    first, second = [*islice((line for _, line in numbered_lines(path) if line.strip(_SPACE)), 2), "", ""][:2]
    if first.lstrip(_SPACE).startswith("[") or _spans_lines(first, second):
        return _read_whole(path, whole_text(path))
    table = file_table(path, lambda: _line_rows(path))
    if len(table.rows) == 1 and not table.faults:  # all of the file is one object, which may hold the rows
        return _read_whole(path, whole_text(path))
    return {"all": table}


def _spans_lines(first: str, second: str) -> bool:
    """Tell from the first two lines of a file whether its first object goes on after its first line."""
    if not first.lstrip(_SPACE).startswith("{") or not second:
        return False
    if second.lstrip(_SPACE).startswith("{") and not first.rstrip(_SPACE).endswith(("[", "{", ",")):
        return False
    try:
        parse(first, _skip(first, 0))
    except ValueError:
        return True
    return False


def _line_rows(path: Path) -> Iterator[Item]:
    for number, line in numbered_lines(path):
        start = len(line) - len(line.lstrip(_SPACE))
        if start == len(line):
            yield None
            continue
        try:
            value, end = parse(line, start)
            if line[end:].strip(_SPACE):
                raise _NotAllowed(f"more text follows the JSON value at character {end + 1}")
        except ValueError as error:
            yield Fault(number, _problem(error), _ONE_A_LINE)
            continue
        yield (number, value) if isinstance(value, dict) else _no_object(number, value)


def read_json(path: Path) -> Tables:
    """Read a list of objects, an object that holds the rows, or one object a line."""
    text = whole_text(path)
    opening = _skip(text, 0)
    if text.startswith("{", opening):
        lines = (line for line in io.StringIO(text[opening:], newline="\n") if line.strip(_SPACE))
        first, second = [*islice(lines, 2), "", ""][:2]
        if second and not _spans_lines(first, second):
            return {"all": file_table(path, lambda: _line_rows(path))}
    return _read_whole(path, text)


def _read_whole(path: Path, text: str) -> Tables:
    """Read text that is one list, one object, or several objects one after the other."""
    opening = _skip(text, 0)
    if opening == len(text):
        return {"all": Table(str(path), [])}
    if text[opening] == "[":
        return {"all": _list(path, text, opening)}
    if text[opening] != "{":
        line = 1 + text.count("\n", 0, opening)
        raise DataError(
            "the file does not start with a list or an object",
            path=path,
            line=line,
            remedy="write the file as one JSON list of objects",
        )
    values = list(_values(path, text, opening))
    if len(values) == 1 and isinstance(values[0][1], dict):
        return _unwrapped(path, text, opening, values[0][1])
    return {"all": _table(path, values)}


def _values(path: Path, text: str, start: int) -> Iterator[tuple[int, object]]:
    """Yield the values that stand one after the other in a text, each with its line."""
    line, counted = 1, 0
    while start < len(text):
        line += text.count("\n", counted, start)
        counted = start
        try:
            value, end = parse(text, start)
        except ValueError as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise DataError(
                _problem(error), path=path, line=at, remedy="mend the JSON there, or write one object per line"
            ) from None
        yield line, value
        start = _skip(text, end)


def _list(path: Path, text: str, opening: int) -> Table:
    """Read the list that starts at `opening`, which must be all of the text."""
    rows: list[tuple[int, object]] = []
    line = 1 + text.count("\n", 0, opening)

    def refused(problem: str, line: int) -> DataError:
        return DataError(problem, path=path, line=line, remedy="write the file as one JSON list of objects")

    first = _skip(text, opening + 1)
    end = first if text.startswith("]", first) else opening
    while text[end] != "]":
        start = _skip(text, end + 1)
        line += text.count("\n", end, start)
        try:
            value, stop = parse(text, start)
        except ValueError as error:
            problem_line = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise refused(_problem(error), problem_line) from None
        if stop - start > MAX_LINE:
            raise refused("the item is longer than 10 MB", line)
        rows.append((line, value))
        end = _skip(text, stop)
        line += text.count("\n", start, end)
        if not text.startswith((",", "]"), end):
            raise refused("a comma or the end of the list is missing", line)
    if _skip(text, end + 1) != len(text):
        raise refused("more text follows the list", line)
    return _table(path, rows)


def _no_object(number: int, value: object) -> Fault:
    return Fault(number, f"the row is {kind_of(value)}, not an object", _AS_OBJECT)


def _table(path: Path, values: list[tuple[int, object]], *, note: str = "") -> Table:
    """Make a table of the values that are objects; the others are bad rows.

    Rows that all stand on one line are numbered by their place among the rows instead.
    """
    unit = "line"
    if len(values) > 1 and values[0][0] == values[-1][0]:
        unit, values = "row", [(number, value) for number, (_, value) in enumerate(values, 1)]
    rows: list[tuple[int, Mapping[str, object]]] = []
    faults: list[Fault] = []
    for number, value in values:
        if isinstance(value, dict):
            rows.append((number, value))
        else:
            faults.append(_no_object(number, value))
    return Table(str(path), rows, unit, faults=tuple(faults), notes=(note,) if note else ())


def _unwrapped(path: Path, text: str, opening: int, value: dict[str, object]) -> Tables:
    """Read the rows that an object holds: under a key, by split, or in one of the ways in which pandas writes tables.

    An object that holds none is a row itself.
    """
    if any(isinstance(item, list) and _holds_turns(item) for item in value.values()):
        return {"all": _table(path, [(1 + text.count("\n", 0, opening), value)])}
    name = show(path.name)
    if (rows := _rows_of_columns(value)) is not None:
        return {"all": _table(path, _numbered(rows), note=f"the rows of {name} were read from lists of columns")}
    lists = {key: item for key, item in value.items() if _holds_rows(item)}
    parts = {key: item for key, item in value.items() if is_split_name(key) and _rows_of_part(item) is not None}
    splits, notes = splits_of(parts, str(path))
    if "train" in splits:
        left_out = [key for key in lists if key not in splits.values()]
        notes += [f"parts of {name} that were not read: {listed(left_out)}"] if left_out else []
        note = "; ".join(notes)
        return {
            split: _part(path, text, opening, key, value[key], note if split == "train" else "")
            for split, key in splits.items()
        }
    if len(lists) > 1:
        raise DataError(
            f"the file holds several lists of rows ({listed(lists)})",
            path=path,
            remedy="keep one of them, or name them train, validation and test",
        )
    for key, item in lists.items():
        return {"all": _part(path, text, opening, key, item, f'the rows of {name} were read from "{show(key)}"')}
    if value and all(isinstance(item, dict) for item in value.values()):
        by_key = {key: item for key, item in value.items() if isinstance(item, dict)}
        note = f"the rows of {name} were read from an object of objects, as pandas writes them"
        return {"all": _table(path, _numbered(_rows_of_objects(by_key)), note=note)}
    return {"all": _table(path, [(1 + text.count("\n", 0, opening), value)])}


def _holds_rows(value: object) -> bool:
    """Tell whether a value is a list of rows; a list of turns belongs to one row."""
    first = next((item for item in value if isinstance(item, dict)), None) if isinstance(value, list) else None
    return first is not None and not _TURN_KEYS & first.keys()


def _rows_of_part(value: object) -> list[object] | None:
    """Return the rows that a split of a file holds, or None if it holds none."""
    if isinstance(value, list) and _holds_rows(value):
        return list(value)
    if not isinstance(value, dict) or not value:
        return None
    by_key = {key: item for key, item in value.items() if isinstance(item, dict)}
    return _rows_of_objects(by_key) if len(by_key) == len(value) else _rows_of_columns(value)


def _part(path: Path, text: str, opening: int, key: str, value: object, note: str) -> Table:
    """Make the table of a list (or of columns) under a key."""
    rows = _rows_of_part(value) or []
    if not isinstance(value, list):
        return _table(path, _numbered(rows), note=note)
    return _table(path, list(zip(_item_lines(text, opening, key), rows, strict=True)), note=note)


def _rows_of_columns(value: Mapping[str, object]) -> list[object] | None:
    """Return the rows of {"columns": [...], "data": [[...], ...]} or of a list for each column, or None."""
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        names = [str(name) for name in columns]
        return [dict(zip(names, row, strict=True)) if len(row) == len(names) else row for row in data]
    lists = [item for item in value.values() if isinstance(item, list)]
    lengths = {len(items) for items in lists}
    if len(lists) < len(value) or len(lengths) != 1 or 0 in lengths or (len(lists) == 1 and 1 in lengths):
        return None
    if any(_holds_rows(items) for items in lists):
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]


def _holds_turns(items: list[object]) -> bool:
    return any(isinstance(item, dict) and _TURN_KEYS & item.keys() for item in items)


def _rows_of_objects(value: Mapping[str, Mapping[str, object]]) -> list[object]:
    """Return the rows of an object for each row, or of an object for each column; pandas numbers the rows."""
    first = next(iter(value.values()))
    outer, inner = (all(key.isdigit() for key in keys) for keys in (value, first))
    if outer if outer != inner else len(value) >= len(first):
        return list(value.values())
    keys = dict.fromkeys(key for column in value.values() for key in column)
    return [{name: column[key] for name, column in value.items() if key in column} for key in keys]


def _numbered(rows: Iterable[object]) -> list[tuple[int, object]]:
    """Give rows that have no line of their own the same one, so that `_table` numbers them by their place."""
    return [(1, row) for row in rows]


def _item_lines(text: str, opening: int, key: str) -> Iterator[int]:
    """Yield the line of each item of the list under a key of the object at `opening`, which is valid JSON."""
    place, name = opening, ""
    while name != key:
        name, place = _DECODER.raw_decode(text, _skip(text, place + 1))
        start = _skip(text, _skip(text, place) + 1)  # behind the colon
        if name != key:
            place = _skip(text, _DECODER.raw_decode(text, start)[1])  # at the comma
    line, place = 1 + text.count("\n", 0, start), start
    while text[place] != "]":
        item = _skip(text, place + 1)
        line += text.count("\n", place, item)
        yield line
        end = _DECODER.raw_decode(text, item)[1]
        place = _skip(text, end)
        line += text.count("\n", item, place)
