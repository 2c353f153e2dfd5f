"""Shows advice and the atlas in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.advice.advise import Advice, AdviceRow
from tunewise.advice.atlas.schema import Record
from tunewise.advice.atlas.staleness import remarks, stale_rows
from tunewise.core.text import model_name
from tunewise.core.units import count, duration, size
from tunewise.results.report.layout import Column, FittedTable, TableRow, decimals_of_intervals, with_interval


def render_advice(advice: Advice, *, wide: bool = False) -> RenderableType:
    """Show what is advised, the ranking with a reason for each candidate, and what would change it.

    `wide` shows all columns of the ranking, whatever the width of the terminal.
    """
    parts: list[RenderableType] = [Text(f"{advice.task} on {model_name(advice.model)}", style="bold")]
    parts += [Text(sentence.text) for sentence in advice.summary]
    reasons, sources = advice.reasons()
    parts += [
        Text(),
        _ranking(advice.rows, reasons, wide),
        *(Text(source, style="dim") for source in sources),
        Text("\nWhat would change the answer", style="bold"),
    ]
    parts += [Text(f"  {change.sentence.text}") for change in advice.changes]
    evidence = advice.evidence
    parts.append(
        Text(
            f"\nDrawn from {len(evidence.records)} recorded and {len(evidence.comparisons)} published comparisons; "
            "--json links every figure to its source.",
            style="dim",
        )
    )
    return Group(*parts)


def _ranking(rows: Sequence[AdviceRow], reasons: Sequence[str], wide: bool) -> RenderableType:
    table_rows = []
    for row, why in zip(rows, reasons, strict=True):
        forecast, ruled_out = row.forecast, row.verdict == "out"
        plan = forecast.plan
        figures = [
            with_interval(forecast.gain, forecast.low, forecast.high, form=".2f"),
            duration(plan.train_seconds) if plan is not None and plan.train_seconds is not None else "",
            size(plan.peak) if plan is not None and plan.peak is not None else "",
            size(forecast.artifact_bytes) if forecast.artifact_bytes is not None else "",
            f"{forecast.prompt_tokens:.0f}" if forecast.prompt_tokens is not None else "",
        ]
        cells = [
            "" if ruled_out else str(row.rank),
            forecast.technique,
            *(["out", "", "", "", ""] if ruled_out else figures),
            why,
        ]
        style = "green" if row.verdict == "advised" else "dim" if ruled_out else ""
        table_rows.append(TableRow(cells, style))
    planned = {"time", "memory", "artifact", "request"}
    places = [
        place
        for place, column in enumerate(_RANKING)
        if column.name not in planned or any(row.cells[place] for row in table_rows)
    ]
    chosen = [TableRow([row.cells[place] for place in places], row.style) for row in table_rows]
    return FittedTable([_RANKING[place] for place in places], chosen, wide)


_RANKING = (
    Column(""),
    Column("technique", kind="words"),
    Column(
        "gain", meaning="expected share of what the best technique adds to the base's score, with its 95 % interval"
    ),
    Column("time", rank=1, meaning="of training, as planned"),
    Column("memory", rank=2, meaning="peak in training, as planned"),
    Column("artifact", rank=3, meaning="size of the adaptation"),
    Column("request", rank=4, meaning="tokens per request"),
    Column("why", kind="prose"),
)


def atlas_table(records: Iterable[Record], own: Path, *, wide: bool = False) -> RenderableType:
    """Show the records, one per line; `wide` shows all columns, whatever the width of the terminal."""
    rows = []
    for record in records:
        best, score = record.best
        rows.append(
            TableRow(
                [
                    record.name,
                    count(record.model.parameters),
                    record.task.kind,
                    f"{record.task.train:,}",
                    str(record.budget.seeds),
                    f"{record.base:.3f}",
                    f"{score:.3f}",
                    best,
                    str(len(stale_rows(record)) or ""),
                ]
            )
        )
    return Group(FittedTable(_RECORDS, rows, wide), Text(f"your own records: {own}", style="dim"))


_RECORDS = (
    Column("record", kind="words"),
    Column("parameters", rank=2),
    Column("kind", rank=3, kind="words"),
    Column("train", rank=4, meaning="training examples"),
    Column("seeds", rank=5),
    Column("base", rank=1, meaning="its score"),
    Column("best", meaning="the best row's score"),
    Column("technique", kind="words", meaning="of the best row"),
    Column("stale", rank=4, meaning="rows recorded before the technique's defaults changed"),
)


def record_page(record: Record, *, wide: bool = False) -> RenderableType:
    """Show one record in full; `wide` shows all columns of its rows, whatever the width of the terminal."""
    task, provenance = record.task, record.provenance
    parts: list[RenderableType] = [
        Text(record.name, style="bold"),
        Text(
            f"{task.name} ({task.kind}, {task.metric}) on {model_name(record.model.name)}, "
            f"{count(record.model.parameters)} parameters"
        ),
        Text(
            f"{record.budget.steps} steps of {record.budget.rows}, seeds {record.budget.seeds}, search "
            f"{record.budget.search}; tunewise {provenance.tunewise}, torch {provenance.torch}, {provenance.device}, "
            f"{provenance.created}"
        ),
        Text(provenance.command, style="dim"),
        *(Text(remark, style="yellow") for remark in [*(provenance.remarks or ()), *remarks(record)]),
        Text(
            ", ".join(f"{name} {value:.4g}" for name, value in record.features.to_json().items() if value is not None)
        ),
    ]
    intervals = [row.score.high - row.score.low for row in record.rows if row.score is not None]
    decimals = decimals_of_intervals(intervals)
    rows, unscored = [], []
    for row in record.rows:
        if row.score is None or row.cost is None or row.nll is None:
            unscored.append(Text(f"{row.technique} {row.status}: {row.reason}"))
            continue
        rows.append(
            TableRow(
                [
                    row.technique,
                    with_interval(row.score.mean, row.score.low, row.score.high, decimals),
                    f"{record.gain(row.technique):.2f}",
                    f"{row.nll:.3f}",
                    f"{row.forgetting.nll_rise:+.3f}" if row.forgetting is not None else "",
                    duration(row.cost.seconds),
                    size(row.cost.artifact_bytes),
                    f"{row.learning_rate:.3g}" if row.learning_rate is not None else "",
                ]
            )
        )
    return Group(*parts, FittedTable(_ROWS_OF_RECORD, rows, wide, unscored))


_ROWS_OF_RECORD = (
    Column("technique", kind="words"),
    Column("score", meaning="with its 95 % interval"),
    Column("gain", rank=1, meaning="share of what the best technique adds to the base's score"),
    Column("nll", rank=5, meaning="nats per answer token"),
    Column("forgot", rank=2, meaning="rise of the loss on retention text, in nats per token"),
    Column("time", rank=3),
    Column("artifact", rank=4, meaning="size of the adaptation"),
    Column("learning rate", rank=6),
)
