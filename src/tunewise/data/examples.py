"""Defines a turn of a conversation and an example, and what makes two examples equal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Message:
    """Holds one turn of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: its text; empty where the turn only calls tools.
        labelled: whether the tokens of an assistant turn before the answer are trained on.
        fields: what else a chat template may read of the turn, as a JSON object with any of the keys `tool_calls`,
            `reasoning_content`, `name` and `tool_call_id`; empty if nothing.

    Examples:
        >>> Message("user", "Which river runs through Paris?").role
        'user'
    """

    role: str
    content: str
    labelled: bool = False
    fields: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """Holds what the model sees (`messages`) and must write (`answer`; in a classification the label).

    Attributes:
        messages: the turns before the answer; empty for plain text.
        answer: the text of the answer. Where it calls tools, each call follows the text, if there is any, on lines of
            its own: `<tool_call>`, a JSON object with `name` and `arguments`, and `</tool_call>`.
        references: every acceptable answer, the first being `answer`; only question-answer data fills it.
        passage: the name of the document that holds the answer, where the data says so; it is used to judge
            retrieval, which never sees it.
        answer_fields: the turn of the answer as a chat template reads it, as a JSON object: `content`, and any of
            `tool_calls` and `reasoning_content`; empty where it is `answer` alone.
        tools: the tools that may be called, as a JSON list of function schemas; empty if none.
        template_kwargs: further variables of the chat template, as a JSON object; empty if none.
        continues: whether plain text goes on after `answer`, so that no end is learnt there.
        row: the number of its row in what its split was read from; 0 where it was not read from rows.

    Examples:
        >>> Example((Message("user", "Which river runs through Paris?"),), "The Seine.").prompt
        'Which river runs through Paris?'
    """

    messages: tuple[Message, ...]
    answer: str
    references: tuple[str, ...] = ()
    passage: str = ""
    answer_fields: str = ""
    tools: str = ""
    template_kwargs: str = ""
    continues: bool = False
    row: int = field(default=0, compare=False, repr=False)

    @property
    def prompt(self) -> str:
        """Return the content of the last user message, or "" if there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


def json_bytes(value: object) -> bytes:
    """Return a value as a line of compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def content_bytes(example: Example) -> bytes:
    """Return all that an example says, for hashes; equal examples have equal bytes."""
    turns = [[m.role, m.content, m.labelled, *([m.fields] if m.fields else [])] for m in example.messages]
    further = [example.answer_fields, example.tools, example.template_kwargs]
    further += ["continues"] if example.continues else []
    return json_bytes([turns, example.answer, example.references, *(further if any(further) else [])])


def group_key(example: Example, kind: str, seed: int = 0) -> bytes:
    """Return a hash of the prompt (of plain text: of the text); examples with the same one stay in one split."""
    content = example.answer if kind == "text" else [[m.role, m.content] for m in example.messages]
    return hashlib.sha256(json_bytes([seed, content])).digest()
