"""A file of prompts, with or without answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tunewise.core.addresses import shipped
from tunewise.data.formats import Message, convert, recognise
from tunewise.data.readers import Table, read_file
from tunewise.data.task import Task

_UNKNOWN = "?"  # stands where an answer is missing; nobody sees it


def read_prompts(data: str, columns: Mapping[str, str] | None = None) -> list[tuple[Message, ...]]:
    """The conversations of a file in any format that tasks are read from; answers need not be there.

    Of a shipped task (`world:town`), those of its test split.

    Raises:
        DataError: the file cannot be read, or its columns are not known.
    """
    if shipped(data) is not None:
        return [example.messages for example in Task.read(data).test]
    table = read_file(Path(data).expanduser())
    table = replace(table, rows=[(number, _completed(row, columns or {})) for number, row in table.rows])
    layout = recognise(table, columns)
    examples = convert(table, layout)
    return [e.messages or (Message("user", e.answer),) for e in examples]


def _completed(row: Mapping[str, object], columns: Mapping[str, str]) -> Mapping[str, object]:
    """The row with an answer in the place of one that is missing."""
    for name in (columns.get("messages", "messages"), columns.get("conversations", "conversations")):
        turns = row.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            said, content = (
                ("from", "value") if "from" in turns[-1] and "role" not in turns[-1] else ("role", "content")
            )
            if turns[-1].get(said) in ("user", "human"):
                return {**row, name: [*turns, {said: "assistant", content: _UNKNOWN}]}
            return row
    if set(row) == {"text"} or _known(row, columns):
        return row
    return {**row, "completion": _UNKNOWN}


def _known(row: Mapping[str, object], columns: Mapping[str, str]) -> bool:
    from tunewise.core.errors import DataError

    try:
        recognise(Table("", [(1, row)]), columns)
    except DataError:
        return False
    return True
