"""The file that answers are appended to, one line as soon as each is complete, so that a killed run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tunewise.core import artifact_writer
from tunewise.core.errors import DataError
from tunewise.data.task import Message
from tunewise.serve.client import Reply

_LINE_START = '{"index": '  # every line begins with this


class AnswerFile:
    """Answers to `conversations`, by one adaptation.

    A line holds index, model, prompt, answer and sources. A last line that a crash left incomplete is dropped when the
    file is opened again.

    Raises:
        DataError: the file holds something else than answers to these prompts by this adaptation.
    """

    def __init__(self, path: Path, conversations: Sequence[Sequence[Message]], model: str) -> None:
        self.path, self.conversations, self.model = path, conversations, model
        self.answered: set[int] = set()
        if path.exists():
            self._open()

    def left(self) -> list[int]:
        """List the indices of the prompts that have no answer yet."""
        return [index for index in range(len(self.conversations)) if index not in self.answered]

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
        self.answered.add(number)

    def _prompt(self, index: int) -> str:
        return self.conversations[index][-1].content

    def _open(self) -> None:
        try:
            lines = self.path.read_text("utf-8", errors="replace").split("\n")
        except OSError as error:
            raise DataError(
                f"cannot be read ({error.strerror})", path=self.path, remedy="choose another --out"
            ) from error
        incomplete = lines.pop()  # a complete line ends with a line break
        for line_number, line in enumerate(lines, 1):
            self._check(line_number, _parsed(line))
        if incomplete:
            if not incomplete.startswith(_LINE_START[: len(incomplete)]):
                self._refuse(len(lines) + 1)
            artifact_writer.write_text(self.path, "".join(line + "\n" for line in lines))

    def _check(self, line_number: int, row: object) -> None:
        """Count a line's answer as present, or refuse the file where the line is none of its answers."""
        if not isinstance(row, dict):
            self._refuse(line_number)
        index = row.get("index")
        valid = isinstance(index, int) and 0 <= index < len(self.conversations) and index not in self.answered
        if not valid or row.get("model") != self.model or row.get("prompt") != self._prompt(int(row["index"])):
            self._refuse(line_number)
        self.answered.add(row["index"])

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
