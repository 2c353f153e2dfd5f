"""What the charts of a comparison show, without a drawing library: `figures` draws it for the page, `pictures` as PNG.

A chart has one or more views (the same rows against another cost, say). In every chart a colour is a family and a
symbol or dash one technique of it, so that colour alone carries nothing.
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
    """One technique in one view.

    `style` is how it is drawn: "points", "trail" (small dots, joined), "line", "front" (steps) or "bars". `x`, `y`:
    in the units of the view's axes. `x_ends` and `y_ends` (low, high) are the ends of the 95 % intervals of points.
    `labels` stand beside points and bars, `hover` is shown on demand, one for each point. `variant` counts the
    techniques of a family from 0.
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
    taken: bool = False  # the recommended row: its label has a star, and stands before the others find their places


@dataclass(frozen=True)
class View:
    """Series on one pair of axes; `unit` follows the numbers of the x axis, a range of a log axis is in decades."""

    name: str
    x_title: str
    y_title: str
    series: list[Series]
    unit: str = ""
    log_x: bool = False
    log_y: bool = False
    downwards: bool = False  # small values of y are drawn high, because they are the better ones

    def x_range(self) -> Pair:
        """The ends of the x axis, with room for labels on the right of points."""
        room = 0.16 if any(s.labels for s in self.series) else 0.04
        return _span([s.x for s in self.series], [s.x_ends for s in self.series], self.log_x, 0.08, room)

    def y_range(self) -> Pair:
        """The ends of the y axis, the lower end of the drawing first."""
        low, high = _span([s.y for s in self.series], [s.y_ends for s in self.series], self.log_y, 0.08, 0.08)
        return (high, low) if self.downwards else (low, high)


@dataclass(frozen=True)
class Chart:
    """A chart: its key (the name of its file), what it shows, and its views, one at least."""

    key: str
    title: str
    caption: str
    views: list[View]


@dataclass(frozen=True)
class CostAxis:
    """A cost of a row: what multiplies it for the axis, and how one value is written."""

    name: str
    value: Callable[[Cost], float | None]
    unit: str
    write: Callable[[float], str]
    factor: float = 1.0
    floor: float = 0.0  # less than this is the clock's noise, and drawn as 0
    plotted: bool = True  # against the score, not as bars only


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
    """The charts that have something to show."""
    rows = result.scored
    seen: dict[str, int] = {}
    variants: dict[str, int] = {}
    for row in result.rows:
        variants[row.technique] = seen.get(row.family, 0)
        seen[row.family] = seen.get(row.family, 0) + 1
    made = (_against_cost(rows, variants), _forgetting(rows, variants), _curves(rows, variants), _costs(rows, variants))
    taken = result.recommended
    return [_starred(chart, show(taken, 40)) if taken else chart for chart in made if chart.views]


def _starred(chart: Chart, taken: str) -> Chart:
    """The chart with its recommended row marked."""

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
        line = [Series("not beaten at its cost", "", "front", [x for x, _ in front], [y for _, y in front])]
        log = min(xs) > 0 and max(xs) > 30 * min(xs)
        views.append(View(cost.name, cost.name, show(rows[0].score.metric, 40), line + points, cost.unit, log))
    caption = (
        "Up and to the left is better. Bars are 95 % intervals; the stepped line joins the rows that no other one "
        "beats at the same cost or less; ★ is recommended."
    )
    return Chart("score-cost", "Score against cost", caption, views)


def _front(points: Sequence[Pair]) -> list[Pair]:
    """The points (cost, score) that no other one beats in both, cheapest first."""
    front: list[Pair] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _forgetting(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Chart:
    known = [(row, row.forgetting) for row in rows if row.forgetting is not None]
    title = "forgot (nats per token)"
    trails = list(_trails([row for row, _ in known], variants))
    views = []
    if trails:
        points = [
            _forgot(row, forgot, row.validation_loss, variants)
            for row, forgot in known
            if row.validation_loss is not None
        ]
        views.append(View("validation loss", title, "validation loss", trails + points, downwards=True))
    if any(forgot.nll_rise for _, forgot in known):
        points = [_forgot(row, forgot, row.score.mean, variants, _interval(row.score)) for row, forgot in known]
        views.append(View("score", title, show(rows[0].score.metric, 40), points))
    caption = (
        "Up and to the left is better. Forgot: the rise of the loss on what the base knew; the base itself is at 0."
    )
    if trails:
        caption += " Small dots are the trials of the search, joined by rising learning rate; large ones their winners."
    return Chart("forgetting", "Learning against forgetting", caption, views)


def _forgot(
    row: ScoredRow, forgot: Forgetting, y: float, variants: Mapping[str, int], y_ends: Pair | None = None
) -> Series:
    """A row as a point over what it forgot."""
    low, high = forgot.nll_rise_low, forgot.nll_rise_high
    ends = None if low is None or high is None else (low, high)
    return _point(row, forgot.nll_rise, y, variants, f"forgot {forgot.nll_rise:+.3f}", ends, y_ends)


def _trails(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Iterator[Series]:
    """The trials of each search whose loss and forgetting are both known."""
    for row in rows:
        tried = [
            (trial, trial.nll_rise, trial.validation_loss)
            for trial in row.search or ()
            if trial.validation_loss is not None and trial.nll_rise is not None
        ]
        tried.sort(key=lambda each: each[0].learning_rate or 0)
        if tried:
            name = show(row.technique, 40)
            yield Series(
                name,
                show(row.family, 40),
                "trail",
                [rise for _, rise, _ in tried],
                [loss for _, _, loss in tried],
                hover=[f"{name}, {words(trial)}: {loss:.3f}" for trial, _, loss in tried],
                variant=variants[row.technique],
            )


def words(trial: SearchTrial) -> str:
    """The rate, settings and steps of a trial in words."""
    rate = trial.learning_rate
    said = [] if rate is None else [f"learning rate {rate:.3g}"]
    said += [f"{show(str(name))} {show(str(value))}" for name, value in (trial.settings or {}).items()]
    said += [f"{trial.steps} steps"] if trial.steps else []
    return ", ".join(said) or "as it is"


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
    losses = [loss for one in series for loss in one.y]
    log = bool(losses) and min(losses) > 0 and max(losses) > 10 * min(losses)
    views = [View("training loss", "step", "training loss", series, log_y=log)] if series else []
    return Chart("curves", "Learning curves", "Training loss by step, of the seed that is kept.", views)


def _costs(rows: Sequence[ScoredRow], variants: Mapping[str, int]) -> Chart:
    views = []
    for cost, values in _with_values(rows):
        most = sorted((row for row in rows if row.technique in values), key=lambda row: values[row.technique])
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
            for place, row in enumerate(reversed(most))
        ]
        views.append(View(cost.name, cost.name, "", bars, cost.unit))
    return Chart("costs", "What each technique costs", "Lowest first.", views)


def _with_values(rows: Sequence[ScoredRow]) -> Iterator[tuple[CostAxis, dict[str, float]]]:
    """The costs that differ from 0 somewhere, with their values by technique."""
    for cost in COSTS:
        values = {row.technique: cost.value(row.cost) for row in rows}
        known = {
            name: value * cost.factor * (value >= cost.floor) for name, value in values.items() if value is not None
        }
        if any(known.values()):
            yield cost, known


def _point(
    row: ScoredRow,
    x: float,
    y: float,
    variants: Mapping[str, int],
    said: str,
    x_ends: Pair | None = None,
    y_ends: Pair | None = None,
) -> Series:
    """A row as one point with its intervals; `said` follows the score when the point is asked."""
    name, score = show(row.technique, 40), row.score
    hover = f"{name}: {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}], {said}"
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
    """From the lowest to the highest value, widened at both ends by these shares."""
    flat = [value for some in values for value in some] + [end for some in ends for pair in some or [] for end in pair]
    if log:
        flat = [math.log10(value) for value in flat if value > 0]
    low, high = min(flat), max(flat)
    room = (high - low) or abs(high) or 1.0
    return low - before * room, high + after * room
