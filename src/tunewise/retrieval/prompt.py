"""Puts passages into a prompt: how they are written, and what is asked of the model with them.

A request is a text with `{passages}` and `{question}`, which stand for what is shown and what the user asks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from tunewise.core.errors import SettingError
from tunewise.core.text import show
from tunewise.data.task import Example, Task
from tunewise.retrieval.passage import Passage

BARE = "{passages}\n\n{question}"
FROM_DOCUMENTS = (
    "{passages}\n\n"
    "Answer from these passages. If they do not hold the answer, say that it is not in the documents.\n\n"
    "{question}"
)
BRIEFLY_FROM_DOCUMENTS = FROM_DOCUMENTS.replace("passages. If", "passages in a few words. If")
LABEL_WITH_DOCUMENTS = "{passages}\n\nGive the label of the following text; the passages may help.\n\n{question}"
_BRIEF = 6  # words of an answer
_PLACEHOLDER = re.compile(r"\{(passages|question)\}")


def default_request(task: Task, *, training_examples: bool) -> str:
    """Return what is asked of a chat model with passages of documents, or with training examples as passages.

    Where most training answers are a few words, such an answer is asked for: a sentence around it would be wrong.
    """
    if training_examples:
        # The question stands in the form of the examples, which a small model follows better than a sentence about it.
        user, assistant = _speakers(task)
        labelled = task.kind == "classification"
        what = "labelled examples" if labelled else "examples with their answers"
        ask = "Give the label of the following text." if labelled else "Answer the following in the same way."
        return f"Here are {what}.\n\n{{passages}}\n\n{ask}\n\n{user}: {{question}}\n{assistant}:"
    if task.kind == "classification":
        return LABEL_WITH_DOCUMENTS
    words = [len(example.answer.split()) for example in task.train]
    return BRIEFLY_FROM_DOCUMENTS if words and median(words) <= _BRIEF else FROM_DOCUMENTS


def check_request(request: str, setting: str) -> None:
    """Refuse a request that does not say where passages and question stand; `setting` is the name of what gives it.

    Raises:
        SettingError: `{passages}` or `{question}` does not stand in it exactly once.
    """
    for name in ("{passages}", "{question}"):
        if request.count(name) != 1:
            raise SettingError(
                f'{setting} is "{show(request)}" and has {name} {request.count(name)} times; write {{passages}} and '
                "{question} once each, where they are to stand"
            )


def with_passages(example: Example, passages: Sequence[Passage], *, quoted: bool, request: str = BARE) -> Example:
    """Return the example with passages, in this order, before its last question, as the request says.

    If not `quoted`, each passage is a paragraph. If `quoted`, each has a number, its document and span, and a `>`
    before every line, so that no text in it can pass for the prompt's own. Blank lines in a passage are dropped,
    because they would end the passage, or the answer of an example. Without passages, the example stays as it is, and
    nothing is requested.
    """
    if not passages:
        return example
    texts = ["\n".join(line for line in p.indexed.splitlines() if line.strip()) for p in passages]
    if quoted:
        quotes = ["\n".join(f"> {line}" for line in text.splitlines()) for text in texts]
        names = [show(p.id, len(p.id)) for p in passages]  # of files, and so with any character
        texts = [f"[{n}] {name}\n{quote}" for n, (name, quote) in enumerate(zip(names, quotes, strict=True), 1)]
    last = max(index for index, message in enumerate(example.messages) if message.role == "user")
    question = example.messages[last]
    parts = {"passages": "\n\n".join(texts), "question": question.content}
    content = _PLACEHOLDER.sub(lambda match: parts[match[1]], request)
    with_texts = replace(question, content=content)
    return replace(example, messages=(*example.messages[:last], with_texts, *example.messages[last + 1 :]))


def example_text(example: Example, task: Task) -> str:
    """Return an example as plain text, as it is searched and shown: its turns and its answer without system texts."""
    user, assistant = _speakers(task)
    prefixes = {"user": user, "assistant": assistant, "tool": "Tool"}
    turns = [(prefixes[m.role], m.content) for m in example.messages if m.role != "system" and m.content]
    return "\n".join(f"{prefix}: {text}" for prefix, text in [*turns, (assistant, example.answer)])


def _speakers(task: Task) -> tuple[str, str]:
    """Return what stands before a question and before its answer."""
    if task.kind == "classification":
        return "Text", "Label"
    return ("Question", "Answer") if task.format == "question-answer" else ("User", "Assistant")


def holds_answer(example: Example, passages: Sequence[Passage]) -> bool:
    """Tell whether the right passage is among these: the one that the data names, or else one that has the answer."""
    if example.passage:
        return any(p.document == example.passage or p.text in example.passage for p in passages)
    answers = [answer.lower() for answer in (example.references or (example.answer,))]
    return any(answer in passage.text.lower() for passage in passages for answer in answers)
