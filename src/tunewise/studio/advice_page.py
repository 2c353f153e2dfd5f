"""The second step: which technique to choose, why, what would change it, and what each needs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import psutil
from nicegui import ui

from tunewise.core.errors import SettingError
from tunewise.core.json_record import JsonObject
from tunewise.core.units import duration, size
from tunewise.studio import commands
from tunewise.studio.job_watch import JobWatch
from tunewise.studio.parts import Head, Line, button, command, controls, element, heading, number, paragraph, table
from tunewise.studio.workspace import Workspace

_RANKING = Head(
    "The techniques in the order in which they are advised",
    ("technique", "gain", "95 %", "best with", "on disk", "request", "why"),
    frozenset({0, 6}),
)
_PLAN = Head(
    "What each technique needs", ("technique", "verdict", "memory", "share", "time", "on disk"), frozenset({0, 1})
)


class AdvicePage:
    """The page of the advice."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        heading("Advice and plan", 1)
        paragraph("What you need besides a good score. Nothing is trained here.", "small")
        with controls("Needs"):
            self._text("Memory of the device, e.g. 24GB", "memory")
            self._text("Longest training, e.g. 2h", "time")
            self._text("Largest adaptation, e.g. 50MB", "artifact")
            self._number("Requests a day", "requests_per_day", float)
            self._number("Tenants of one model", "tenants", int)
            self._text("Documents to search (folder or index)", "knowledge")
        with controls("Conditions"):
            self._box("Must not forget", "retain")
            self._box("The base's weights stay", "forget_nothing")
            self._box("Can be merged", "mergeable")
            self._box("Documents change", "documents_change")
        with controls("Advise"):
            button("Advise", lambda: self._watch.start(self._words), main=True)
        self._watch = JobWatch(workspace, "advise", self._render)
        self._command = element("div")
        self._show_commands()
        with suppress(SettingError):
            self._watch.watch(workspace.latest("advise", self._words()))

    def _words(self) -> list[str]:
        return commands.advise(self._workspace.choices)

    def _text(self, label: str, name: str) -> None:
        value = getattr(self._workspace.choices, name)
        ui.input(label, value=value, on_change=lambda event: self._choose(name, (event.value or "").strip())).props(
            "outlined dense"
        )

    def _number(self, label: str, name: str, kind: type[int] | type[float]) -> None:
        value = getattr(self._workspace.choices, name)
        number(label, value, 1, kind, lambda given: self._choose(name, kind(given)))

    def _box(self, label: str, name: str) -> None:
        value = getattr(self._workspace.choices, name)
        ui.checkbox(label, value=value, on_change=lambda event: self._choose(name, bool(event.value)))

    def _choose(self, name: str, value: object) -> None:
        self._workspace.choose(**{name: value})
        self._show_commands()

    def _show_commands(self) -> None:
        self._command.clear()
        with self._command, suppress(SettingError):
            self._watch.mark_stale(self._words())
            command(self._words(), "The advice on the command line")
            command(commands.plan(self._workspace.choices), "The plan of the chosen techniques")

    def _render(self, result: JsonObject) -> None:
        heading("What is advised")
        for place, sentence in enumerate(result["summary"]):
            paragraph(sentence["text"], "lead" if place == 0 else "")
        with controls("What to compare"):
            button("Compare the best four and the base", lambda: self._take(result["rows"], 4), main=True)
            button("Compare all that could win", self._take_advised)
        heading("Ranking")
        table(_RANKING, [_ranked(row) for row in result["rows"]])
        for source in result["sources"]:
            paragraph(source, "small")
        paragraph(
            "Gain: the expected share of what the best technique adds to the base's score, with its interval.", "small"
        )
        heading("What would change it")
        with element("ul", classes="changes"):
            for change in result["changes"]:
                element("li", change["sentence"]["text"])
        heading("Memory and time")
        self._plan(result)

    def _plan(self, result: JsonObject) -> None:
        limit = result["request"]["memory"]
        here = psutil.virtual_memory()
        if limit is None:
            limit = float(here.total)
            paragraph(f"This machine has {size(here.total)} of memory, {size(here.available)} of it free.")
        else:
            paragraph(f"The device has {size(limit)} of memory.")
        table(_PLAN, [_planned(row, limit) for row in result["plan"]])

    def _take(self, rows: Sequence[JsonObject], count: int) -> None:
        best = [row["technique"] for row in rows if row["verdict"] != "out" and row["technique"] != "base"][:count]
        self._workspace.choose(techniques=("base", *best), advised=False)
        ui.navigate.to("/compare")

    def _take_advised(self) -> None:
        self._workspace.choose(advised=True)
        ui.navigate.to("/compare")


def _ranked(row: JsonObject) -> Line:
    ruled_out = row["verdict"] == "out"
    if ruled_out:
        return Line([row["technique"]], ["ruled out"], "out", row["reason"])
    gain, tokens = row["gain"], row["prompt_tokens"]
    cells = [
        row["technique"],
        f"{gain['mean']:.2f}",
        f"{gain['low']:.2f}–{gain['high']:.2f}",
        f"{100 * row['chance']:.0f} %",
        size(row["artifact_bytes"]) if row["artifact_bytes"] is not None else "",
        f"{tokens:.0f} tokens" if tokens is not None else "",
        row["reason"],
    ]
    marks = ["advised"] if row["verdict"] == "advised" else []
    return Line(cells, marks, "recommended" if marks else "")


def _planned(row: JsonObject, limit: float) -> Line:
    if row["verdict"] == "not possible":
        return Line([row["technique"]], [], "out", row["reason"] or "")
    peak = row["memory"]["peak"] if row["memory"] else None
    seconds = row["time"]["seconds"] if row["time"] else None
    verdict = row["verdict"] + "".join(f" {name} {value}" for name, value in (row["with"] or {}).items())
    cells = [
        row["technique"],
        verdict if not row["reason"] else f"{verdict}: {row['reason']}",
        size(peak) if peak is not None else "",
        f"{100 * peak / limit:.1f} %" if peak is not None else "",
        duration(seconds) if seconds is not None else "",
        size(row["artifact_bytes"]) if row["artifact_bytes"] is not None else "",
    ]
    return Line(cells, style="" if row["verdict"].startswith("fits") else "bad")
