"""Checks the labels of a classification: too many or too few, unknown ones, and what looks like a mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from tunewise.core.text import listed, show
from tunewise.data.examples import Example
from tunewise.data.formats import Converted
from tunewise.data.table import Fault, Table


def refuse_free_text(table: Table, examples: Sequence[Example], labels: Collection[str]) -> None:
    """Refuse labels of which there are as many as texts would have.

    Raises:
        DataError: there are too many labels.
    """
    if len(labels) > max(20, len(examples) / 2):
        raise table.error(
            f"{len(labels)} different labels in {len(examples)} rows are too many to be classes",
            "map the columns as prompt and completion",
        )


def refuse_one_label(table: Table, examples: Sequence[Example], labels: Collection[str]) -> None:
    """Refuse a classification in which everything has the same label, as any model would be right.

    Raises:
        DataError: there is only one label.
    """
    if len(labels) == 1:
        raise table.error(
            f"all {len(examples)} rows have the label {listed(labels)}, so there is nothing to tell apart",
            "add rows with another label, or read it as text to write, with kind generation",
        )


def unknown_labels(converted: Converted, labels: Collection[str]) -> list[Fault]:
    """Return the rows whose label does not occur in train."""
    return [
        Fault(
            number,
            f'the label "{show(example.answer)}" does not occur in train',
            "add examples of it to train or remove the row",
        )
        for number, example in zip(converted.numbers, converted.examples, strict=True)
        if example.answer not in labels
    ]


def label_notes(examples: Iterable[Example], labels: Collection[str]) -> list[str]:
    """Tell which labels differ only in case or outer spaces, and how many prompts have several labels."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(label.strip().casefold(), []).append(label)
    notes = [
        f"labels that differ only in case or outer spaces count as different: {listed(group)}"
        for group in groups.values()
        if len(group) > 1
    ]
    first_label: dict[tuple[str, ...], str] = {}
    contradicting: dict[tuple[str, ...], set[str]] = {}
    for example in examples:
        prompt = tuple(message.content for message in example.messages)
        if first_label.setdefault(prompt, example.answer) != example.answer:
            contradicting.setdefault(prompt, {first_label[prompt]}).add(example.answer)
    if contradicting:
        prompt, answers = next(iter(contradicting.items()))
        what = "1 prompt has" if len(contradicting) == 1 else f"{len(contradicting)} prompts have"
        notes.append(
            f'{what} several labels, such as "{show(prompt[-1] if prompt else "")}": {listed(sorted(answers))}'
        )
    return notes
