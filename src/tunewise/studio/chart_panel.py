"""The report's charts on the page: the same descriptions and figures, drawn by the same library, updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nicegui import run, ui

from tunewise.core.json_record import JsonObject
from tunewise.results.report.charts import Chart
from tunewise.results.report.plotly_charts import drawn
from tunewise.studio.parts import element

# No buttons: the library compares lists of them by identity, and would begin its drawing again without end.
_CONFIG = {"displaylogo": False, "displayModeBar": False}
_EVENT = "narrow_page"
# Tells whether the page is that of a phone, where labels stand elsewhere: at once, and when that changes.
_TELL = f"""
if (!window.narrowPage) {{
  window.narrowPage = matchMedia('(max-width: 600px)');
  window.narrowPage.addEventListener('change', () => emitEvent('{_EVENT}', window.narrowPage.matches));
}}
emitEvent('{_EVENT}', window.narrowPage.matches);
"""


_drawings: dict[str, list[JsonObject]] = {}  # the figures of charts that were drawn last, by their description
_MOST = 120


def _known(described: str) -> list[JsonObject] | None:
    """Return the figures of a chart if it was drawn lately."""
    views = _drawings.pop(described, None)
    return None if views is None else _kept(described, views)


def _kept(described: str, views: list[JsonObject]) -> list[JsonObject]:
    """Keep the figures of a chart as the ones that were drawn last."""
    _drawings[described] = views
    while len(_drawings) > _MOST:
        del _drawings[next(iter(_drawings))]
    return views


class ChartPanel:
    """Charts that are redrawn where what they show has changed."""

    def __init__(self) -> None:
        self._box = element("div", classes="charts")
        self._shown: dict[str, _ShownChart] = {}
        self._is_narrow = False
        ui.on(_EVENT, lambda event: self._fit(bool(event.args)))
        ui.run_javascript(_TELL)

    def update(self, charts: Sequence[Chart]) -> None:
        """Draw the charts as they are now."""
        keys = [chart.key for chart in charts]
        if keys != list(self._shown):
            self._box.clear()
            with self._box:
                self._shown = {chart.key: _ShownChart(chart) for chart in charts}
        for chart in charts:
            self._shown[chart.key].update(chart, self._is_narrow)

    def _fit(self, is_narrow: bool) -> None:
        if is_narrow != self._is_narrow and not self._box.is_deleted:
            self._is_narrow = is_narrow
            for chart in self._shown.values():
                chart.fit(is_narrow)


class _ShownChart:
    """One chart: its title, the choice of its view, the drawing and its caption."""

    def __init__(self, chart: Chart) -> None:
        self._views: list[JsonObject] = []
        self._described = ""
        self._place = 0
        self._is_narrow = False
        self._plot: ui.plotly | None = None
        with element("figure") as self._figure:
            self._figure.props["data-chart"] = chart.key
            element("h3", chart.title)
            self._choice = ui.select({}, label="against", on_change=self._choose).props("dense outlined")
            self._choice.set_visibility(False)
            self._box = element("div", role="img", aria_label=f"{chart.title}. {chart.caption}")
            element("figcaption", chart.caption, "small")

    def update(self, chart: Chart, is_narrow: bool) -> None:
        """Draw the chart if it has changed: at once if it was drawn lately, else while the page goes on."""
        described = repr(chart)
        if described == self._described:
            return
        self._described, self._is_narrow = described, is_narrow
        views = _known(described)
        if views is not None:
            self._take(chart, views)
        else:
            with self._figure:
                ui.timer(0, partial(self._draw_aside, chart, described), once=True)

    async def _draw_aside(self, chart: Chart, described: str) -> None:
        """Have another thread make the figures, which takes a tenth of a second for each chart."""
        views = await run.io_bound(lambda: drawn([chart])[chart.key])
        if views is not None:  # None where the server is ending
            _kept(described, views)
            if described == self._described and not self._figure.is_deleted:
                self._take(chart, views)

    def _take(self, chart: Chart, views: list[JsonObject]) -> None:
        self._views = views
        self._place = min(self._place, len(views) - 1)
        names = {place: view.name for place, view in enumerate(chart.views)}
        if self._choice.options != names:
            self._choice.set_options(names, value=self._place)
            self._choice.set_visibility(len(names) > 1)
        self._draw()

    def fit(self, is_narrow: bool) -> None:
        """Draw the chart for a page of this width."""
        self._is_narrow = is_narrow
        if self._views:
            self._draw()

    def _choose(self) -> None:
        value = self._choice.value
        if isinstance(value, int) and value != self._place and value < len(self._views):
            self._place = value
            self._draw()

    def _draw(self) -> None:
        figure = _as_shown(self._views[self._place], self._is_narrow)
        if self._plot is None:
            with self._box:
                self._plot = ui.plotly(figure)
        else:
            self._plot.update_figure(figure)


def _as_shown(view: JsonObject, is_narrow: bool) -> JsonObject:
    """Return a view as the library takes it; on a phone, labels stand where the report places them there."""
    traces = view["data"]
    if is_narrow:
        traces = [
            trace
            if "text" not in str(trace.get("mode")) and not side
            else {
                **trace,
                "mode": "markers+text" if side else "markers",
                "textposition": side or trace.get("textposition"),
            }
            for trace, side in zip(traces, view["narrow"], strict=True)
        ]
    return {"data": traces, "layout": view["layout"], "config": _CONFIG}
