"""Shows how techniques answer beside their score: per-class scores, confused labels, and lengths of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunewise.core.text import inert_markdown, show
from tunewise.results.diagnostics import (
    AnswerLengths,
    Confusion,
    class_scores,
    never_ended_sentence,
    one_class_sentence,
)
from tunewise.results.schema import ScoredRow

_GRID = 12  # labels that a confusion table has at most; of more, the most confused pairs are listed
_PAIRS = 15
_CLASS_HEAD = ("label", "precision", "recall", "F1", "examples")
_PAIR_HEAD = ("label", "predicted", "times")
_LENGTH_HEAD = ("technique", "answer, mean tokens", "longest", "expected answer, mean tokens", "never ended")


@dataclass(frozen=True)
class Cells:
    """Holds a table as text; `caption` says how to read it, and the first `names` cells of a row are no numbers."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    names: int = 1


@dataclass(frozen=True)
class LabelTables:
    """Holds the tables of one technique's predicted labels, and whether it predicts one class."""

    title: str
    note: str | None
    classes: Cells
    confusion: Cells


def label_tables(title: str, confusions: Sequence[Confusion], labels: Sequence[str]) -> LabelTables:
    """Make the tables of per-class scores and of confused labels, over all seeds."""
    total = Confusion.total(confusions)
    scores = class_scores(total, labels)
    classes = [
        (show(one.label), f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", f"{one.examples:,}")
        for one in scores
    ]
    seeds = f", over {len(confusions)} seeds" if len(confusions) > 1 else ""
    sentence = one_class_sentence(confusions)
    return LabelTables(
        title,
        f"{title} {sentence}." if sentence else None,
        Cells(f"Scores of each label{seeds}", _CLASS_HEAD, classes),
        _confusion(total, [one.label for one in scores], seeds) if len(scores) <= _GRID else _pairs(total, seeds),
    )


def _confusion(total: Confusion, labels: Sequence[str], seeds: str) -> Cells:
    counts = {(label, answer): number for label, answer, number in total.pairs()}
    return Cells(
        f"Confused labels{seeds}: a row is the right label, a column the predicted one",
        ("label", *map(show, labels)),
        [(show(label), *(f"{counts.get((label, answer), 0):,}" for answer in labels)) for label in labels],
    )


def _pairs(total: Confusion, seeds: str) -> Cells:
    mistakes = total.mistakes()
    caption = f"The most confused labels{seeds}: {min(len(mistakes), _PAIRS)} of {len(mistakes)} pairs"
    rows = [(show(label), show(answer), f"{number:,}") for label, answer, number in mistakes[:_PAIRS]]
    return Cells(caption, _PAIR_HEAD, rows, names=2)


def answer_tables(rows: Sequence[ScoredRow], labels: Sequence[str]) -> list[LabelTables]:
    """Return the tables of each technique of a classification."""
    return [label_tables(row.label, row.confusions, labels) for row in rows if row.confusions]


def length_table(rows: Sequence[ScoredRow]) -> Cells | None:
    """Return the lengths of each technique's answers; None where no lengths are known."""
    lines = [_length_row(row.label, AnswerLengths.total(row.lengths)) for row in rows if row.lengths]
    return Cells("Lengths in tokens, over all seeds", _LENGTH_HEAD, lines) if lines else None


def _length_row(label: str, lengths: AnswerLengths) -> tuple[str, ...]:
    return (
        label,
        f"{lengths.mean:.1f}",
        f"{lengths.longest:,}",
        f"{lengths.reference_mean:.1f}",
        f"{lengths.never_ended:,} of {lengths.answers:,}",
    )


def answer_notes(row: ScoredRow) -> list[str]:
    """Say that a technique predicts one class, or that its answers never ended."""
    sentences = [
        one_class_sentence(row.confusions) if row.confusions else None,
        never_ended_sentence(AnswerLengths.total(row.lengths)) if row.lengths else None,
    ]
    return [f"{row.label}: {sentence}." for sentence in sentences if sentence]


def rich_table(cells: Cells) -> Table:
    """Return a table for the terminal; cells are plain text, so that labels cannot inject markup."""
    table = Table(title=Text(cells.caption), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(cells.head):
        table.add_column(Text(name), justify="left" if place < cells.names else "right")
    for row in cells.rows:
        table.add_row(*map(Text, row))
    return table


def score_details(
    confusion: Confusion | None, lengths: AnswerLengths | None, labels: Sequence[str]
) -> list[RenderableType]:
    """Show one scoring's labels or lengths in the terminal, as `tunewise eval` prints them."""
    parts: list[RenderableType] = []
    if confusion is not None:
        tables = label_tables("It", [confusion], labels)
        parts += [Text(tables.note, style="yellow")] if tables.note else []
        parts += [Group(Text(""), rich_table(tables.classes), Text(""), rich_table(tables.confusion))]
    if lengths is not None:
        ended = never_ended_sentence(lengths)
        parts.append(
            Text(
                f"answers: {lengths.mean:.1f} tokens on average, {lengths.longest} at most; expected answers: "
                f"{lengths.reference_mean:.1f} on average" + (f"; {ended}" if ended else "; all ended")
            )
        )
    return parts


def markdown_table(cells: Cells) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [cells.head, *cells.rows]
    text = ["| " + " | ".join(inert_markdown(cell) for cell in line) + " |" for line in lines]
    return [text[0], "|---" * len(cells.head) + "|", *text[1:]]
