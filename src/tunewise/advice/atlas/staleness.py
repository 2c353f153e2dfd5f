"""Which rows of a record are stale: what the technique does by default has changed since they were recorded.

Stale rows still count in advice, with a larger error, and are marked wherever they are shown. They are made anew by

    python benchmarks/atlas.py --stale
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from tunewise.advice.atlas.schema import Record, Row
from tunewise.contract.technique import Technique

REMEDY = "python benchmarks/atlas.py --stale"
# Changes that the recorded settings do not show, in records that were made before the day.
_REVISED_ON = "2026-11-28"
_REVISED = {
    "icl": "it chooses its examples within the budget since",
    "rag": "it chooses its passages within the budget since",
    "full": "its default learning rate is another one since",
    "lora": "its default learning rate is another one since",
    "qlora": "it quantises every linear since",
    "adalora": "it takes importance as its authors' code does since",
    "prefix_tuning": "its default learning rate is a third of what it was",
    "fish_mask": "its default learning rate is a third of what it was",
    "mpt": "it trains on its source tasks in the one training loop since",
}


def stale_rows(record: Record) -> dict[str, str]:
    """Return the techniques whose rows are stale, each with what has changed, in the order of the record."""
    from tunewise.techniques.registry import all_techniques

    known, reasons = all_techniques(), dict[str, str]()
    for name, row in record.scored.items():
        technique = known.get(name)
        if technique is None:
            continue
        revised = _REVISED.get(name) if record.provenance.created < _REVISED_ON else None
        reason = _other_settings(row, technique) or revised
        if reason is not None:
            reasons[name] = reason
    return reasons


def _other_settings(row: Row, technique: type[Technique]) -> str | None:
    """Say which defaults differ from the recorded ones; what a search may have chosen or a place may name does not."""
    defaults = {
        item.name: (_plain(item.default), [_plain(value) for value in item.metadata.get("search", ())])
        for item in fields(technique)
        if item.name != "learning_rate"
        and item.default not in (MISSING, (), "")  # what is empty is given where it matters
    }
    new = [name for name in defaults if name not in row.settings]
    if new:
        return f"it has the setting {new[0]} since"
    for name, (default, searched) in defaults.items():
        if row.settings[name] != default and row.settings[name] not in searched:
            return f"{name} is {_shown(default)} by default since, and was {_shown(row.settings[name])}"
    return None


def _plain(value: Any) -> Any:
    """Return a setting as JSON holds it."""
    return list(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    return "chosen" if value is None else str(value)


def remarks(record: Record) -> list[str]:
    """Say in sentences which rows are stale, and what makes them anew."""
    stale: Mapping[str, str] = stale_rows(record)
    if not stale:
        return []
    rows = "; ".join(f"{name}: {reason}" for name, reason in stale.items())
    return [f"Stale, recorded before defaults changed ({rows}). Made anew by: {REMEDY}"]
