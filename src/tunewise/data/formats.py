"""Turns the rows of a table into examples, in the format that `columns` recognised.

Values are never guessed: one that is not text where text is needed makes a bad row, with its line and column. An answer
or a label may be a number or true/false, and is taken as the file spells it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tunewise.data.cells import Cells
from tunewise.data.columns import ColumnLayout, recognise
from tunewise.data.conversations import conversation, is_conversational, prompt_and_completion
from tunewise.data.example_collection import ExampleCollection
from tunewise.data.examples import Example, Message
from tunewise.data.table import BadRow, Fault, Table, bad_rows_error

__all__ = ["ColumnLayout", "Converted", "Example", "Message", "convert", "convert_rows", "recognise", "unused"]


@dataclass(frozen=True)
class Converted:
    """Holds the examples of a table, its bad rows, and what notes tell."""

    collection: ExampleCollection
    faults: list[Fault]
    told: Mapping[str, int]

    def without(self, faults: Iterable[Fault]) -> Converted:
        """Return this with these rows among the bad ones."""
        further = {fault.number: fault for fault in faults}
        if not further:
            return self
        places = [place for place, number in enumerate(self.collection.facts.rows) if number not in further]
        return Converted(
            self.collection.chosen(places),
            sorted([*self.faults, *further.values()], key=lambda fault: fault.number),
            self.told,
        )


def convert_rows(table: Table, layout: ColumnLayout, kind: str, labels: dict[str, int] | None = None) -> Converted:
    """Turn every row into an example, in order; what cannot be one is among the bad rows.

    Args:
        table: the rows.
        layout: what the columns mean.
        kind: the kind of the task.
        labels: every label of a classification with its number; those that are new are added.
    """
    told: Counter[str] = Counter()
    faults = list(table.faults)
    collection = ExampleCollection.of(_examples(table, layout, faults, told), kind, labels)
    return Converted(collection, sorted(faults, key=lambda fault: fault.number), told)


def _examples(table: Table, layout: ColumnLayout, faults: list[Fault], told: Counter[str]) -> Iterator[Example]:
    """Yield the examples of a table, and append the bad rows to `faults`."""
    build = _BUILDERS[layout.format]
    filled = layout.template is not None and layout.template.has_prompt
    for number, row in table.rows:
        cells = Cells(layout, number, row, told)
        try:
            example = build(cells)
            yield _filled(cells, example) if filled else example
        except BadRow as error:
            faults.append(error.fault)


def convert(table: Table, layout: ColumnLayout) -> Sequence[Example]:
    """Turn every row into an example, in order.

    Raises:
        DataError: a value is missing, blank or of the wrong type; the message names the line and the column, or the
            number of bad rows and the first few of them.
    """
    converted = convert_rows(table, layout, "generation")
    if converted.faults:
        rows = len(table.rows) + len(table.faults)
        raise bad_rows_error([(table, fault) for fault in converted.faults], rows)
    return converted.collection.examples


def unused(table: Table, layout: ColumnLayout) -> list[str]:
    """List the columns of a table that its layout does not use."""
    used = layout.used()
    return [name for name in table.name_counts if name not in used]


def _filled(cells: Cells, example: Example) -> Example:
    """Return an example whose last user message stands in the user's template."""
    messages = list(example.messages)
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        return example
    messages[last] = replace(messages[last], content=cells.filled(messages[last].content))
    return replace(example, messages=tuple(messages))


def _alpaca(cells: Cells) -> Example:
    messages = cells.system()
    history = cells.value("history")
    for i, pair in enumerate(cells.items("history", history) if history is not None else []):
        texts = cells.items("history", pair, f"[{i}]")
        if len(texts) != 2:
            raise cells.error("history", "the entry is not a pair", "write [question, answer] pairs", f"[{i}]")
        question, answer = (cells.check("history", text, f"[{i}][{j}]") for j, text in enumerate(texts))
        messages += [Message("user", question), Message("assistant", answer, labelled=True)]
    prompt = "\n\n".join(part for part in (cells.text("instruction"), cells.optional("input")) if part)
    return Example(
        (*messages, Message("user", prompt)), cells.answer("output", cells.value("output")), row=cells.number
    )


def _question_answer(cells: Cells) -> Example:
    prompt = "\n\n".join(part for part in (cells.optional("context"), cells.text("question")) if part)
    answers = cells.value("answer")
    inside = ""
    if isinstance(answers, dict):  # SQuAD: {"text": [...], "answer_start": [...]}
        answers, inside = answers.get("text"), ".text"
    if isinstance(answers, list):
        texts = [cells.answer("answer", text, f"{inside}[{i}]") for i, text in enumerate(answers)]
    else:
        texts = [cells.answer("answer", answers, inside)]
    if not texts:
        raise cells.error("answer", "there is no answer", "remove the row or write what the model should say", inside)
    references = tuple(dict.fromkeys(texts))
    return Example(
        (*cells.system(), Message("user", prompt)), texts[0], references, cells.name("passage"), row=cells.number
    )


def _prompt_completion(cells: Cells) -> Example:
    if is_conversational(cells):
        return prompt_and_completion(cells)
    messages = (*cells.system(), Message("user", cells.text("prompt")))
    return Example(
        messages, cells.answer("completion", cells.value("completion")), (), cells.name("passage"), row=cells.number
    )


def _classification(cells: Cells) -> Example:
    return Example(
        (Message("user", cells.text("text")),), cells.answer("label", cells.value("label")), row=cells.number
    )


def _text(cells: Cells) -> Example:
    return Example((), cells.text("text"), row=cells.number)


_BUILDERS: dict[str, Callable[[Cells], Example]] = {
    "messages": lambda cells: conversation(cells, "messages"),
    "sharegpt": lambda cells: conversation(cells, "conversations"),
    "alpaca": _alpaca,
    "question-answer": _question_answer,
    "prompt-completion": _prompt_completion,
    "classification": _classification,
    "text": _text,
}
