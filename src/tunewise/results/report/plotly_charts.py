"""Draws charts as Plotly figures in JSON; the page sets the colours of text and grid for its light or dark theme."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from functools import cache

from tunewise.results.report.charts import Chart, Series, View
from tunewise.results.report.label_placement import placed

# Distinguishable for colour-blind readers, on white and on black.
COLOURS = {
    "nonparametric": "#3a86c8",
    "full": "#d1495b",
    "partial": "#e08a1e",
    "additive": "#1a9e77",
    "reparametrized": "#9a6fc9",
    "peft": "#8a7f72",
}
OTHER = "#7a8691"
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "cross", "x", "hexagon", "pentagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_WIDE, _NARROW = (900, 330), (270, 260)  # the axes in pixels, on a desktop and on a phone


def drawn(charts: Sequence[Chart]) -> dict[str, list[dict[str, object]]]:
    """Return the figures of each chart's views, by the chart's key.

    A figure is `data`, `layout`, and `narrow`: for each trace, the side of its labels on a phone (null: no label).
    """
    return {chart.key: [_figure(view) for view in chart.views] for chart in charts}


@cache
def library() -> str:
    """Return plotly.js, as the plotly package contains it, as base64 of gzip, which is a third of its size."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _figure(view: View) -> dict[str, object]:
    from plotly import graph_objects

    wide, narrow = placed(view, *_WIDE), placed(view, *_NARROW)
    named: set[str] = set()
    traces, places = [], []
    for series in view.series:
        if series.style == "bars":
            trace = _bar_trace(series)
        elif series.style in ("front", "line"):
            trace = _line_trace(series)
        else:
            trace = _dot_trace(series, wide.get(series.name))
            # One legend entry per family; labels and hover texts name the techniques.
            first = series.style == "points" and series.family not in named
            trace |= {"name": _escaped(series.family), "showlegend": first}
            named |= {series.family} if first else set()
        traces.append({**trace, "hoverinfo": "text", "hovertext": [_escaped(text) for text in series.hover]})
        places.append(narrow.get(series.name) if series.style == "points" else None)
    figure = json.loads(graph_objects.Figure(traces, _layout(view)).to_json())
    return {"data": figure["data"], "layout": figure["layout"], "narrow": places}


def _escaped(text: str) -> str:
    """Escape text for Plotly, which interprets some HTML, links included, in every name."""
    return html.escape(text, quote=False)


def _bar_trace(series: Series) -> dict[str, object]:
    return {
        "type": "bar",
        "orientation": "h",
        "x": series.x,
        "y": series.y,
        "text": [_escaped(text) for text in series.labels],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": COLOURS.get(series.family, OTHER)},
        "showlegend": False,
    }


def _line_trace(series: Series) -> dict[str, object]:
    front = series.style == "front"
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _escaped(series.name),
        "x": series.x,
        "y": series.y,
        "line": {"shape": "hv", "width": 1.5, "dash": "dot", "color": OTHER}
        if front
        else {
            "width": 2,
            "dash": _DASHES[series.variant % len(_DASHES)],
            "color": COLOURS.get(series.family, OTHER),
        },
    }


def _dot_trace(series: Series, side: str | None) -> dict[str, object]:
    colour = COLOURS.get(series.family, OTHER)
    trace: dict[str, object] = {"type": "scatter", "x": series.x, "y": series.y, "legendgroup": series.family}
    symbol = _SYMBOLS[series.variant % len(_SYMBOLS)]
    if series.style == "trail":
        line = {"width": 1, "color": colour}
        return trace | {"mode": "lines+markers", "marker": {"size": 5, "color": colour}, "line": line, "opacity": 0.6}
    trace |= {
        "mode": "markers+text",
        "marker": {"size": 11, "symbol": symbol, "color": colour},
        "text": [_escaped(text) for text in series.labels],
        "textposition": side or "middle right",
        "textfont": {"size": 12},
        "cliponaxis": False,
    }
    if side is None:
        trace["mode"] = "markers"
    for axis, values, ends in (("x", series.x, series.x_ends), ("y", series.y, series.y_ends)):
        if ends:
            trace[f"error_{axis}"] = {
                "type": "data",
                "symmetric": False,
                "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                "thickness": 1,
                "width": 3,
            }
    return trace


def _layout(view: View) -> dict[str, object]:
    x: dict[str, object] = {
        "title": {"text": _escaped(view.x_title)},
        "type": "log" if view.log_x else "linear",
        "range": view.x_range(),
        "ticksuffix": view.unit,
        "tickformat": "~s" if view.unit == "B" else "",
        "automargin": True,
    }
    y: dict[str, object] = {
        "title": {"text": _escaped(view.y_title)},
        "type": "log" if view.log_y else "linear",
        "range": view.y_range(),
        "automargin": True,
    }
    bars = [series for series in view.series if series.style == "bars"]
    if bars:
        x["range"] = [0, 1.2 * max(series.x[0] for series in bars)]
        places, names = [series.y[0] for series in bars], [_escaped(series.name) for series in bars]
        y |= {"tickvals": places, "ticktext": names, "range": [-0.6, len(bars) - 0.4], "showgrid": False}
    return {
        "template": "none",
        "xaxis": x,
        "yaxis": y,
        "height": 90 + 26 * len(bars) if bars else 460,
        "margin": {"l": 8, "r": 16, "t": 12, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "y": -0.22, "x": 0},
        "hovermode": "closest",
        "dragmode": False,
    }
