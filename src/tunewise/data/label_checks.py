"""Checks the labels of a classification: too many or too few, unknown ones, and what looks like a mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tunewise.core.text import listed, show
from tunewise.data.example_collection import ExampleCollection
from tunewise.data.formats import Converted
from tunewise.data.table import Fault, Table


def refuse_free_text(table: Table, count: int, labels: Collection[str]) -> None:
    """Refuse labels of which there are as many as texts would have.

    Raises:
        DataError: there are too many labels.
    """
    if len(labels) > max(20, count / 2):
        raise table.error(
            f"{len(labels)} different labels in {count} rows are too many to be classes",
            "map the columns as prompt and completion",
        )


def refuse_one_label(table: Table, count: int, labels: Collection[str]) -> None:
    """Refuse a classification in which everything has the same label, as any model would be right.

    Raises:
        DataError: there is only one label.
    """
    if len(labels) == 1:
        raise table.error(
            f"all {count} rows have the label {listed(labels)}, so there is nothing to tell apart",
            "add rows with another label, or read it as text to write, with kind generation",
        )


def unknown_labels(converted: Converted, labels: Collection[str]) -> list[Fault]:
    """Return the rows whose label does not occur in train."""
    facts = converted.collection.facts
    unknown = {number: label for label, number in facts.labels.items() if label not in labels}
    return [
        Fault(
            row,
            f'the label "{show(unknown[answer])}" does not occur in train',
            "add examples of it to train or remove the row",
        )
        for row, answer in zip(facts.rows, facts.answers, strict=True)
        if answer in unknown
    ]


def label_notes(splits: Iterable[ExampleCollection], labels: Collection[str]) -> list[str]:
    """Tell which labels differ only in case or outer spaces, and how many prompts have several labels."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(label.strip().casefold(), []).append(label)
    notes = [
        f"labels that differ only in case or outer spaces count as different: {listed(group)}"
        for group in groups.values()
        if len(group) > 1
    ]
    first_label: dict[bytes, int] = {}
    contradicting: dict[bytes, set[int]] = {}
    shown, names = "", list[str]()
    for split in splits:
        for place, (prompt, answer) in enumerate(zip(split.facts.prompts, split.facts.answers, strict=True)):
            if first_label.setdefault(prompt, answer) != answer:
                if not contradicting:
                    messages = split.examples[place].messages
                    shown, names = messages[-1].content if messages else "", split.facts.label_names
                contradicting.setdefault(prompt, {first_label[prompt]}).add(answer)
    if contradicting:
        answers = sorted(names[answer] for answer in next(iter(contradicting.values())))
        what = "1 prompt has" if len(contradicting) == 1 else f"{len(contradicting)} prompts have"
        notes.append(f'{what} several labels, such as "{show(shown)}": {listed(answers)}')
    return notes
