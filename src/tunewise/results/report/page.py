"""Renders a comparison as one HTML page that loads nothing else: `report.html`.

All data is text: the template escapes it, and scripts read it as JSON without markup. Fields that an older version did
not write are left out of the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tunewise.core.text import visible
from tunewise.core.units import count, size
from tunewise.results.report.answer_tables import answer_tables, length_table
from tunewise.results.report.charts import charts, words
from tunewise.results.report.next_steps import next_steps
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
    "p value against the best": lambda row: shown(row.p_value, "{:.3g}"),
    "forgot, 95 %": lambda row: _ends(row.forgetting) if row.forgetting is not None else "",
    "KL on the task": lambda row: shown(row.forgetting.kl_task, "{:.3f}") if row.forgetting is not None else "",
    "weight change": lambda row: shown(row.forgetting.weight_change, "{:.3g}") if row.forgetting is not None else "",
    "tokens read before training": lambda row: (
        shown(row.training.preparing_tokens, "{:,}") if row.training is not None else ""
    ),
    "seconds of preparation": lambda row: shown(row.cost.preparing_seconds, "{:.1f}"),
    "training tokens/s": lambda row: shown(row.cost.tokens_per_second, "{:,.0f}"),
    "mergeable": lambda row: _YES[row.cost.merges],
    "swappable": lambda row: _YES[row.cost.swappable],
    "USD per 1,000 requests": lambda row: shown(row.cost.usd_per_1000_requests, "{:.3g}"),
}


@dataclass(frozen=True)
class _TableRow:
    """Holds a row as the terminal shows it; each cell comes with the number that it is sorted by."""

    family: str
    label: str
    marks: list[str]
    cells: list[tuple[str, float | None]]
    reason: str | None


@dataclass(frozen=True)
class _Figures:
    """Holds the table of further figures; a row is a label and its cells."""

    head: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class _ExampleAnswer:
    """Holds the answer of a technique, and whether it is right."""

    technique: str
    text: str
    kind: str
    mark: str


@dataclass(frozen=True)
class _Example:
    """Holds a test example and the answers of the techniques, of which `right` are right."""

    prompt: str
    answer: str
    right: int
    answers: list[_ExampleAnswer]


@dataclass(frozen=True)
class _SearchedTrial:
    """Holds a trial of a search, as the page shows it."""

    words: str
    loss: float | None
    rise: float | None
    reason: str | None
    chosen: bool


@dataclass(frozen=True)
class _SearchedRow:
    """Holds the trials of a technique's search, what they cost, and its settings."""

    label: str
    trials: list[_SearchedTrial]
    spent: list[str]
    settings: list[tuple[str, str]]


def render_html(result: Comparison, folder: str | Path | None = None) -> str:
    """Return the content of `report.html`: verdict, table, charts, answers, search, and commands to reproduce it.

    Args:
        result: the comparison.
        folder: where it lies; without it, the commands that use the recommended row are left out.
    """
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
        steps=next_steps(result, folder) if folder is not None else [],
        recommended=result.recommended,
        labels=answer_tables(best_first(result), result.task.labels),
        lengths=length_table(best_first(result)),
        answers=_answers(result),
        searched=_searched(result),
        commands=_commands(result),
        facts=_facts(result),
    )
    return visible(text)


def _verdict(result: Comparison) -> tuple[list[str], list[str]]:
    """Return the verdict in two sentences, and the further reasons."""
    verdict, lines = result.verdict, verdict_lines(result)
    if verdict is None:
        return lines[:2], lines[2:]
    summary = verdict.summary
    lead = [summary] if summary else lines[:2]
    rest = [*(verdict.reasons if summary else lines[2:]), *(verdict.break_even or ())]
    return lead, [line for line in dict.fromkeys(rest) if line not in (summary or "")]


def _table(result: Comparison) -> list[_TableRow]:
    """Return the scored rows, best first, with their marks."""
    verdict, by_name, places = result.verdict, {row.technique: row for row in result.scored}, columns(result)
    lines = []
    for name, cells in rows(result):
        row = by_name.get(name)
        label, *others = [cells[place] for place in places] if len(cells) == len(COLUMNS) else [""]
        figures = [(cell, number(cell)) for cell in others]
        if not name:
            lines.append(_TableRow("", label, ["reference"], figures, None))
        if row is None:
            continue
        marks = []
        if verdict is not None:
            marks += ["recommended"] * (name == verdict.recommended) + ["best"] * (name == verdict.best)
            marks += ["tie"] * (name in verdict.ties)
        lines.append(_TableRow(row.family, label, marks, figures, row.reason))
    return lines


def number(cell: str) -> float | None:
    """Return the number that a cell is sorted by, e.g. of 3.1M, 12.2 MB or 0.98–1.00; None if it is not a number."""
    match = _NUMBER.match(cell)
    return float(match[1]) * _POWERS.get(match["unit"] or "", 1.0) if match else None


def _further(result: Comparison) -> _Figures:
    """Return the figures that are not in the first table, if any row has them."""
    scored = best_first(result)
    cells = {name: [text(row) for row in scored] for name, text in _FURTHER.items()}
    filled = {name: column for name, column in cells.items() if any(column)}
    lines = zip(*filled.values(), strict=True)
    return _Figures(list(filled), [(row.label, list(line)) for row, line in zip(scored, lines, strict=False)])


def _ends(forgot: Forgetting) -> str:
    low, high = forgot.nll_rise_low, forgot.nll_rise_high
    return "" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def _answers(result: Comparison) -> list[_Example]:
    """Return examples with each technique's answer, in the order of the table, marked right, wrong or partly right."""
    order = [name for name, _ in rows(result)]
    examples = []
    for example in result.answers or ():
        answers = []
        for name in order:
            if name in example.rows:
                answered = example.rows[name]
                kind = _correctness(answered.score)
                mark = _MARKS[kind] + (f" {answered.score:.2f}" if kind == "partly" else "")
                answers.append(_ExampleAnswer(name, answered.text, kind, mark))
        right = sum(answer.kind == "right" for answer in answers)
        examples.append(_Example(example.prompt, example.answer, right, answers))
    return examples


def _correctness(score: float) -> str:
    return "right" if score >= 1 else "wrong" if score <= 0 else "partly"


def _searched(result: Comparison) -> list[_SearchedRow]:
    """Return the trials of each technique's search, its settings, and what they cost."""
    searched = []
    for row in result.rows:
        trials = [
            _SearchedTrial(
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
            steps = f"{spent.search_steps:,} steps, " if spent.search_steps else ""
            costs.append(f"Search: {spent.search_seconds:,.1f} s, {steps}{spent.search_tokens:,} tokens.")
            if spent.preparing_tokens:
                costs.append(f"Before training: {spent.preparing_tokens:,} tokens read.")
            costs.append(f"All trials: {spent.trial_seconds:,.1f} s, {spent.trial_tokens:,} tokens.")
        elif training is not None:
            costs.append(f"Trial: {training.steps:,} steps, {training.tokens:,} tokens.")
        if training is not None and training.best_step is not None:
            ended = "stopped early; " if training.stopped_early else ""
            costs.append(f"First seed: {ended}the state after step {training.best_step:,} was kept.")
        settings = [(name, str(value)) for name, value in row.settings.items()]
        searched.append(_SearchedRow(row.label, trials, costs, settings))
    return searched


def _commands(result: Comparison) -> list[tuple[str, str]]:
    """Return the command of the comparison, then that of each row."""
    command = result.command
    if not command:
        return []
    row_commands = [(row.label, shlex.join(_only(command, row.technique))) for row in result.rows]
    return [("the comparison", shlex.join(command)), *row_commands]


def _only(command: Sequence[str], technique: str) -> list[str]:
    """Return the command that runs only this technique."""
    words_to_keep, skip = [], False
    for word in command:
        if not skip and word not in ("-t", "--techniques", "--all") and not word.startswith("--techniques="):
            words_to_keep.append(word)
        skip = word in ("-t", "--techniques")
    return [*words_to_keep, "-t", technique]


def _facts(result: Comparison) -> list[tuple[str, str]]:
    """Return versions, hardware, data and model, as names and values."""
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
