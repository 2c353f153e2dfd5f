"""The report's charts on the page: the same descriptions and figures, drawn by the same library, updated in place."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nicegui import ui

from tunewise.results.report.charts import Chart
from tunewise.results.report.plotly_charts import drawn
from tunewise.studio.parts import element

_CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage"]], "responsive": True}


class ChartPanel:
    """Charts that are redrawn where what they show has changed."""

    def __init__(self) -> None:
        self._box = element("div", classes="charts")
        self._shown: dict[str, _ShownChart] = {}

    def update(self, charts: Sequence[Chart]) -> None:
        """Draw the charts as they are now."""
        keys = [chart.key for chart in charts]
        if keys != list(self._shown):
            self._box.clear()
            with self._box:
                self._shown = {chart.key: _ShownChart(chart) for chart in charts}
        for chart in charts:
            self._shown[chart.key].update(chart)


class _ShownChart:
    """One chart: its title, the choice of its view, the drawing and its caption."""

    def __init__(self, chart: Chart) -> None:
        self._views: list[dict[str, object]] = []
        self._written = ""
        self._place = 0
        with element("figure") as figure:
            figure.props["data-chart"] = chart.key
            element("h3", chart.title)
            self._choice = ui.select({}, label="against", on_change=self._choose).props("dense outlined")
            self._choice.set_visibility(False)
            with element("div", role="img", aria_label=f"{chart.title}. {chart.caption}"):
                self._plot = ui.plotly({"data": [], "layout": {}, "config": _CONFIG}).classes("plot")
            self._caption = element("figcaption", chart.caption, "small")

    def update(self, chart: Chart) -> None:
        """Draw the chart if it has changed."""
        views = drawn([chart])[chart.key]
        written = json.dumps(views)
        if written == self._written:
            return
        self._views, self._written = views, written
        self._place = min(self._place, len(views) - 1)
        names = {place: view.name for place, view in enumerate(chart.views)}
        self._choice.set_options(names, value=self._place)
        self._choice.set_visibility(len(names) > 1)
        self._draw()

    def _choose(self) -> None:
        value = self._choice.value
        if isinstance(value, int) and value != self._place and value < len(self._views):
            self._place = value
            self._draw()

    def _draw(self) -> None:
        view = self._views[self._place]
        self._plot.update_figure({"data": view["data"], "layout": view["layout"], "config": _CONFIG})
