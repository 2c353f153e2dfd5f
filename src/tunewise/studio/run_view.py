"""One comparison as its folder holds it: table, verdict, charts, and two side by side; the report's own functions."""

from __future__ import annotations

from pathlib import Path

from tunewise.core.text import show
from tunewise.results.report.charts import charts
from tunewise.results.report.side_by_side import COLUMNS_BESIDE, differences, rows_beside
from tunewise.results.report.tables import COLUMNS, columns, legend, notes, rows, verdict_lines
from tunewise.results.report.tables import heading as describe
from tunewise.results.schema import Comparison
from tunewise.studio.chart_panel import ChartPanel
from tunewise.studio.parts import Head, Line, details, element, heading, paragraph, table
from tunewise.studio.runs import Run, live_curves, with_live_curves


class RunView:
    """The view of the comparison in a folder, updated in place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key: tuple[object, ...] = ()
        self._top = element("div", aria_live="polite")
        self._panel = ChartPanel()
        self._notes = element("div")

    def update(self, run: Run) -> None:
        """Show the comparison as it is now."""
        result = run.result
        curves = live_curves(run)
        key = (id(result), run.state, tuple(run.waiting), tuple((curve.label, curve.steps[-1]) for curve in curves))
        if key == self._key:
            return
        is_new = self._key[:1] != key[:1]
        self._key = key
        drawn = charts(result) if result is not None and result.scored else []
        self._panel.update(with_live_curves(drawn, curves))
        self._top.clear()
        with self._top:
            if result is not None and result.verdict is not None:
                so_far = "So far: " if run.state == "running" else ""
                for place, line in enumerate(verdict_lines(result)):
                    paragraph(line if place else so_far + line, "" if place else "lead")
            steps = {curve.technique: f"training, step {curve.steps[-1]:g}" for curve in curves}
            waiting = [] if run.state == "finished" else run.waiting
            is_running = run.state == "running"
            table(*_table(result, waiting, steps if is_running else {}, "waiting" if is_running else "not run yet"))
        if is_new:
            self._notes.clear()
            if result is not None:
                with self._notes, details("What the columns mean, and notes"):
                    for text in (describe(result), legend(result), *notes(result)):
                        paragraph(text, "small")


def _table(
    result: Comparison | None, waiting: list[str], steps: dict[str, str], otherwise: str
) -> tuple[Head, list[Line]]:
    """Return the report's table, with a line for each technique that has no row yet."""
    places = columns(result) if result is not None else list(range(3))
    lines = []
    for name, cells in rows(result) if result is not None else []:
        if len(cells) < len(COLUMNS):
            lines.append(Line([cells[0]], [cells[1]], "out", cells[2]))
            continue
        marks = []
        verdict = result.verdict if result is not None else None
        if verdict is not None and name:
            marks += ["recommended"] * (name == verdict.recommended) + ["best"] * (name == verdict.best)
            marks += ["tie"] * (name in verdict.ties)
        lines.append(Line([cells[place] for place in places], marks, "recommended" if "recommended" in marks else ""))
    lines += [Line([show(name)], [], "waiting", steps.get(name, otherwise)) for name in waiting]
    return Head("The techniques, best score first", [COLUMNS[place] for place in places]), lines


def beside_view(a: Run, b: Run) -> None:
    """Show two comparisons side by side."""
    if a.result is None or b.result is None:
        return
    heading(f"{a.name} beside {b.name}", 3)
    for sentence in differences(a.result, b.result):
        paragraph(sentence, "alert")
    paragraph(f"A: {describe(a.result)}", "small")
    paragraph(f"B: {describe(b.result)}", "small")
    lines = [Line(cells) for cells in rows_beside(a.result, b.result)]
    table(Head("Two comparisons side by side", COLUMNS_BESIDE), lines)
