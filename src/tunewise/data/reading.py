"""Reads the tables of a data set as examples, with one layout for all splits.

Bad rows are counted, and splits without answers are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tunewise.core.text import listed
from tunewise.data.columns import ColumnLayout, recognise
from tunewise.data.example_collection import ExampleCollection
from tunewise.data.formats import Converted, convert_rows, unused
from tunewise.data.label_checks import label_notes, refuse_free_text, refuse_one_label, unknown_labels
from tunewise.data.prompt_template import prompt_template
from tunewise.data.table import Table, bad_rows_error, places

_HIDDEN = ("", "-1", "?", "nan")  # stand for labels that a competition keeps to itself


@dataclass(frozen=True)
class Reading:
    """Holds the examples that the tables of a data set give.

    Attributes:
        layout: what the columns of the training split mean.
        kind: the kind of the task.
        examples: the examples of each split that has answers.
        labels: every label of a classification.
        template: the model's side of the user's template.
        skipped: how many bad rows were left out.
        notes: what was decided and found while reading, one sentence each.
    """

    layout: ColumnLayout
    kind: str
    examples: dict[str, ExampleCollection]
    labels: frozenset[str]
    template: str | None
    skipped: int
    notes: list[str]


def read_examples(
    tables: Mapping[str, Table],
    columns: Mapping[str, str] | None = None,
    kind: str | None = None,
    template: str | None = None,
    *,
    skip_bad_rows: bool = False,
) -> Reading:
    """Turn the tables of a data set into examples.

    Args:
        tables: one for each split, or a single one named "all".
        columns: standard names mapped to the data's own.
        kind: the kind of the task; by default it follows from the columns.
        template: the user's template, which may name columns.
        skip_bad_rows: leave bad rows out, unless they are more than half of a split.

    Raises:
        DataError: the columns are not recognised, differ between splits, or rows are bad.
    """
    first = "train" if "train" in tables else "all"
    for table in tables.values():
        if not table.rows:
            raise bad_rows_error([(table, fault) for fault in table.faults], len(table.faults))
    filled = prompt_template(tables[first], template)
    layout = recognise(tables[first], columns, kind, filled)
    layouts, notes = _layouts(tables, layout, first)
    kind = kind or (layout.format if layout.format in ("classification", "text") else "generation")
    numbers: dict[str, int] = {}  # of labels
    converted = {split: convert_rows(tables[split], here, kind, numbers) for split, here in layouts.items()}
    labels: frozenset[str] = frozenset()
    if kind == "classification":
        trained = converted[first].collection.facts
        labels = trained.labels_present
        refuse_free_text(tables[first], len(trained), labels)
        converted = {split: one.without(unknown_labels(one, labels)) for split, one in converted.items()}
    skipped = _skipped(tables, converted, skip_bad_rows, notes)
    examples = {split: one.collection for split, one in converted.items()}
    if kind == "classification":
        refuse_one_label(tables[first], len(examples[first].examples), labels)
        notes += label_notes(examples.values(), labels)
    told: Counter[str] = Counter()
    for one in converted.values():
        told.update(one.told)
    return Reading(
        layout=layout,
        kind=kind,
        examples=examples,
        labels=labels,
        template=template if filled is None else filled.around,
        skipped=skipped,
        notes=[
            *_table_notes(tables, layout, first, has_pair=bool(layout.joined) and filled is None and not columns),
            *notes,
            *(f"{count:,} {what}" for what, count in told.items()),
        ],
    )


def _layouts(
    tables: Mapping[str, Table], layout: ColumnLayout, first: str
) -> tuple[dict[str, ColumnLayout], list[str]]:
    """Return the layout for each split that has answers, and notes on those that have none.

    Raises:
        DataError: a split lacks a column that train is read from.
    """
    layouts, notes = {first: layout}, []
    for split, table in tables.items():
        if split == first:
            continue
        here = layout.with_names(table.name_counts)
        lacking = [name for name in here.required if name not in table.name_counts]
        if lacking and lacking != [here.answer]:
            raise table.error(
                f"it lacks {listed(lacking)}, which train is read from as {layout.format}",
                "give every split the same columns",
            )
        if here.answer is not None and (lacking or _is_unlabelled(table, here.answer)):
            notes.append(f'{split} has nothing in the column "{here.answer}" and is left out')
        else:
            layouts[split] = here
    return layouts, notes


def _is_unlabelled(table: Table, answer: str) -> bool:
    values = (row.get(answer) for _, row in table.rows)
    return all(
        value is None or (isinstance(value, str | int | float) and str(value).strip() in _HIDDEN) for value in values
    )


def _skipped(
    tables: Mapping[str, Table], converted: Mapping[str, Converted], skip_bad_rows: bool, notes: list[str]
) -> int:
    """Return how many bad rows are left out, after a note on them.

    Raises:
        DataError: there are bad rows and they are not to be left out, or are more than half of a split.
    """
    bad = [(tables[split], fault) for split, one in converted.items() for fault in one.faults]
    if not bad:
        return 0
    rows = {split: len(one.collection.examples) + len(one.faults) for split, one in converted.items()}
    mostly_bad = [split for split, one in converted.items() if len(one.faults) * 2 > rows[split]]
    if mostly_bad or not skip_bad_rows:
        if mostly_bad:
            remedy = ", as more than half of the rows are bad" if skip_bad_rows else ""
        else:
            remedy = f", or leave {'it' if len(bad) == 1 else 'them'} out with --skip-bad-rows"
        raise bad_rows_error(bad, sum(rows.values()), remedy)
    what = "1 bad row was" if len(bad) == 1 else f"{len(bad)} bad rows were"
    notes.append(f"{what} left out ({places(bad)})")
    return len(bad)


def _table_notes(tables: Mapping[str, Table], layout: ColumnLayout, first: str, *, has_pair: bool) -> list[str]:
    """Tell how the files were read, and what of them is used."""
    notes = [note for table in tables.values() for note in table.notes]
    notes += [
        f"{table.empty_lines} empty lines of {table.path} were skipped"
        for table in tables.values()
        if table.empty_lines
    ]
    if has_pair:
        notes += [f"prompts are made of the columns {listed(parts)}" for parts in layout.joined.values()]
    if ignored := unused(tables[first], layout):
        notes.append(f"columns not used: {listed(ignored)}")
    return notes
