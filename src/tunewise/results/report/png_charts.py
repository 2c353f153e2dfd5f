"""Draws the charts of a comparison as PNG files, for places without HTML: a pull request, a paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewise.core import artifact_writer
from tunewise.core.extras import require
from tunewise.results.report.charts import Chart, Series, View, charts
from tunewise.results.report.label_placement import placed
from tunewise.results.report.plotly_charts import COLOURS, OTHER
from tunewise.results.schema import Comparison

_MARKERS = ("o", "s", "D", "^", "v", "*", "P", "X", "h", "p")
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 2)), (0, (8, 2, 2, 2)))
_DPI = 150


def pngs(result: Comparison, folder: Path) -> list[Path]:
    """Write the first view of each chart that has data as `<key>.png`, and return the paths.

    Raises:
        SettingError: matplotlib is not installed.
        RequestError: the folder cannot be created.
    """
    require("PNG files", "matplotlib")
    from matplotlib.figure import Figure

    out, written = artifact_writer.output_folder(folder), []
    for chart in charts(result):
        view = chart.views[0]
        bars = sum(series.style == "bars" for series in view.series)
        figure = Figure((8, 1.2 + 0.3 * bars if bars else 4.8), dpi=_DPI, layout="constrained")
        _draw(figure.add_subplot(), chart, view)
        written.append(out / f"{chart.key}.png")
        figure.savefig(written[-1])
    return written


def _draw(axes: Any, chart: Chart, view: View) -> None:
    from matplotlib.ticker import EngFormatter

    sides = placed(view, 620, 330)
    entries: dict[str, object] = {}
    for series in view.series:
        if series.style == "bars":
            _bar(axes, series)
            continue
        handle = _line(axes, series) if series.style in ("front", "line") else _dots(axes, series, sides)
        if series.style != "trail":
            entries.setdefault(series.family if series.style == "points" else series.name, handle)
    axes.set_title(chart.title, loc="left", fontsize=11)
    axes.set_xlabel(view.x_title)
    axes.set_ylabel(view.y_title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    if view.log_x:
        axes.set_xscale("log")
    if view.log_y:
        axes.set_yscale("log")
    if view.unit == "B":
        axes.xaxis.set_major_formatter(EngFormatter("B"))
    bars = [series for series in view.series if series.style == "bars"]
    if bars:
        axes.set_yticks([series.y[0] for series in bars], [series.name for series in bars], parse_math=False)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.15)
        return
    (left, right), (bottom, top) = view.x_range(), view.y_range()
    axes.set_xlim(*((10**left, 10**right) if view.log_x else (left, right)))
    axes.set_ylim(*((10**bottom, 10**top) if view.log_y else (bottom, top)))
    places: dict[str, object] = {"loc": "outside lower center", "ncols": min(6, len(entries))}
    for text in axes.figure.legend(entries.values(), entries.keys(), fontsize=8, frameon=False, **places).get_texts():
        text.set_parse_math(False)


def _bar(axes: Any, series: Series) -> None:
    axes.barh(series.y, series.x, color=COLOURS.get(series.family, OTHER))
    axes.annotate(
        series.labels[0],
        (series.x[0], series.y[0]),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        parse_math=False,
    )


def _line(axes: Any, series: Series) -> Any:
    if series.style == "front":
        return axes.plot(series.x, series.y, drawstyle="steps-post", color=OTHER, linestyle=":", linewidth=1.2)[0]
    dash = _DASHES[series.variant % len(_DASHES)]
    return axes.plot(series.x, series.y, color=COLOURS.get(series.family, OTHER), linestyle=dash, linewidth=1.6)[0]


def _dots(axes: Any, series: Series, sides: Mapping[str, str]) -> Any:
    colour = COLOURS.get(series.family, OTHER)
    if series.style == "trail":
        return axes.plot(series.x, series.y, "o-", markersize=3, linewidth=0.8, alpha=0.6, color=colour)[0]
    errors: dict[str, object] = {}
    for name, values, ends in (("xerr", series.x, series.x_ends), ("yerr", series.y, series.y_ends)):
        if ends:
            errors[name] = [[max(0.0, values[0] - ends[0][0])], [max(0.0, ends[0][1] - values[0])]]
    marker = _MARKERS[series.variant % len(_MARKERS)]
    handle = axes.errorbar(
        series.x, series.y, **errors, fmt=marker, markersize=7, color=colour, elinewidth=0.8, capsize=2
    )
    if side := sides.get(series.name):
        upright, across = side.split()
        axes.annotate(
            series.labels[0],
            (series.x[0], series.y[0]),
            ({"left": -6, "right": 6}.get(across, 0), {"top": 4, "bottom": -4}.get(upright, 0)),
            textcoords="offset points",
            ha={"left": "right", "right": "left"}.get(across, "center"),
            va={"top": "bottom", "bottom": "top"}.get(upright, "center"),
            fontsize=8,
            parse_math=False,
        )
    return handle
