"""Questions to an adaptation as token ids: in its task's form, with what it puts before them and its virtual tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunewise.contract.attachment import CitedText
from tunewise.core.errors import DataError
from tunewise.data.task import Example, Message
from tunewise.engine.encoding import Encoder
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation

ROOM = 512  # tokens of an answer at most, where the request does not say how many


@dataclass(frozen=True)
class Question:
    """A conversation to be answered in the task's own form; or, if `raw`, one text to be continued as it stands.

    `tools` are those that the answer may call, as a JSON list of function schemas, and `template_kwargs` further
    variables of the chat template, as a JSON object; each is empty if there are none.
    """

    messages: tuple[Message, ...]
    raw: bool = False
    tools: str = ""
    template_kwargs: str = ""


@dataclass(frozen=True)
class Prompt:
    """A question as the model reads it.

    `ids` are the prompt's tokens, `room` the largest number of tokens to generate, `stops` texts that end the answer,
    and `citations` what the prompt quotes of documents.
    """

    ids: list[int]
    room: int
    stops: tuple[str, ...]
    citations: list[CitedText]


class TooLongError(DataError):
    """A question and its answer do not fit the window."""


class PromptReader:
    """Turns questions to one adaptation into prompts."""

    def __init__(self, adaptation: Adaptation) -> None:
        self.attachment = adaptation.attachment
        self.task_encoder = encoder_for(self.attachment, adaptation.style)
        raw = replace(adaptation.style, template="{prompt}")
        self.raw_encoder = Encoder(
            self.attachment.base, raw, self.attachment.virtual_tokens, self.attachment.virtual_suffix, chat=False
        )
        stop = adaptation.stop
        self.stops = (stop,) if stop and not self.task_encoder.chat else ()
        self.ends = self.task_encoder.ends.stops

    def read(self, question: Question, max_tokens: int | None) -> Prompt:
        """Encode a question whose answer may have `max_tokens`; None: what the window leaves, up to `ROOM`.

        Raises:
            TooLongError: they do not fit the window.
        """
        encoder = self.raw_encoder if question.raw else self.task_encoder
        example = Example(question.messages, "", tools=question.tools, template_kwargs=question.template_kwargs)
        sequence = encoder.prompts([self.attachment.render(example)], max_tokens or 1)[0]
        if sequence.truncated:
            raise TooLongError(
                f"the question and the answer's {max_tokens or 1} tokens do not fit the window of {encoder.limit} "
                "tokens; shorten the question or lower max_tokens"
            )
        real_tokens = len(sequence.ids) - self.attachment.virtual_tokens - self.attachment.virtual_suffix
        room = max_tokens or min(ROOM, encoder.limit - real_tokens)
        return Prompt(sequence.ids, room, () if question.raw else self.stops, self.attachment.citations(example))

    def decode(self, ids: list[int]) -> str:
        """Decode ids to text without control tokens."""
        return str(self.task_encoder.tokenizer.decode(ids, skip_special_tokens=True))

    def spell(self, token: int) -> str:
        """Decode one token to text, also a control token."""
        return str(self.task_encoder.tokenizer.decode([token]))
