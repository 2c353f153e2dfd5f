"""Keeps examples in a temporary file, for more of them than memory should hold.

Each is a line of JSON, which is read when the example is asked for. The file has no name and is gone with the last
sequence that reads it. Processes that are divided from this one read it too.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import BinaryIO, overload

from tunewise.core.errors import TunewiseError, unwritable
from tunewise.core.operating_system import read_at
from tunewise.data.example_facts import ExampleFacts
from tunewise.data.examples import Example, Message

_AT_ONCE = 500  # examples that are read at a time
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class ExampleFile(Sequence[Example]):
    """Examples in a file, or some of them, with their facts; an `ExampleWriter` makes it.

    A slice is a tuple of examples; `chosen` leaves them in the file.
    """

    def __init__(self, file: BinaryIO, starts: array[int], places: Sequence[int], facts: ExampleFacts) -> None:
        self._file, self._starts, self._places, self.facts = file, starts, places, facts

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self._read(self._places[index]))
        return next(self._read([self._places[index]]))

    def __iter__(self) -> Iterator[Example]:
        return self._read(self._places)

    def chosen(self, places: Sequence[int]) -> ExampleFile:
        """Return the examples at some places, which stay in the file."""
        chosen = array("q", map(self._places.__getitem__, places))
        return ExampleFile(self._file, self._starts, chosen, self.facts.chosen(places))

    def _read(self, places: Sequence[int]) -> Iterator[Example]:
        starts, descriptor = self._starts, self._file.fileno()
        for first in range(0, len(places), _AT_ONCE):
            lines = [
                read_at(descriptor, starts[place + 1] - starts[place], starts[place])
                for place in places[first : first + _AT_ONCE]
            ]
            for values in json.loads(b"[" + b",".join(lines) + b"]"):
                yield _example(*values)


class ExampleWriter:
    """Writes examples into a temporary file one by one.

    Raises:
        TunewiseError: the disk of temporary files is full, or cannot be written.
    """

    def __init__(self, facts: ExampleFacts) -> None:
        self._facts, self._starts = facts, array("q", [0])
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(prefix="tunewise-")  # noqa: SIM115 - it lives with what reads it
        except OSError as error:
            raise _unwritten(error) from error

    def add(self, example: Example) -> None:
        """Write an example behind the others."""
        line = _line(example)
        try:
            self._file.write(line)
        except OSError as error:
            raise _unwritten(error) from error
        self._starts.append(self._starts[-1] + len(line))
        self._facts.add(example)

    def file(self) -> ExampleFile:
        """Return all that was written."""
        try:
            self._file.flush()
        except OSError as error:
            raise _unwritten(error) from error
        return ExampleFile(self._file, self._starts, range(len(self._facts)), self._facts)


def _unwritten(error: OSError) -> TunewiseError:
    what = f"the temporary file that keeps many rows cannot be written in {tempfile.gettempdir()} (TMPDIR)"
    return unwritable(what, error, "name another folder in TMPDIR")


def _line(example: Example) -> bytes:
    """Return an example as JSON; what most examples lack is left out."""
    messages = [
        [m.role, m.content, m.labelled, m.fields] if m.fields or m.labelled else [m.role, m.content]
        for m in example.messages
    ]
    values: list[object] = [example.row, messages, example.answer]
    further = [example.references, example.passage, example.answer_fields, example.tools, example.template_kwargs]
    if example.continues or any(further):
        values += [*further, example.continues]
    return _encode(values).encode("ascii")


def _example(
    row: int,
    messages: list[list[str | bool]],
    answer: str,
    references: Sequence[str] = (),
    passage: str = "",
    answer_fields: str = "",
    tools: str = "",
    template_kwargs: str = "",
    continues: bool = False,
) -> Example:
    turns = tuple([Message(*turn) for turn in messages])  # type: ignore[arg-type]
    return Example(turns, answer, tuple(references), passage, answer_fields, tools, template_kwargs, continues, row)
