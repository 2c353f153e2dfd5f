"""Shows the techniques in a terminal: all as a tree, one in full, and PEFT's methods as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from tunewise.contract.settings import default_of
from tunewise.contract.technique import FAMILIES, Technique
from tunewise.core.units import count
from tunewise.results.report.layout import Column, FittedTable, TableRow
from tunewise.techniques.registry import all_techniques, make


def tree() -> Tree:
    """Return a tree of the families and their techniques, one line per technique."""
    root = Tree("fine-tuning", guide_style="dim")
    for family in FAMILIES:
        members = [cls for cls in all_techniques().values() if cls.family == family]
        if members:
            branch = root.add(Text(family, style="bold"))
            for cls in members:
                branch.add(Text.assemble((f"{cls.name:<14}", "green"), f" {cls.summary}"))
    return root


def facts(name: str | None = None) -> Any:
    """Return the facts of one technique, or a list of those of all, as JSON holds them."""
    if name is None or "+" in name:
        return [facts(part) for part in (name.split("+") if name else all_techniques())]
    cls = type(make(name))
    cite = cls.citation
    return {
        "technique": cls.name,
        "family": cls.family,
        "summary": cls.summary,
        "equation": cls.equation,
        "citation": vars(cite) if cite else None,
        "differs": cls.differs or None,
        "needs": cls.needs or None,
        "sides": sorted(cls.sides),
        "trains": cls.trains,
        "mergeable": cls.mergeable,
        "identity_at_start": cls.identity_at_start,
        "learning_rate": {
            "at_width_4096": cls.reference_rate,
            "width_exponent": cls.width_exponent,
            "search_grid": list(cls.search_grid),
        }
        if cls.trains
        else None,
        "settings": [
            {
                "name": item.name,
                "default": default_of(item),
                **{key: value for key, value in item.metadata.items() if value not in (None, ())},
            }
            for item in fields(cls)
        ],
    }


def render_technique(name: str) -> RenderableType:
    """Show one technique: its summary, equation, citation, facts and settings."""
    recipe = make(name)
    if "+" in name:
        return Group(*(view for part in name.split("+") for view in (render_technique(part), Text(""))))
    cls: type[Technique] = type(recipe)
    lines = [Text(f"{cls.name}: {cls.summary}", style="bold"), Text(f"  {cls.equation}")]
    if cls.citation:
        cite = cls.citation
        lines.append(Text(f'  {cite.authors} {cite.year}, "{cite.title}", {cite.equation}\n  {cite.url}', style="dim"))
    traits = {
        "family": cls.family,
        "differs from the paper": cls.differs or "no, or only with some models and settings",
        "needs": cls.needs or "nothing special",
        "merges into the base": "yes" if cls.mergeable else "no",
        "equals the base before training": "yes" if cls.identity_at_start else "no",
        "cannot join techniques that change": ", ".join(sorted(cls.sides)) or "nothing",
    }
    if cls.trains:
        scaled = f" x (4096 / width)^{cls.width_exponent:g}" if cls.width_exponent else ""
        grid = ", ".join(f"{value:.3g}" for value in cls.search_grid)
        traits["default learning rate"] = f"{cls.reference_rate:g}{scaled}; a search multiplies it by {grid}"
    lines += [Text(f"  {key}: {value}") for key, value in traits.items()]
    rows = [
        TableRow([item.name, _format_value(default_of(item)), _format_range(item), item.metadata["help"]])
        for item in fields(cls)
    ]
    return Group(*lines, Text(""), FittedTable(_SETTINGS, rows)) if rows else Group(*lines)


_SETTINGS = (
    Column("setting", kind="words"),
    Column("default", kind="words"),
    Column("range", kind="prose"),
    Column("meaning", kind="prose"),
)
_PEFT_METHODS = (
    Column("technique", kind="words"),
    Column("parameters"),
    Column("trains", kind="words"),
    Column("merges", kind="words"),
    Column("reason", kind="prose"),
)


def peft_table(rows: Sequence[Mapping[str, Any]], model: str) -> RenderableType:
    """Show as a table which of PEFT's methods train and merge on a model."""
    table_rows = []
    for row in rows:
        works = ["yes" if row[key] else "no" for key in ("trains", "merges")]
        number = count(row["parameters"]) if row["parameters"] else "-"
        table_rows.append(TableRow([row["technique"], number, *works, row["reason"] or ""]))
    title = Text(f"PEFT's methods on {model}", style="italic")
    return Group(title, FittedTable(_PEFT_METHODS, table_rows))


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    return "-" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _format_range(item: Any) -> str:
    low, high, choices, tried = (item.metadata[key] for key in ("low", "high", "choices", "search"))
    limits = ", ".join(choices) if choices else f"{low:g} to {high:g}" if low is not None else ""
    return f"{limits}; a search tries {', '.join(map(_format_value, tried))}" if tried else limits
