"""What was asked and answered in the chat of a comparison, kept so that a page that is opened again goes on with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

from tunewise.core import artifact_reader, artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import JsonRecord
from tunewise.studio.runs import Run
from tunewise.studio.workspace import Workspace

_BYTES = 1 << 24  # of a conversation that are read


@dataclass(frozen=True, kw_only=True)
class Answer(JsonRecord):
    """Holds an answer with the sources that it cites, and what its prompt quoted of each."""

    text: str
    sources: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()

    @property
    def cited(self) -> list[tuple[str, str]]:
        """Return each source with what was quoted of it."""
        return list(zip(self.sources, self.passages, strict=False))


@dataclass(frozen=True, kw_only=True)
class Turn(JsonRecord):
    """Holds a question and its whole answers, by the name of the adaptation."""

    question: str
    answers: dict[str, Answer]

    def messages(self, name: str) -> list[dict[str, str]]:
        """Return the turn as messages to one adaptation; none where it was not asked."""
        if name not in self.answers:
            return []
        answer = self.answers[name].text
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": answer}]


class Conversation:
    """The turns of one comparison's chat, a line of JSON each; every tab that shows the chat appends to them."""

    def __init__(self, workspace: Workspace, run: Run) -> None:
        self._file = workspace.own / "chats" / f"{quote(run.name, safe='')}.jsonl"

    @property
    def stamp(self) -> tuple[int, int] | None:
        """Return what changes whenever a turn is added, in whichever tab; None before the first turn."""
        with suppress(OSError):
            facts = self._file.stat()
            return facts.st_mtime_ns, facts.st_size
        return None

    def turns(self) -> list[Turn]:
        """Read the turns; a line that a crash cut short is left out."""
        turns = []
        with suppress(ArtifactError):
            for line in artifact_reader.read_beginning(self._file, _BYTES).splitlines():
                with suppress(ValueError, ArtifactError):
                    turns.append(Turn.from_json(json.loads(line), self._file))
        return turns

    def add(self, turn: Turn) -> None:
        """Append a turn.

        Raises:
            TunewiseError: it cannot be written.
        """
        artifact_writer.append_line(self._file, turn.to_json())

    def clear(self) -> None:
        """Forget all turns."""
        with suppress(OSError):
            self._file.unlink()

    def messages(self, names: Iterable[str], question: str) -> list[list[dict[str, str]]]:
        """Return what each adaptation is sent: what it was asked and answered before, and the question."""
        turns, asked = self.turns(), {"role": "user", "content": question}
        return [[*(message for turn in turns for message in turn.messages(name)), asked] for name in names]
