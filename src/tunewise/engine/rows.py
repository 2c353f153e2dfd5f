"""Fits a task to a model: long plain texts in pieces of the window, and every learnt turn as the template writes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from tunewise.data.example_collection import kept
from tunewise.data.task import Example, Task
from tunewise.engine.configuration import TextModel
from tunewise.engine.encoding import Encoder
from tunewise.engine.vocabulary import template_text

_SHARE = 16  # of the window, one part in so many is left to virtual tokens and to the marks of beginning and end

_RENDERED = 64  # training examples that are rendered to find out what has to be told


def fitted_to(model: TextModel, task: Task) -> Task:
    """Return the task as a model learns it and is scored on it, with a note for each thing that was done.

    Plain texts that exceed the window are cut into pieces of it, as pretraining does, in all splits. Turns before the
    answer that the chat template writes differently once others follow become rows of their own, in train. A task that
    was fitted to this tokenizer and window before is returned as it is.

    Raises:
        DataError: the chat template refuses an example.
    """
    fitted = f"{model.window} {template_text(model.tokenizer)}"
    if task.fitted == fitted:
        return task
    task = replace(task, as_read=task.row_fingerprints)
    if task.kind == "text":
        return replace(_in_pieces(model, task), fitted=fitted)
    encoder = Encoder(model, task)
    rows = _one_answer_each(encoder, task)
    encoder.sizes(task.train[:_RENDERED])
    notes, added = list(encoder.notes), len(rows) - len(task.train)
    if added:
        notes.append(
            f"{added} turns before the last answer became rows of their own, because the chat template writes them "
            "differently once others follow"
        )
    return replace(task, train=rows, notes=tuple(dict.fromkeys((*task.notes, *notes))), fitted=fitted)


def _one_answer_each(encoder: Encoder, task: Task) -> Sequence[Example]:
    """Return the training examples as `Encoder.one_answer_each` does, where any of them learns more than its answer."""
    if not encoder.chat or not any(message.labelled for example in task.train for message in example.messages):
        return task.train
    return kept((row for example in task.train for row in encoder.one_answer_each([example])), task.kind)


def _in_pieces(model: TextModel, task: Task) -> Task:
    encoder = Encoder(model, task)
    room = max(encoder.limit - max(encoder.limit // _SHARE, 2), 1)
    pieces = {split: kept(_pieces(encoder, examples, room), task.kind) for split, examples in task.splits.items()}
    before, after = (sum(map(len, each.values())) for each in (task.splits, pieces))
    if before == after:
        return task
    note = f"long texts were cut into pieces of up to {room} tokens, so that {before} texts became {after} rows"
    return replace(
        task,
        train=pieces["train"],
        validation=pieces["validation"],
        test=pieces["test"],
        notes=(*task.notes, note),
    )


def _pieces(encoder: Encoder, examples: Sequence[Example], room: int) -> Iterator[Example]:
    """Cut each text where a token begins, so that every piece has at most `room` tokens."""
    for example in examples:
        text = example.answer
        # A token has at least one byte, so that a short text needs no tokenizing.
        places = encoder.places(text) if len(text.encode()) > room else []
        if len(places) <= room:
            yield example
            continue
        cuts = [0, *(places[index] for index in range(room, len(places), room)), len(text)]
        for start, end in pairwise(cuts):
            if text[start:end].strip():
                yield replace(example, answer=text[start:end], continues=end < len(text) or example.continues)
