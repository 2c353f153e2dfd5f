"""Shows a comparison as tables: for the terminal and as Markdown, with the same rows in the same order."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tunewise.core.text import inert_markdown, show, visible
from tunewise.core.units import count, duration, size
from tunewise.results.diagnostics import Majority
from tunewise.results.report.answer_tables import answer_notes, answer_tables, length_table, markdown_table
from tunewise.results.report.layout import Column, FittedTable, TableRow, decimals_of_intervals, with_interval
from tunewise.results.report.next_steps import next_steps
from tunewise.results.schema import Comparison, Finding, ScoredRow

COLUMNS = (
    "technique",
    "score",
    "95 %",
    "nll",
    "forgot",
    "KL",
    "kept",
    "train",
    "prepared",
    "memory",
    "optimised",
    "stored",
    "on disk",
    "ms/example",
    "prompt",
)
# The terminal's columns besides name and score, in the order in which they are left out where it is too narrow.
_LEFT_OUT_FIRST = (
    *("prepared", "optimised", "stored", "prompt", "KL", "nll", "ms/example", "kept", "on disk", "memory", "train"),
)
_MEANINGS = {
    "score": "{metric}, mean over seeds, with its {interval} over seeds and test examples",
    "nll": "nats per answer token",
    "forgot": "rise of the loss in nats per token on {retention}",
    "KL": "divergence from the base there",
    "kept": "score on {probe}, which the base could do",
    "train": "{train}",
    "prepared": "tokens read before training, to choose or to prepare",
    "memory": "peak while fitting, above that of the process at its start",
    "optimised": "number of parameters that training changes",
    "stored": "number of parameters in the adaptation",
    "on disk": "size of the adaptation",
    "ms/example": "time to answer one",
    "prompt": "tokens per request",
}


def rows(result: Comparison) -> list[tuple[str, list[str]]]:
    """Return name and cells of each row, best score first and failed rows last; a failed row ends with its reason.

    The majority row is no technique: its name is empty.
    """
    scored = [(row.score.mean, row.technique, _cells(row)) for row in best_first(result)]
    if result.majority is not None:
        scored.append((result.majority.mean, "", _majority_cells(result.majority)))
        scored.sort(key=lambda line: -line[0])
    failed = [row for row in result.rows if not isinstance(row, ScoredRow)]
    return [(name, cells) for _, name, cells in scored] + [
        (row.technique, [row.label, row.status, row.reason or ""]) for row in failed
    ]


def best_first(result: Comparison) -> list[ScoredRow]:
    """Return the rows with figures, best score first."""
    return sorted(result.scored, key=lambda row: -row.score.mean)


def _cells(row: ScoredRow) -> list[str]:
    score, cost, forgot = row.score, row.cost, row.forgetting
    return [
        row.label + ("" if row.status == "ok" else " (some seeds failed)"),
        f"{score.mean:.3f}",
        f"{score.low:.3f}–{score.high:.3f}",
        f"{row.nll:.3f}",
        shown(forgot.nll_rise, "{:+.3f}") if forgot is not None else "",
        shown(forgot.kl, "{:.3f}") if forgot is not None else "",
        shown(forgot.probe, "{:.3f}") if forgot is not None else "",
        f"{cost.train_seconds:.1f}",
        count(row.training.preparing_tokens) if row.training is not None and row.training.preparing_tokens else "",
        size(cost.peak_memory_bytes),
        count(cost.optimised_parameters),
        count(cost.stored_parameters),
        size(cost.artifact_bytes),
        f"{1000 * cost.seconds_per_example:.1f}",
        f"{cost.prompt_tokens:.0f}",
    ]


def _majority_cells(row: Majority) -> list[str]:
    """Return the cells of the majority row, which has a score and nothing else."""
    cells = dict.fromkeys(COLUMNS, "")
    cells |= {"technique": f'majority (always "{show(row.label)}")', "score": f"{row.mean:.3f}"}
    return list((cells | {"95 %": f"{row.low:.3f}–{row.high:.3f}"}).values())


def shown(value: float | None, form: str) -> str:
    """Return a number as text; empty if it is not known."""
    return "" if value is None else form.format(value)


def heading(result: Comparison) -> str:
    """Describe model, task and budget in one line."""
    model, task, budget = result.model, result.task, result.budget
    length = f"{budget.tokens:,} tokens" if budget.tokens else f"{budget.steps} steps"
    if budget.epochs:
        length += f" ({budget.epochs:.3g} epoch{'s' if budget.epochs != 1 else ''})"
    if budget.minutes:
        length = f"{budget.minutes:g} minutes in total"
    searched = f", search of up to {budget.search} full trainings" if budget.search > 1 else ""
    seeds = "one seed" if budget.seeds == 1 else f"{budget.seeds} seeds"
    return (
        f"{model.short_name} ({count(model.parameters)}) on {task.name} ({task.train} training, {task.test} "
        f"test examples): {length}{searched}, {seeds} each"
    )


def notes(result: Comparison, most: int | None = None) -> list[str]:
    """Return what a reader must know besides the table: samples, truncated examples, findings, memory, padding.

    A finding with more than `most` numbers is summarised by range and mean.
    """
    task, scored, sentences = result.task, result.scored, list(result.task.notes)
    if result.budget.chosen:
        sentences.append(f"The budget was chosen: {result.budget.chosen}")
    for split, used, available in (
        ("validation", task.validation, task.available.validation),
        ("test", task.test, task.available.test),
    ):
        if available > used:
            sentences.append(f"{used} of {available} {split} examples were used.")
    truncated = max((row.training.cut for row in scored if row.training is not None), default=0)
    if truncated:
        sentences.append(
            f"{truncated} of {task.train} training examples exceed the window of {task.window} tokens: their prompts "
            "were truncated at the start, and answers longer than half of the window at the end."
        )
    truncated_prompts = max((row.test_cut for row in scored if row.test_cut is not None), default=0)
    if truncated_prompts:
        sentences.append(
            f"{truncated_prompts} of {task.test} test prompts exceed the window and were truncated at the start."
        )
    for row in scored:
        sentences += answer_notes(row)
    for row in scored:
        findings = [f"{name} {_finding_text(value, most)}" for name, value in (row.findings or {}).items()]
        sentences += [f"{row.label}: {', '.join(findings)}."] if findings else []
    sentences += [f"{row.label}: {row.memory}." for row in scored if row.memory]
    lone = [row.label for row in scored if row.cost.timed_alone]
    if lone:
        sentences.append(f"Trials ran beside one another; afterwards these were timed alone: {', '.join(lone)}.")
    if on := dict.fromkeys(row.cost.timed_on for row in scored if row.cost.timed_on):
        sentences.append(
            f"The workers had devices of several kinds; seconds were taken on {' and '.join(map(str, on))}."
        )
    packing = result.machine.packing
    if packing != "padding-free":
        sentences.append(f"Batches were padded, not packed: {packing}.")
    return sentences


def _finding_text(value: Finding, most: int | None) -> str:
    """Return a finding as text: a number, or numbers by name, with the names of equal numbers grouped."""
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else f"{value:.3g}"
    if most and len(value) > most:
        low, high, mean = min(value.values()), max(value.values()), sum(value.values()) / len(value)
        return f"{low:.4g} to {high:.4g}, {mean:.3g} on average (report.md lists each)"
    groups: dict[str, list[str]] = {}
    for name, number in value.items():
        groups.setdefault(f"{number:.4g}", []).append(name)
    return "; ".join(f"{', '.join(names)}: {number}" for number, names in groups.items())


def table(result: Comparison, *, wide: bool = False, explained: bool = True) -> RenderableType:
    """Return the rows as a table for rich; cells are plain text, so that data cannot inject markup or colours.

    Args:
        result: the comparison.
        wide: show all columns, in further tables where they do not fit.
        explained: name the columns that are left out, and explain those that are shown.
    """
    places = [place for place in columns(result) if COLUMNS[place] != "95 %"]
    decimals = decimals_of_intervals([row.score.high - row.score.low for row in result.scored])
    scored = list[tuple[float, TableRow]]()
    for row in best_first(result):
        cells, score = _cells(row), row.score
        cells[COLUMNS.index("score")] = with_interval(score.mean, score.low, score.high, decimals)
        cells[COLUMNS.index("train")] = duration(row.cost.train_seconds)
        style = "bold green" if row.technique == result.recommended else ""
        scored.append((score.mean, TableRow([cells[place] for place in places], style)))
    if (majority := result.majority) is not None:
        cells = _majority_cells(majority)
        cells[COLUMNS.index("score")] = with_interval(majority.mean, majority.low, majority.high, decimals)
        scored.append((majority.mean, TableRow([cells[place] for place in places], "dim")))
    lines = [line for _, line in sorted(scored, key=lambda pair: -pair[0])]
    failed = [
        Text(f"{row.label} {row.status}: {row.reason or ''}", style="red")
        for row in result.rows
        if not isinstance(row, ScoredRow)
    ]
    meanings = _meanings(result, interval="95 % interval", train="time of the fit")
    fitted = FittedTable(
        [_terminal_column(COLUMNS[place], meanings) for place in places], lines, wide, failed, explained
    )
    return Group(Text(heading(result), style="italic"), fitted)


def _terminal_column(name: str, meanings: Mapping[str, str]) -> Column:
    rank = len(_LEFT_OUT_FIRST) - _LEFT_OUT_FIRST.index(name) + 1 if name in _LEFT_OUT_FIRST else int(name == "forgot")
    return Column(name, rank, "words" if name == "technique" else "figure", meanings.get(name, ""))


def terminal(result: Comparison, *, wide: bool = False) -> RenderableType:
    """Return table, notes and verdict for rich; `wide` shows all columns, whatever the width of the terminal."""
    lines = [Text(note, style="dim") for note in notes(result, most=8)]
    return Group(table(result, wide=wide), *lines, Text(""), *(Text(line) for line in verdict_lines(result)))


def curve_table(rows: Sequence[Mapping[str, float]], metric: str) -> RenderableType:
    """Return a table of the points between a base and an adaptation."""
    heads = (Column("alpha", kind="words"), *(Column(name) for name in (metric, "nll", "forgot", "KL")))
    lines = [
        TableRow(
            [
                f"{row['alpha']:g}",
                f"{row['score']:.3f}",
                f"{row['nll']:.3f}",
                f"{row['nll_rise']:+.3f}",
                f"{row['kl']:.3f}",
            ]
        )
        for row in rows
    ]
    return FittedTable(heads, lines)


_WHOLE = 170  # columns of a terminal that show the whole table


def picture(result: Comparison, width: int | None = None) -> str:
    """Return the terminal's output as an SVG picture that loads nothing from elsewhere.

    Args:
        result: the comparison.
        width: columns of the terminal; default: as many as show the whole table.
    """
    console = Console(record=True, width=width or _WHOLE, file=io.StringIO(), force_terminal=True)
    console.print(terminal(result, wide=width is None))
    svg = visible(console.export_svg(title="tunewise compare"))
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # rich would fetch its font from a server


def verdict_lines(result: Comparison) -> list[str]:
    """Return the verdict as sentences."""
    verdict = result.verdict
    if verdict is None or verdict.best is None:
        return ["No verdict: no technique finished."]
    if verdict.recommended is None:
        return ["No recommendation.", *verdict.reasons]
    return [f"Recommended: {verdict.recommended}.", *verdict.reasons, *(verdict.break_even or ())]


def legend(result: Comparison) -> str:
    """Explain the columns of `report.md` and `report.html`."""
    meanings = _meanings(result, interval="interval", train="seconds")
    return (
        "; ".join(f"{name}: {meanings[name]}" for place in columns(result) if (name := COLUMNS[place]) in meanings)
        + "."
    )


def _meanings(result: Comparison, *, interval: str, train: str) -> dict[str, str]:
    """Return what the columns mean; `interval` and `train` say how the score's interval and times are shown."""
    words = {
        "metric": result.task.metric,
        "retention": result.retention.source,
        "probe": result.retention.probe,
        "interval": interval,
        "train": train,
    }
    return {name: meaning.format(**words) for name, meaning in _MEANINGS.items()}


def columns(result: Comparison) -> list[int]:
    """Return the indices of the columns to show.

    `kept` needs a probe, and `prepared` a row that read something before training.
    """
    prepared = any(row.training is not None and row.training.preparing_tokens for row in result.scored)
    hidden = {"kept"} if not result.retention.probe else set[str]()
    hidden |= set() if prepared else {"prepared"}
    return [place for place, name in enumerate(COLUMNS) if name not in hidden]


def next_lines(result: Comparison, folder: str | Path) -> list[str]:
    """Return the commands that use the recommended row, each below its purpose; they must not be folded."""
    lines = [line for step in next_steps(result, folder) for line in (f"# {step.purpose}", step.command)]
    return [f"Use {result.recommended}:", *lines] if lines else []


def markdown(result: Comparison, folder: str | Path | None = None) -> str:
    """Return the whole comparison as Markdown: `report.md`.

    Args:
        result: the comparison.
        folder: where it lies; without it, the commands that use the recommended row are left out.
    """
    lines = [f"# {inert_markdown(heading(result))}", ""]
    lines += [*(f"{inert_markdown(line)}  " for line in verdict_lines(result)), ""]
    places = columns(result)
    lines += ["| " + " | ".join(COLUMNS[index] for index in places) + " |", "|---" * len(places) + "|"]
    for _, cells in rows(result):
        padded = [*cells, *[""] * (len(COLUMNS) - len(cells))]
        lines.append("| " + " | ".join(inert_markdown(padded[index]) for index in places) + " |")
    machine = result.machine
    lines += ["", legend(result), "", *(f"- {inert_markdown(note)}" for note in notes(result)), ""]
    if folder is not None and (steps := next_steps(result, folder)):
        lines += [f"## Use {result.recommended}", "", "```sh"]
        lines += [line for step in steps for line in (f"# {step.purpose}", step.command)]
        lines += ["```", ""]
    lines += _answer_sections(result)
    lines += [
        f"Measured on {machine.device}, {machine.cores} cores, {machine.threads} threads, torch "
        f"{machine.torch}, transformers {machine.transformers}, tunewise {result.tunewise}, "
        f"{result.created}.",
        "",
    ]
    return visible("\n".join(lines))


def _answer_sections(result: Comparison) -> list[str]:
    """Return the lines of the sections on labels and on lengths of answers, as far as there is something to show."""
    scored, lines = best_first(result), list[str]()
    for tables in answer_tables(scored, result.task.labels):
        lines += [f"## Labels predicted by {inert_markdown(tables.title)}", ""]
        for cells in (tables.classes, tables.confusion):
            lines += [f"{cells.caption}.", "", *markdown_table(cells), ""]
    lengths = length_table(scored)
    if lengths is not None:
        lines += ["## Lengths of answers", "", f"{lengths.caption}.", "", *markdown_table(lengths), ""]
    return lines
