"""Shows a comparison as tables: for the terminal and as Markdown, with the same rows in the same order."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunewise.core.units import count, size
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
    "memory",
    "optimised",
    "stored",
    "on disk",
    "ms/example",
    "prompt",
)
_LEGEND = (
    "score: {metric}, mean over seeds, with its interval over seeds and test examples; nll: nats per answer token; "
    "forgot: rise of the loss in nats per token on {retention}; KL: divergence from the base there; "
    "{kept}train: seconds; memory: peak while fitting, above that of the process at its start; "
    "optimised, stored: number of parameters; prompt: tokens per request."
)


def rows(result: Comparison) -> list[tuple[str, list[str]]]:
    """Return name and cells of each row, best score first and failed rows last; a failed row ends with its reason."""
    scored = best_first(result)
    failed = [row for row in result.rows if not isinstance(row, ScoredRow)]
    return [(row.technique, _cells(row)) for row in scored] + [
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
        size(cost.peak_memory_bytes),
        count(cost.optimised_parameters),
        count(cost.stored_parameters),
        size(cost.artifact_bytes),
        f"{1000 * cost.seconds_per_example:.1f}",
        f"{cost.prompt_tokens:.0f}",
    ]


def shown(value: float | None, form: str) -> str:
    """Return a number as text; empty if it is not known."""
    return "" if value is None else form.format(value)


def heading(result: Comparison) -> str:
    """Describe model, task and budget in one line."""
    model, task, budget = result.model, result.task, result.budget
    length = f"{budget.tokens:,} tokens" if budget.tokens else f"{budget.steps} steps"
    if budget.minutes:
        length = f"{budget.minutes:g} minutes in total"
    searched = f", search of up to {budget.search} full trainings" if budget.search > 1 else ""
    return (
        f"{model.name} ({count(model.parameters)}) on {task.name} ({task.train} training, {task.test} "
        f"test examples): {length}{searched}, {budget.seeds} seed(s) each"
    )


def notes(result: Comparison, most: int | None = None) -> list[str]:
    """Return what a reader must know besides the table: samples, truncated examples, findings, memory, padding.

    A finding with more than `most` numbers is summarised by range and mean.
    """
    task, scored, sentences = result.task, result.scored, list(result.task.notes)
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
        findings = [f"{name} {_finding_text(value, most)}" for name, value in (row.findings or {}).items()]
        sentences += [f"{row.label}: {', '.join(findings)}."] if findings else []
    sentences += [f"{row.label}: {row.memory}." for row in scored if row.memory]
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


def table(result: Comparison) -> RenderableType:
    """Return the rows as a rich table; cells are plain text, so that data cannot inject markup or colours."""
    grid = Table(title=Text(heading(result)), title_justify="left", box=None, pad_edge=False, header_style="bold")
    places = columns(result)
    for index in places:
        grid.add_column(COLUMNS[index], justify="left" if index == 0 else "right", no_wrap=index > 0)
    failed = []
    for name, cells in rows(result):
        if len(cells) < len(COLUMNS):
            failed.append(Text(f"{cells[0]} {cells[1]}: {cells[2]}", style="red"))
            continue
        style = "bold green" if name == result.recommended else ""
        grid.add_row(*(Text(cells[index], style=style) for index in places))
    return Group(grid, *failed)


def terminal(result: Comparison) -> RenderableType:
    """Return table, notes and verdict for rich."""
    lines = [Text(note, style="dim") for note in [legend(result), *notes(result, most=8)]]
    return Group(table(result), *lines, Text(""), *(Text(line) for line in verdict_lines(result)))


def curve_table(rows: Sequence[Mapping[str, float]], metric: str) -> Table:
    """Return a table of the points between a base and an adaptation."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("alpha", metric, "nll", "forgot", "KL"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = (f"{row['score']:.3f}", f"{row['nll']:.3f}", f"{row['nll_rise']:+.3f}", f"{row['kl']:.3f}")
        table.add_row(f"{row['alpha']:g}", *figures)
    return table


def picture(result: Comparison) -> str:
    """Return the terminal's output as an SVG picture that loads nothing from elsewhere."""
    console = Console(record=True, width=150, file=io.StringIO(), force_terminal=True)
    console.print(terminal(result))
    svg = console.export_svg(title="tunewise compare")
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
    """Explain the columns."""
    probe = result.retention.probe
    kept = f"kept: score on {probe}, which the base could do; " if probe else ""
    return _LEGEND.format(metric=result.task.metric, retention=result.retention.source, kept=kept)


def columns(result: Comparison) -> list[int]:
    """Return the indices of the columns to show; `kept` needs a probe."""
    return [place for place, name in enumerate(COLUMNS) if name != "kept" or result.retention.probe]


def markdown(result: Comparison) -> str:
    """Return the whole comparison as Markdown: `report.md`."""
    lines = [f"# {heading(result)}", "", *(f"{line}  " for line in verdict_lines(result)), ""]
    places = columns(result)
    lines += ["| " + " | ".join(COLUMNS[index] for index in places) + " |", "|---" * len(places) + "|"]
    for _, cells in rows(result):
        padded = [*cells, *[""] * (len(COLUMNS) - len(cells))]
        lines.append("| " + " | ".join(padded[index].replace("|", "\\|") for index in places) + " |")
    machine = result.machine
    lines += ["", legend(result), "", *(f"- {note}" for note in notes(result)), ""]
    lines += [
        f"Measured on {machine.device}, {machine.cores} cores, {machine.threads} threads, torch "
        f"{machine.torch}, transformers {machine.transformers}, tunewise {result.tunewise}, "
        f"{result.created}.",
        "",
    ]
    return "\n".join(lines)
