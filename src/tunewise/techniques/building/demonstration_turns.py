"""Turns worked examples into turns of one conversation, and into rows of a file and back.

Chat templates take one system message, at the start, and many want user and assistant strictly in turn. So a
conversation with worked examples begins with one system message, the instruction and the question's own system text,
and goes on with the examples' turns and the question's. An example's own system text is left out, also where it differs
from the question's: it was written for another conversation, and would cost its length once for each example.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from tunewise.core.json_record import Check, JsonRecord, Text
from tunewise.data.task import Example, Message
from tunewise.data.tool_calls import are_fields, are_tools, json_or_none

_Fields = Annotated[Text, Check(lambda text: not text or are_fields(text), "the fields of a turn as JSON")]
_Tools = Annotated[Text, Check(lambda text: not text or are_tools(text), "a JSON list of tools")]
_Variables = Annotated[Text, Check(lambda text: not text or isinstance(json_or_none(text), dict), "a JSON object")]


def fits_conversation(example: Example) -> bool:
    """Return whether an example can be shown as turns of user and assistant that are text alone.

    Calls of tools and their results, reasoning and names need a conversation of their own, and a conversation that
    begins with the assistant has nothing that its first turn answers.
    """
    turns = [message for message in example.messages if message.role != "system"]
    has_more = any(message.role == "tool" or message.fields for message in example.messages)
    return bool(turns) and turns[0].role == "user" and not has_more and not example.answer_fields


def shown_turns(demonstration: Example) -> tuple[Message, ...]:
    """Return the turns of a worked example, its answer included, with user and assistant in turn and none labelled."""
    turns = (replace(m, labelled=False) for m in demonstration.messages if m.role != "system")
    return _alternating((*turns, Message("assistant", demonstration.answer)))


def conversation(demonstrations: Sequence[Example], question: Example, instruction: str = "") -> tuple[Message, ...]:
    """Return the messages of a question after worked examples, in the order given, with one system message at most."""
    system = [message for message in question.messages if message.role == "system"]
    text = "\n\n".join(text for text in (instruction, *(message.content for message in system)) if text)
    first = replace(system[0], content=text) if system else Message("system", text)
    shown = itertools.chain.from_iterable(shown_turns(demonstration) for demonstration in demonstrations)
    asked = _alternating(message for message in question.messages if message.role != "system")
    return (*([first] if text else []), *shown, *asked)


def _alternating(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Merge neighbours of one role into one turn, so that user and assistant alternate.

    A turn with further fields, or one that is trained on beside one that is not, stays by itself.
    """
    turns: list[Message] = []
    for message in messages:
        before = turns[-1] if turns else None
        if (
            before is not None
            and message.role in ("user", "assistant")
            and (before.role, before.labelled) == (message.role, message.labelled)
            and not before.fields
            and not message.fields
        ):
            turns[-1] = replace(before, content=f"{before.content}\n\n{message.content}")
        else:
            turns.append(message)
    return tuple(turns)


@dataclass(frozen=True, kw_only=True)
class TurnRow(JsonRecord):
    """A turn of a worked example as JSON; `fields` is absent where it is empty."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    labelled: bool = False
    fields: _Fields | None = None


@dataclass(frozen=True, kw_only=True)
class ExampleRow(JsonRecord):
    """A worked example as JSON; what few examples have is absent where it is empty."""

    messages: tuple[TurnRow, ...]
    answer: Text
    answer_fields: _Fields | None = None
    tools: _Tools | None = None
    template_kwargs: _Variables | None = None

    @classmethod
    def of(cls, example: Example) -> ExampleRow:
        """Take the row of an example."""
        turns = (
            TurnRow(role=m.role, content=m.content, labelled=m.labelled, fields=m.fields or None)  # type: ignore[arg-type]
            for m in example.messages
        )
        return cls(
            messages=tuple(turns),
            answer=example.answer,
            answer_fields=example.answer_fields or None,
            tools=example.tools or None,
            template_kwargs=example.template_kwargs or None,
        )

    @property
    def example(self) -> Example:
        """The worked example of the row."""
        messages = tuple(Message(turn.role, turn.content, turn.labelled, turn.fields or "") for turn in self.messages)
        return Example(
            messages,
            self.answer,
            answer_fields=self.answer_fields or "",
            tools=self.tools or "",
            template_kwargs=self.template_kwargs or "",
        )
