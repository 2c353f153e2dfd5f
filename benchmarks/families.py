"""Writes the tables of docs/families.md from records of the atlas.

    python benchmarks/families.py

Each table stands between two comments that name its record: `<!-- record NAME -->` and `<!-- end -->`. Where a record
`NAME.seeds` is there too, its rows have the score over all of their seeds.
"""

from __future__ import annotations

import re
from pathlib import Path

from tunewise.advice.atlas.records import shipped
from tunewise.advice.atlas.schema import Record, Row
from tunewise.core.units import count, size
from tunewise.techniques.registry import make

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
_TABLE = re.compile(r"(<!-- record (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEADS = "technique", "family", "{}", "95 %", "seeds", "loss", "forgot", "optimised", "stored", "memory", "prompt"


def table(record: Record, seeds: Record | None) -> str:
    """Return the table of a record, the best score first."""
    more = seeds.scored if seeds is not None else {}
    rows = sorted((more.get(row.technique, row) for row in record.rows), key=_order)
    heads = " | ".join(_HEADS).format(record.task.metric)
    return "\n".join([f"| {heads} |", "|" + "---|" * len(_HEADS), *map(_line, rows)]) + "\n"


def _order(row: Row) -> tuple[float, str]:
    return (-row.score.mean if row.score is not None else 1.0, row.technique)


def _line(row: Row) -> str:
    name = f"[`{row.technique}`](techniques/{row.technique}.md)"
    family = make(row.technique).family
    if row.score is None or row.cost is None or row.nll is None:
        return f"| {name} | {family} | {row.status}: {row.reason} |" + " |" * (len(_HEADS) - 3)
    forgot = "" if row.forgetting is None or row.forgetting.nll_rise is None else f"{row.forgetting.nll_rise:+.2f}"
    cells = [
        *(name, family, f"{row.score.mean:.3f}", f"{row.score.low:.3f}–{row.score.high:.3f}"),
        *(str(len(row.score.per_seed)), f"{row.nll:.3f}", forgot, count(row.cost.optimised_parameters or 0)),
        *(size(row.cost.artifact_bytes or 0), size(row.cost.peak_memory_bytes or 0)),
        f"{row.cost.prompt_tokens or 0:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def written(page: str) -> str:
    """Return the page with the tables of its records."""
    records = shipped()
    return _TABLE.sub(
        lambda found: found[1] + table(records[found[2]], records.get(f"{found[2]}.seeds")) + found[3], page
    )


def main() -> None:
    """Write the page's tables anew."""
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
