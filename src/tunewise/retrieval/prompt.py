"""Puts passages into a prompt, before the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunewise.data.task import Example, Message
from tunewise.retrieval.passage import Passage

ASK = "Answer from these passages. If they do not hold the answer, say that it is not in the documents."


def with_passages(example: Example, passages: Sequence[Passage], *, quoted: bool) -> Example:
    """Return the example with passages, in this order, before its last question.

    If not `quoted`, each passage is a paragraph. If `quoted`, each has a number, its document and span, and a `>`
    before every line, so that no text in it can pass for the prompt's own; an instruction follows. Blank lines in a
    passage are dropped, because they would end the passage, or the answer of an example.
    """
    if not passages:
        return example
    texts = ["\n".join(line for line in p.indexed.splitlines() if line.strip()) for p in passages]
    if quoted:
        quotes = ["\n".join(f"> {line}" for line in text.splitlines()) for text in texts]
        texts = [f"[{n}] {p.id}\n{quote}" for n, (p, quote) in enumerate(zip(passages, quotes, strict=True), 1)]
        texts.append(ASK)
    last = max(index for index, message in enumerate(example.messages) if message.role == "user")
    question = example.messages[last]
    with_texts = Message(question.role, "\n\n".join([*texts, question.content]), question.labelled)
    return replace(example, messages=(*example.messages[:last], with_texts, *example.messages[last + 1 :]))


def holds_answer(example: Example, passages: Sequence[Passage]) -> bool:
    """Tell whether the right passage is among these: the one that the data names, or else one that has the answer."""
    if example.passage:
        return any(p.document == example.passage or p.text in example.passage for p in passages)
    answers = [answer.lower() for answer in (example.references or (example.answer,))]
    return any(answer in passage.text.lower() for passage in passages for answer in answers)
