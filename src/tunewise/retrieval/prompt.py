"""Passages in a prompt: before the question, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunewise.data.task import Example, Message
from tunewise.retrieval.passage import Passage

ASK = "Answer from these passages. If they do not hold the answer, say that it is not in the documents."


def with_passages(example: Example, passages: Sequence[Passage], *, quoted: bool) -> Example:
    """The example with passages, in this order, before its last question.

    Bare, each is a paragraph. Quoted, each has a number, its document and span, and a mark on every line that its text
    cannot leave; an instruction follows them. Blank lines in a passage are dropped: they would end it, or an answer.
    """
    if not passages:
        return example
    texts = ["\n".join(line for line in p.indexed.splitlines() if line.strip()) for p in passages]
    if quoted:
        quotes = ["\n".join(f"> {line}" for line in text.splitlines()) for text in texts]
        texts = [f"[{n}] {p.id}\n{quote}" for n, (p, quote) in enumerate(zip(passages, quotes, strict=True), 1)]
        texts.append(ASK)
    last = max(place for place, message in enumerate(example.messages) if message.role == "user")
    asked = example.messages[last]
    put = Message(asked.role, "\n\n".join([*texts, asked.content]), asked.labelled)
    return replace(example, messages=(*example.messages[:last], put, *example.messages[last + 1 :]))


def holds_answer(example: Example, passages: Sequence[Passage]) -> bool:
    """Whether the right passage is among these: the one that the data names, else one that has the answer in it."""
    if example.passage:
        return any(p.document == example.passage or p.text in example.passage for p in passages)
    answers = [answer.lower() for answer in (example.references or (example.answer,))]
    return any(answer in passage.text.lower() for passage in passages for answer in answers)
