"""A file of prompts, with or without answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tunewise.core.addresses import path_at, shipped
from tunewise.core.errors import DataError
from tunewise.data.examples import Example, Message
from tunewise.data.formats import convert, recognise
from tunewise.data.readers import read_file
from tunewise.data.table import Table
from tunewise.data.task import Task
from tunewise.serve.prompts import Question

_MISSING_ANSWER = "?"  # takes the place of an answer that the file does not have; it is never shown


def read_prompts(data: str, columns: Mapping[str, str] | None = None) -> list[Question]:
    """Read the conversations of a file in any format that tasks are read from; answers may be missing.

    Args:
        data: the file; or the address of a shipped task (`world:town`), whose test split is read.
        columns: the file's own names of the format's columns.

    Raises:
        DataError: the file cannot be read, or its columns are not recognised.
    """
    if shipped(data) is not None:
        return [_question(example) for example in Task.read(data).test]
    table = read_file(path_at(data))
    table = replace(table, rows=[(number, _with_answer(row, columns or {})) for number, row in table.rows])
    layout = recognise(table, columns)
    examples = convert(table, layout)
    return [_question(example) for example in examples]


def _question(example: Example) -> Question:
    messages = example.messages or (Message("user", example.answer),)
    return Question(messages, tools=example.tools, template_kwargs=example.template_kwargs)


def _with_answer(row: Mapping[str, object], columns: Mapping[str, str]) -> Mapping[str, object]:
    """Return the row, with a stand-in where its answer is missing."""
    for name in (columns.get("messages", "messages"), columns.get("conversations", "conversations")):
        turns = row.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            role, content = (
                ("from", "value") if "from" in turns[-1] and "role" not in turns[-1] else ("role", "content")
            )
            if turns[-1].get(role) in ("user", "human"):
                return {**row, name: [*turns, {role: "assistant", content: _MISSING_ANSWER}]}
            return row
    if set(row) == {"text"} or _is_recognised(row, columns):
        return row
    return {**row, "completion": _MISSING_ANSWER}


def _is_recognised(row: Mapping[str, object], columns: Mapping[str, str]) -> bool:
    try:
        recognise(Table("", [(1, row)]), columns)
    except DataError:
        return False
    return True
