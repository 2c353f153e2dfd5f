"""Shows advice and the atlas in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunewise.advice.advise import Advice, AdviceRow
from tunewise.advice.atlas.schema import Record
from tunewise.core.units import count, size


def render_advice(advice: Advice) -> RenderableType:
    """Show what is advised, the ranking with a reason for each candidate, and what would change it."""
    parts: list[RenderableType] = [Text(f"{advice.task} on {advice.model}", style="bold")]
    parts += [Text(sentence.text) for sentence in advice.summary]
    parts += [Text(), _ranking(advice.rows), Text("\nWhat would change the answer", style="bold")]
    parts += [Text(f"  {change.sentence.text}") for change in advice.changes]
    evidence = advice.evidence
    parts.append(
        Text(
            f"\nDrawn from {len(evidence.records)} recorded comparisons and {len(evidence.tables)} published tables; "
            "--json links every figure to its source.",
            style="dim",
        )
    )
    return Group(*parts)


def _ranking(rows: Iterable[AdviceRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "technique", "gain", "95 %", "request", "artifact", "why"):
        table.add_column(name, justify="left" if name in ("technique", "why") else "right")
    for row in rows:
        forecast, ruled_out = row.forecast, row.verdict == "out"
        # The first reason repeats the cells of the gain, unless it says why the technique is ruled out.
        reasons = row.reasons if ruled_out else row.reasons[1:3]
        cells = [
            "" if ruled_out else str(row.rank),
            forecast.technique,
            "out" if ruled_out else f"{forecast.gain:.2f}",
            "" if ruled_out else f"{forecast.low:.2f} to {forecast.high:.2f}",
            "" if ruled_out else f"{forecast.prompt_tokens:.0f}",
            "" if ruled_out else size(forecast.artifact_bytes),
            " ".join(sentence.text for sentence in reasons),
        ]
        style = "green" if row.verdict == "advised" else "dim" if ruled_out else ""
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def atlas_table(records: Iterable[Record], own: Path) -> RenderableType:
    """Show the records, one per line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("record", "parameters", "kind", "train", "seeds", "base", "best", "technique"):
        table.add_column(name, justify="left" if name in ("record", "kind", "technique") else "right")
    for record in records:
        best, score = record.best
        cells = (
            record.name,
            count(record.model.parameters),
            record.task.kind,
            f"{record.task.train:,}",
            str(record.budget.seeds),
            f"{record.base:.3f}",
            f"{score:.3f}",
            best,
        )
        table.add_row(*(Text(cell) for cell in cells))
    return Group(table, Text(f"your own records: {own}", style="dim"))


def record_page(record: Record) -> RenderableType:
    """Show one record in full."""
    task, provenance = record.task, record.provenance
    parts: list[RenderableType] = [
        Text(record.name, style="bold"),
        Text(
            f"{task.name} ({task.kind}, {task.metric}) on {record.model.name}, "
            f"{count(record.model.parameters)} parameters"
        ),
        Text(
            f"{record.budget.steps} steps of {record.budget.rows}, seeds {record.budget.seeds}, search "
            f"{record.budget.search}; tunewise {provenance.tunewise}, torch {provenance.torch}, {provenance.device}, "
            f"{provenance.created}"
        ),
        Text(provenance.command, style="dim"),
        Text(
            ", ".join(f"{name} {value:.4g}" for name, value in record.features.to_json().items() if value is not None)
        ),
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("technique", "score", "95 %", "gain", "nll", "forgot", "seconds", "artifact", "learning rate"):
        table.add_column(name, justify="left" if name == "technique" else "right")
    for row in record.rows:
        if row.score is None or row.cost is None or row.nll is None:
            table.add_row(row.technique, Text(f"{row.status}: {row.reason}"))
            continue
        table.add_row(
            row.technique,
            f"{row.score.mean:.3f}",
            f"{row.score.low:.3f} to {row.score.high:.3f}",
            f"{record.gain(row.technique):.2f}",
            f"{row.nll:.3f}",
            f"{row.forgetting.nll_rise:+.3f}" if row.forgetting is not None else "",
            f"{row.cost.seconds:.0f}",
            size(row.cost.artifact_bytes),
            f"{row.learning_rate:.3g}" if row.learning_rate is not None else "",
        )
    return Group(*parts, table)
