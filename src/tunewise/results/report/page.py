"""A comparison as one HTML page that loads nothing: `report.html`.

Everything in it that comes from data is text: the template escapes it, and what scripts read is JSON without markup.
Fields that an older version did not write are left out of the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tunewise.core.units import count, size
from tunewise.results.report.charts import charts, words
from tunewise.results.report.plotly_charts import drawn, library
from tunewise.results.report.tables import (
    COLUMNS,
    best_first,
    columns,
    heading,
    legend,
    notes,
    rows,
    shown,
    verdict_lines,
)
from tunewise.results.schema import Comparison, Forgetting, ScoredRow

_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)(?:(?P<unit> ?[kMGB]?)B?)?(?:–.*)?$")
_POWERS = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, " k": 1e3, " M": 1e6, " G": 1e9}
_MARKS = {"right": "✓ right", "wrong": "✗ wrong", "partly": "≈"}
_YES = {True: "yes", False: "no", None: ""}
_FURTHER: dict[str, Callable[[ScoredRow], str]] = {
    "rank": lambda row: "–".join(str(place) for place in dict.fromkeys(row.rank or ())),
    "p (against the best)": lambda row: shown(row.p_value, "{:.3g}"),
    "forgot, 95 %": lambda row: _ends(row.forgetting) if row.forgetting is not None else "",
    "KL on the task": lambda row: shown(row.forgetting.kl_task, "{:.3f}") if row.forgetting is not None else "",
    "change of the weights": lambda row: (
        shown(row.forgetting.weight_change, "{:.3g}") if row.forgetting is not None else ""
    ),
    "training tokens/s": lambda row: shown(row.cost.tokens_per_second, "{:,.0f}"),
    "merges": lambda row: _YES[row.cost.merges],
    "swappable": lambda row: _YES[row.cost.swappable],
    "USD per 1,000 requests": lambda row: shown(row.cost.usd_per_1000_requests, "{:.3g}"),
}


@dataclass(frozen=True)
class _TableRow:
    """A row as the terminal shows it, each cell with the number that it is sorted by."""

    family: str
    label: str
    marks: list[str]
    cells: list[tuple[str, float | None]]
    reason: str | None


@dataclass(frozen=True)
class _Figures:
    """A table of further figures; a row is a label and its cells."""

    head: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class _Given:
    """What a technique answered, and whether that is right."""

    technique: str
    text: str
    kind: str
    mark: str


@dataclass(frozen=True)
class _Example:
    """A test example; `right` of those `given` are right."""

    prompt: str
    answer: str
    right: int
    given: list[_Given]


@dataclass(frozen=True)
class _Tried:
    """A trial of a search."""

    words: str
    loss: float | None
    rise: float | None
    reason: str | None
    chosen: bool


@dataclass(frozen=True)
class _Searched:
    """The trials of a technique's search, what all of them took, and its settings."""

    label: str
    trials: list[_Tried]
    spent: list[str]
    settings: list[tuple[str, str]]


def render_html(result: Comparison) -> str:
    """The content of `report.html`: verdict, table, charts, answers, search, and how to make each row again."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawings = charts(result)
    lead, rest = _verdict(result)
    text = environment.get_template("page.html").render(
        title=heading(result),
        created=result.created,
        lead=lead,
        rest=rest,
        columns=[COLUMNS[place] for place in columns(result)],
        rows=_table(result),
        out=[row for row in result.rows if not isinstance(row, ScoredRow)],
        families=list(dict.fromkeys(row.family for row in result.rows)),
        further=_further(result),
        notes=notes(result),
        legend=legend(result),
        charts=drawings,
        figures=drawn(drawings),
        library=library() if drawings else "",
        answers=_answers(result),
        searched=_searched(result),
        commands=_commands(result),
        facts=_facts(result),
    )
    # No browser reads a NUL or half of a surrogate pair, and no file in UTF-8 holds the latter.
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _verdict(result: Comparison) -> tuple[list[str], list[str]]:
    """The verdict in two sentences, and what else speaks for it."""
    verdict, lines = result.verdict, verdict_lines(result)
    if verdict is None:
        return lines[:2], lines[2:]
    summary = verdict.summary
    lead = [summary] if summary else lines[:2]
    rest = [*(verdict.reasons if summary else lines[2:]), *(verdict.break_even or ())]
    return lead, [line for line in dict.fromkeys(rest) if line not in (summary or "")]


def _table(result: Comparison) -> list[_TableRow]:
    """The scored rows, best first, with their marks."""
    verdict, by_name, places = result.verdict, {row.technique: row for row in result.scored}, columns(result)
    lines = []
    for name, cells in rows(result):
        row = by_name.get(name)
        if row is None:
            continue
        marks = []
        if verdict is not None:
            marks += ["recommended"] * (name == verdict.recommended) + ["best"] * (name == verdict.best)
            marks += ["tie"] * (name in verdict.ties)
        label, *others = [cells[place] for place in places]
        lines.append(_TableRow(row.family, label, marks, [(cell, number(cell)) for cell in others], row.reason))
    return lines


def number(cell: str) -> float | None:
    """What a cell of the table is sorted by: 3.1M, 12.2 MB and 0.98–1.00 are numbers; None where it is none."""
    found = _NUMBER.match(cell)
    return float(found[1]) * _POWERS.get(found["unit"] or "", 1.0) if found else None


def _further(result: Comparison) -> _Figures:
    """Figures that are not in the first table, where a row has them."""
    scored = best_first(result)
    cells = {name: [text(row) for row in scored] for name, text in _FURTHER.items()}
    kept = {name: column for name, column in cells.items() if any(column)}
    lines = zip(*kept.values(), strict=True)
    return _Figures(list(kept), [(row.label, list(line)) for row, line in zip(scored, lines, strict=False)])


def _ends(forgot: Forgetting) -> str:
    low, high = forgot.nll_rise_low, forgot.nll_rise_high
    return "" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def _answers(result: Comparison) -> list[_Example]:
    """Examples with each technique's answer, in the order of the table, marked right, wrong or partly right."""
    order = [name for name, _ in rows(result)]
    examples = []
    for example in result.answers or ():
        given = []
        for name in order:
            if name in example.rows:
                answered = example.rows[name]
                kind = _kind(answered.score)
                mark = _MARKS[kind] + (f" {answered.score:.2f}" if kind == "partly" else "")
                given.append(_Given(name, answered.text, kind, mark))
        right = sum(each.kind == "right" for each in given)
        examples.append(_Example(example.prompt, example.answer, right, given))
    return examples


def _kind(score: float) -> str:
    return "right" if score >= 1 else "wrong" if score <= 0 else "partly"


def _searched(result: Comparison) -> list[_Searched]:
    """Of each technique: the trials of its search, its settings, and what both cost."""
    searched = []
    for row in result.rows:
        trials = [
            _Tried(
                words(trial),
                trial.validation_loss,
                trial.nll_rise,
                trial.reason,
                trial.won if trial.won is not None else trial.learning_rate == row.learning_rate,
            )
            for trial in row.search or ()
        ]
        spent, training = row.spent, row.training if isinstance(row, ScoredRow) else None
        costs = []
        if spent is not None:
            costs.append(f"Search: {spent.search_seconds:,.1f} s, {spent.search_tokens:,} tokens.")
            costs.append(f"All trials: {spent.trial_seconds:,.1f} s, {spent.trial_tokens:,} tokens.")
        elif training is not None:
            costs.append(f"Trial: {training.steps:,} steps, {training.tokens:,} tokens.")
        settings = [(name, str(value)) for name, value in row.settings.items()]
        searched.append(_Searched(row.label, trials, costs, settings))
    return searched


def _commands(result: Comparison) -> list[tuple[str, str]]:
    """The command of the comparison, then that of each row."""
    command = result.command
    if not command:
        return []
    each = [(row.label, shlex.join(_only(command, row.technique))) for row in result.rows]
    return [("the comparison", shlex.join(command)), *each]


def _only(command: Sequence[str], technique: str) -> list[str]:
    """The same command for one row."""
    kept, skip = [], False
    for word in command:
        if not skip and word not in ("-t", "--techniques", "--all") and not word.startswith("--techniques="):
            kept.append(word)
        skip = word in ("-t", "--techniques")
    return [*kept, "-t", technique]


def _facts(result: Comparison) -> list[tuple[str, str]]:
    """Versions, hardware, data and model, as names and values."""
    model, task, machine = result.model, result.task, result.machine
    processor = f"{machine.processor}, {machine.cores} cores, {machine.threads} threads"
    versions = f"torch {machine.torch}, transformers {machine.transformers}, python {machine.python}"
    counts = f"{task.train:,} train, {task.validation:,} validation, {task.test:,} test"
    facts = [
        ("versions", f"tunewise {result.tunewise}, {versions}"),
        ("device", f"{machine.device}; {processor}; {size(machine.memory_bytes)}; {machine.platform}"),
        ("model", f"{model.name} ({model.architecture}, {count(model.parameters)}, {model.dtype})"),
        ("model fingerprint", model.fingerprint),
        ("data", f"{task.source} ({counts}), metric {task.metric}"),
        ("data fingerprint", task.fingerprint),
        ("budget", _pairs(result.budget.to_json())),
        ("settings", _pairs(result.settings)),
        ("retention text", f"{result.retention.source}, {result.retention.sequences} sequences"),
        ("measured", result.created),
    ]
    if model.revision:
        facts.insert(3, ("model revision", model.revision))
    return facts


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
