"""The file that answers are appended to, one line as soon as each is whole, so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tunewise.core import artifact_writer
from tunewise.core.errors import DataError
from tunewise.data.task import Message
from tunewise.serve.client import Reply

_BEGINNING = '{"index": '  # of every line


class AnswerFile:
    """Answers to `talks`, by one adaptation.

    A line holds index, model, prompt, answer and sources; a last one that a crash tore is dropped when the file is
    opened again.

    Raises:
        DataError: what is there are not answers to these prompts by this adaptation.
    """

    def __init__(self, path: Path, talks: Sequence[Sequence[Message]], model: str) -> None:
        self.path, self.talks, self.model = path, talks, model
        self.known: set[int] = set()
        if path.exists():
            self._open()

    def left(self) -> list[int]:
        """Numbers of the prompts that have no answer yet."""
        return [number for number in range(len(self.talks)) if number not in self.known]

    def add(self, number: int, reply: Reply) -> None:
        """Append an answer.

        Raises:
            DataError: there is none; the message says why.
        """
        if reply.error is not None:
            raise DataError(f"prompt {number + 1} was not answered: {reply.error}")
        row = {"index": number, "model": self.model, "prompt": self._prompt(number), "answer": reply.text}
        row |= {"finish_reason": reply.reason} | ({"sources": reply.sources} if reply.sources else {})
        artifact_writer.append_line(self.path, row)
        self.known.add(number)

    def _prompt(self, number: int) -> str:
        return self.talks[number][-1].content

    def _open(self) -> None:
        try:
            lines = self.path.read_text("utf-8", errors="replace").split("\n")
        except OSError as error:
            raise DataError(
                f"cannot be read ({error.strerror})", path=self.path, remedy="choose another --out"
            ) from error
        torn = lines.pop()  # a whole line ends with a line break
        for place, line in enumerate(lines, 1):
            self._check(place, _parsed(line))
        if torn:
            if not torn.startswith(_BEGINNING[: len(torn)]):
                self._refuse(len(lines) + 1)
            artifact_writer.write_text(self.path, "".join(line + "\n" for line in lines))

    def _check(self, place: int, row: Any) -> None:
        number = row.get("index") if isinstance(row, dict) else None
        right = isinstance(number, int) and 0 <= number < len(self.talks) and number not in self.known
        if not right or row.get("model") != self.model or row.get("prompt") != self._prompt(int(row["index"])):
            self._refuse(place)
        self.known.add(row["index"])

    def _refuse(self, place: int) -> NoReturn:
        raise DataError(
            f"is no answer of {self.model} to these prompts",
            path=self.path,
            line=place,
            remedy="choose another --out, or remove the file",
        )


def _parsed(line: str) -> Any:
    """The row of a line, or None of one that is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None
