"""Shows in the terminal what became of each setting of another program's configuration file."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.core.text import show
from tunewise.importing.record import Fate, Imported, Line
from tunewise.results.report.layout import Column, FittedTable, TableRow

_COLUMNS = (
    Column("line"),
    Column("setting", kind="words"),
    Column("value", kind="words"),
    Column("here", kind="words"),
    Column("remark", kind="prose"),
)
_STYLES = {Fate.TAKEN: "", Fate.SAME: "dim", Fate.LEFT: "yellow", Fate.UNKNOWN: "yellow"}
_COUNTED = {Fate.SAME: "need nothing"}


def imported_page(imported: Imported, out: Path | None) -> RenderableType:
    """Show every line of the file and of the program's defaults, then the configuration or where it was written."""
    table = FittedTable(_COLUMNS, [TableRow(_cells(line), _STYLES[line.outcome.fate]) for line in imported.lines])
    counts = ", ".join(f"{imported.count(fate)} {_COUNTED.get(fate, fate)}" for fate in Fate)
    defaults = sum(line.entry.line is None for line in imported.lines)
    title = Text(
        f"{imported.path}, for {imported.program}: {counts}; {defaults} defaults of {imported.program}", "italic"
    )
    if out is None:
        return Group(title, table, Text(""), Text(imported.to_yaml().rstrip("\n")))
    command = shlex.join(["tunewise", imported.command, "--config", str(out)])
    return Group(title, table, Text(""), Text(f"Written to {out}. Use it: {command}"))


def _cells(line: Line) -> list[str]:
    entry = line.entry
    place = "-" if entry.line is None else str(entry.line)
    value = entry.shown if entry.line is not None else f"default {entry.shown or 'none'}"
    return [place, show(entry.key, 80), value, line.became or str(line.outcome.fate), line.outcome.remark]
