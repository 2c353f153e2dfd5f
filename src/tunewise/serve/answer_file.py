"""The file that answers are appended to, one line as soon as each is complete, so that a killed run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Self

from tunewise.core import artifact_writer
from tunewise.core.errors import DataError
from tunewise.core.lock import lock_file
from tunewise.serve.client import Reply
from tunewise.serve.prompts import Question

_LINE_START = '{"index": '  # every line begins with this


class AnswerFile:
    """Answers to `questions`, by one adaptation; open it with `AnswerFile.held`.

    A line holds index, model, prompt, answer and sources. A last line that a crash left incomplete is dropped when the
    file is opened again.
    """

    def __init__(self, path: Path, questions: Sequence[Question], model: str) -> None:
        self.path, self.questions, self.model = path, questions, model
        self.answered: dict[int, None] = {}  # in the order of the lines

    @classmethod
    @contextmanager
    def held(cls, path: Path, questions: Sequence[Question], model: str) -> Iterator[Self]:
        """Open the file, or create it, and hold it for this process.

        Raises:
            DataError: the file holds something else than answers to these prompts by this adaptation.
            RequestError: another process writes it, or it cannot be written.
        """
        with lock_file(path) as descriptor:
            file = cls(path, questions, model)
            file._read(descriptor)
            yield file

    def left(self) -> list[int]:
        """List the indices of the prompts that have no answer yet."""
        return [index for index in range(len(self.questions)) if index not in self.answered]

    def add(self, number: int, reply: Reply) -> None:
        """Append the answer to the prompt at index `number`.

        Raises:
            DataError: the reply failed; the message says why.
        """
        if reply.error is not None:
            raise DataError(f"prompt {number + 1} was not answered: {reply.error}")
        row = {"index": number, "model": self.model, "prompt": self._prompt(number), "answer": reply.text}
        row |= {"finish_reason": reply.reason} | ({"sources": reply.sources} if reply.sources else {})
        artifact_writer.append_line(self.path, row)
        self.answered[number] = None

    def put_in_order(self) -> None:
        """Put the lines in the order of the prompts, all at once; answers arrive in the order in which they end."""
        if list(self.answered) != sorted(self.answered):
            lines = self.path.read_bytes().decode().split("\n")[:-1]
            in_order = [line + "\n" for _, line in sorted(zip(self.answered, lines, strict=True))]
            artifact_writer.write_text(self.path, "".join(in_order))

    def _prompt(self, index: int) -> str:
        return self.questions[index].messages[-1].content

    def _read(self, descriptor: int) -> None:
        """Check the lines that are there, and cut off one that a crash left incomplete."""
        artifact_writer.remove_leftovers(self.path.parent, self.path.name)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1  # a complete line ends with a line break
        lines = content[:whole].decode("utf-8", errors="replace").split("\n")[:-1]
        for line_number, line in enumerate(lines, 1):
            self._check(line_number, _parsed(line))
        incomplete = content[whole:].decode("utf-8", errors="replace")
        if incomplete:
            if not incomplete.startswith(_LINE_START[: len(incomplete)]):
                self._refuse(len(lines) + 1)
            os.ftruncate(descriptor, whole)

    def _check(self, line_number: int, row: object) -> None:
        """Count a line's answer as present, or refuse the file where the line is none of its answers."""
        if not isinstance(row, dict):
            self._refuse(line_number)
        index = row.get("index")
        valid = isinstance(index, int) and 0 <= index < len(self.questions) and index not in self.answered
        if not valid or row.get("model") != self.model or row.get("prompt") != self._prompt(int(row["index"])):
            self._refuse(line_number)
        self.answered[row["index"]] = None

    def _refuse(self, line_number: int) -> NoReturn:
        raise DataError(
            f"is not an answer of {self.model} to these prompts",
            path=self.path,
            line=line_number,
            remedy="choose another --out, or remove the file",
        )


def _parsed(line: str) -> object:
    """Parse the JSON of a line; None where it is not JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None
