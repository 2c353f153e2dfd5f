"""What is asked of an adaptation, as tokens: its own style, what it puts before a question, its virtual tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunewise.core.errors import DataError
from tunewise.data.task import Example, Message
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation

ROOM = 512  # tokens of an answer to a question that does not say how many


@dataclass(frozen=True)
class Question:
    """A conversation to be answered in the task's own form; or, if `raw`, one text to be continued as it stands."""

    messages: tuple[Message, ...]
    raw: bool = False


@dataclass(frozen=True)
class Prompt:
    """Ids to be read, the largest number of tokens to be written, texts that end the answer, what is cited."""

    ids: list[int]
    room: int
    stops: tuple[str, ...]
    sources: list[str]


class TooLongError(DataError):
    """Question and answer do not fit the window."""


class Reader:
    """Turns questions to one adaptation into prompts."""

    def __init__(self, adaptation: Adaptation) -> None:
        self.attachment = adaptation.attachment
        self.asked = encoder_for(self.attachment, adaptation.style)
        self.continued = encoder_for(self.attachment, replace(adaptation.style, template="{prompt}"))
        self.continued.chat = False
        stop = adaptation.record["style"]["stop"] if "style" in adaptation.record else None
        self.stops = (stop,) if stop and not self.asked.chat else ()
        self.end: int | None = self.asked.eos

    def read(self, question: Question, max_tokens: int | None) -> Prompt:
        """The prompt of a question whose answer may have so many tokens; None: what the window leaves, up to `ROOM`.

        Raises:
            TooLongError: they do not fit the window.
        """
        encoder = self.continued if question.raw else self.asked
        example = Example(question.messages, "")
        prompt = encoder.prompts([self.attachment.render(example)], max_tokens or 1)[0]
        taken = len(prompt.ids) - self.attachment.virtual_tokens - self.attachment.virtual_suffix
        if prompt.cut:
            raise TooLongError(
                f"the question and the answer's {max_tokens or 1} tokens do not fit the window of {encoder.limit} "
                "tokens; shorten the question or lower max_tokens"
            )
        room = max_tokens or min(ROOM, encoder.limit - taken)
        return Prompt(prompt.ids, room, () if question.raw else self.stops, self.attachment.citations(example))

    def decode(self, ids: list[int]) -> str:
        """Text without control tokens."""
        return str(self.asked.tokenizer.decode(ids, skip_special_tokens=True))

    def spell(self, token: int) -> str:
        """One token as text, control tokens too."""
        return str(self.asked.tokenizer.decode([token]))
