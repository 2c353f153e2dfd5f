"""Describes the charts of a comparison without a drawing library; `plotly_charts` and `png_charts` draw them.

A chart has one or more views, for example the same rows against several costs. In every chart the colour stands for
the family and the symbol or dash for the technique, so that nothing depends on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunewise.core.text import show
from tunewise.core.units import size
from tunewise.results.schema import Comparison, Cost, Forgetting, Score, ScoredRow, SearchTrial

Pair = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Holds the data of one technique in one view.

    Attributes:
        name: the technique.
        family: its family, which chooses the colour.
        style: "points", "trail" (small dots, joined), "line", "front" (steps) or "bars".
        x: values in the unit of the x axis.
        y: values in the unit of the y axis.
        x_ends: (low, high) of the 95 % interval of each point.
        y_ends: (low, high) of the 95 % interval of each point.
        labels: text beside each point or bar.
        hover: text shown when the pointer is over a point.
        variant: number of the technique in its family, from 0.
        taken: whether it is the recommended row, whose label has a star and is placed first.
    """

    name: str
    family: str
    style: str
    x: list[float]
    y: list[float]
    x_ends: list[Pair] | None = None
    y_ends: list[Pair] | None = None
    labels: list[str] = field(default_factory=list)
    hover: list[str] = field(default_factory=list)
    variant: int = 0
    taken: bool = False


@dataclass(frozen=True)
class View:
    """Holds series on one pair of axes; `unit` follows the x axis' numbers; the range of a log axis is in decades."""

    name: str
    x_title: str
    y_title: str
    series: list[Series]
    unit: str = ""
    log_x: bool = False
    log_y: bool = False
    downwards: bool = False  # small values of y are better and are drawn at the top

    def x_range(self) -> Pair:
        """Return the ends of the x axis, with room for labels to the right of points."""
        room = 0.16 if any(s.labels for s in self.series) else 0.04
        return _span([s.x for s in self.series], [s.x_ends for s in self.series], self.log_x, 0.08, room)

    def y_range(self) -> Pair:
        """Return the ends of the y axis, bottom first."""
        low, high = _span([s.y for s in self.series], [s.y_ends for s in self.series], self.log_y, 0.08, 0.08)
        return (high, low) if self.downwards else (low, high)


@dataclass(frozen=True)
class Chart:
    """Holds a chart: its key (also its file name), title and caption, and at least one view."""

    key: str
    title: str
    caption: str
    views: list[View]


@dataclass(frozen=True)
class CostAxis:
    """Describes an axis of costs: how the cost is read from a row, scaled for the axis, and written."""

    name: str
    value: Callable[[Cost], float | None]
    unit: str
    write: Callable[[float], str]
    factor: float = 1.0
    floor: float = 0.0  # smaller values are timer noise and are drawn as 0
    plotted: bool = True  # whether it is also plotted against the score


COSTS = (
    CostAxis("training seconds", lambda cost: cost.train_seconds, " s", lambda v: f"{v:.3g} s", floor=0.001),
    CostAxis("peak memory", lambda cost: cost.peak_memory_bytes, "B", size),
    CostAxis("bytes on disk", lambda cost: cost.artifact_bytes, "B", size),
    CostAxis("prompt tokens", lambda cost: cost.prompt_tokens, "", lambda v: f"{v:.0f}"),
    CostAxis("ms per example", lambda cost: cost.seconds_per_example, " ms", lambda v: f"{v:.3g} ms", 1000),
    CostAxis(
        "training tokens per second",
        lambda cost: cost.tokens_per_second,
        "",
        lambda v: f"{v:,.0f}",
        plotted=False,
    ),
    CostAxis(
        "US dollars per 1,000 requests",
        lambda cost: cost.usd_per_1000_requests,
        "",
        lambda v: f"{v:.3g} USD",
        plotted=False,
    ),
)


def charts(result: Comparison) -> list[Chart]:
    """Return the charts that have data."""
    rows = result.scored
    seen: dict[str, int] = {}
    variants: dict[str, int] = {}
    for row in result.rows:
        variants[row.technique] = seen.get(row.family, 0)
        seen[row.family] = seen.get(row.family, 0) + 1
    built = (
        _against_cost(rows, variants),
        _forgetting(rows, variants),
        _curves(rows, variants),
        _costs(rows, variants),
    )
    taken = result.recommended
    return [_starred(chart, show(taken, 40)) if taken else chart for chart in built if chart.views]


def _starred(chart: Chart, taken: str) -> Chart:
    """Return the chart with its recommended row marked."""

    def star(series: Series) -> Series:
        if series.style != "points" or series.name != taken:
            return series
        return replace(series, labels=[f"★ {series.name}"], taken=True)

    return replace(chart, views=[replace(view, series=[star(one) for one in view.series]) for view in chart.views])


def _against_cost(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Chart:
    views = []
    for cost, values in _with_values(rows):
        if not cost.plotted:
            continue
        points = [
            _point(row, value, row.score.mean, variants, cost.write(value), y_ends=_interval(row.score))
            for row in rows
            if (value := values.get(row.technique)) is not None
        ]
        xs = [series.x[0] for series in points]
        front = _front([(series.x[0], series.y[0]) for series in points])
        front.append((max(xs), front[-1][1]))
        line = [Series("Pareto front", "", "front", [x for x, _ in front], [y for _, y in front])]
        log = min(xs) > 0 and max(xs) > 30 * min(xs)
        views.append(View(cost.name, cost.name, show(rows[0].score.metric, 40), line + points, cost.unit, log))
    caption = (
        "Up and to the left is better. Bars are 95 % intervals; the stepped line is the Pareto front: no other row has "
        "a better score at the same or lower cost; ★ is recommended."
    )
    return Chart("score-cost", "Score against cost", caption, views)


def _front(points: Sequence[Pair]) -> list[Pair]:
    """Return the Pareto front of points (cost, score): those that no cheaper one matches, cheapest first."""
    front: list[Pair] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _forgetting(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Chart:
    forgetting = [(row, row.forgetting) for row in rows if row.forgetting is not None]
    title = "forgot (nats per token)"
    trails = list(_trails([row for row, _ in forgetting], variants))
    views = []
    if trails:
        points = [
            _forgot(row, forgot, row.validation_loss, variants)
            for row, forgot in forgetting
            if row.validation_loss is not None
        ]
        views.append(View("validation loss", title, "validation loss", trails + points, downwards=True))
    if any(forgot.nll_rise for _, forgot in forgetting):
        points = [_forgot(row, forgot, row.score.mean, variants, _interval(row.score)) for row, forgot in forgetting]
        views.append(View("score", title, show(rows[0].score.metric, 40), points))
    caption = "Up and to the left is better. Forgot: the rise of the loss on retention text; the base itself is at 0."
    if trails:
        caption += " Small dots are trials of the search, joined in order of learning rate; large ones are the winners."
    return Chart("forgetting", "Learning against forgetting", caption, views)


def _forgot(
    row: ScoredRow, forgot: Forgetting, y: float, variants: Mapping[str, int], y_ends: Pair | None = None
) -> Series:
    """Return a row as a point above its rise of the loss."""
    low, high = forgot.nll_rise_low, forgot.nll_rise_high
    ends = None if low is None or high is None else (low, high)
    return _point(row, forgot.nll_rise, y, variants, f"forgot {forgot.nll_rise:+.3f}", ends, y_ends)


def _trails(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Iterator[Series]:
    """Yield the trials of each search, by learning rate, if both loss and forgetting are known."""
    for row in rows:
        measured = [
            (trial, trial.nll_rise, trial.validation_loss)
            for trial in row.search or ()
            if trial.validation_loss is not None and trial.nll_rise is not None
        ]
        measured.sort(key=lambda trial: trial[0].learning_rate or 0)
        if measured:
            name = show(row.technique, 40)
            yield Series(
                name,
                show(row.family, 40),
                "trail",
                [rise for _, rise, _ in measured],
                [loss for _, _, loss in measured],
                hover=[f"{name}, {words(trial)}: {loss:.3f}" for trial, _, loss in measured],
                variant=variants[row.technique],
            )


def words(trial: SearchTrial) -> str:
    """Describe a trial by its learning rate, settings and steps."""
    rate = trial.learning_rate
    parts = [] if rate is None else [f"learning rate {rate:.3g}"]
    parts += [f"{show(str(name))} {show(str(value))}" for name, value in (trial.settings or {}).items()]
    parts += [f"{trial.steps} steps"] if trial.steps else []
    return ", ".join(parts) or "unchanged"


def _curves(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Chart:
    series = [
        Series(
            name := show(row.technique, 40),
            show(row.family, 40),
            "line",
            [step for step, _ in points],
            [loss for _, loss in points],
            hover=[f"{name}, step {step}: {loss:.3f}" for step, loss in points],
            variant=variants[row.technique],
        )
        for row in rows
        if len(points := [(step, loss) for step, loss in row.curve or () if loss is not None]) > 1
    ]
    validation = [
        Series(
            name := show(row.technique, 40),
            show(row.family, 40),
            "trail",
            [step for step, _ in points],
            [loss for _, loss in points],
            hover=[
                f"{name}, step {step}: validation loss {loss:.3f}" + (", kept" if step == _best_step(row) else "")
                for step, loss in points
            ],
            variant=variants[row.technique],
        )
        for row in rows
        if (points := [(step, loss) for step, loss in row.validation_curve or () if loss is not None])
    ]
    losses = [loss for one in series + validation for loss in one.y]
    log = bool(losses) and min(losses) > 0 and max(losses) > 10 * min(losses)
    views = [View("training loss", "step", "training loss", series + validation, log_y=log)] if series else []
    caption = "Training loss by step, of the seed with the lowest validation loss."
    if validation:
        caption += " Dots are validation losses on the way; the state with the lowest one is kept."
    return Chart("curves", "Learning curves", caption, views)


def _best_step(row: ScoredRow) -> int | None:
    return row.training.best_step if row.training is not None else None


def _costs(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Chart:
    views = []
    for cost, values in _with_values(rows):
        ascending = sorted((row for row in rows if row.technique in values), key=lambda row: values[row.technique])
        bars = [
            Series(
                name := show(row.technique, 40),
                show(row.family, 40),
                "bars",
                [value := values[row.technique]],
                [float(place)],
                labels=[cost.write(value)],
                hover=[f"{name}: {cost.write(value)}"],
                variant=variants[row.technique],
            )
            for place, row in enumerate(reversed(ascending))
        ]
        views.append(View(cost.name, cost.name, "", bars, cost.unit))
    return Chart("costs", "What each technique costs", "Lowest cost first.", views)


def _with_values(rows: Sequence[ScoredRow]) -> Iterator[tuple[CostAxis, dict[str, float]]]:
    """Yield the costs that are not 0 everywhere, with their values by technique."""
    for cost in COSTS:
        values = {row.technique: cost.value(row.cost) for row in rows}
        scaled = {
            name: value * cost.factor * (value >= cost.floor) for name, value in values.items() if value is not None
        }
        if any(scaled.values()):
            yield cost, scaled


def _point(
    row: ScoredRow,
    x: float,
    y: float,
    variants: Mapping[str, int],
    figure: str,
    x_ends: Pair | None = None,
    y_ends: Pair | None = None,
) -> Series:
    """Return a row as one point with its intervals; `figure` follows the score in its hover text."""
    name, score = show(row.technique, 40), row.score
    hover = f"{name}: {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}], {figure}"
    if row.rank:
        low, high = row.rank
        hover += f", rank {low}" + (f" to {high}" if high != low else "")
    return Series(
        name,
        show(row.family, 40),
        "points",
        [x],
        [y],
        x_ends and [x_ends],
        y_ends and [y_ends],
        [name],
        [hover],
        variants[row.technique],
    )


def _interval(score: Score) -> Pair:
    return score.low, score.high


def _span(
    values: Sequence[list[float]], ends: Sequence[list[Pair] | None], log: bool, before: float, after: float
) -> Pair:
    """Return the lowest and highest value, widened by these shares of the range."""
    flat = [value for part in values for value in part] + [end for part in ends for pair in part or [] for end in pair]
    if log:
        flat = [math.log10(value) for value in flat if value > 0]
    low, high = min(flat), max(flat)
    room = (high - low) or abs(high) or 1.0
    return low - before * room, high + after * room
