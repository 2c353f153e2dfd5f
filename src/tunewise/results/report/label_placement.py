"""Places the labels of a chart's points so that they do not overlap."""

from __future__ import annotations

import math

from tunewise.results.report.charts import Pair, View

_SIDES = {  # offset of a label's centre from its point, in widths and heights of the label
    "middle right": (0.5, 0),
    "middle left": (-0.5, 0),
    "top right": (0.5, 0.5),
    "bottom right": (0.5, -0.5),
    "top left": (-0.5, 0.5),
    "bottom left": (-0.5, -0.5),
    "top center": (0, 0.5),
    "bottom center": (0, -0.5),
}


def placed(view: View, width: float, height: float) -> dict[str, str]:
    """Choose a side ("middle right") for the label of each point, on axes of this size in pixels.

    A label may not cover another label, a point or the edge; one without room is left out. The recommended row is
    placed first, then the others from top to bottom. Corners are tried first if points have horizontal intervals.
    """
    sides = list(_SIDES)
    if any(series.x_ends for series in view.series):
        sides.sort(key=lambda side: side.startswith("middle"))
    (left, right), (bottom, top) = view.x_range(), view.y_range()

    def pixel(x: float, y: float) -> Pair:
        x = math.log10(x) if view.log_x else x
        return (x - left) / (right - left) * width, (y - bottom) / (top - bottom) * height

    points = {s.name: pixel(s.x[0], s.y[0]) for s in view.series if s.style == "points"}
    boxes = {name: (x - 6, y - 6, x + 6, y + 6) for name, (x, y) in points.items()}
    sides_by_name = {}
    series_by_name = {s.name: s for s in view.series if s.style == "points"}
    for name, (x, y) in sorted(points.items(), key=lambda item: (not series_by_name[item[0]].taken, -item[1][1])):
        wide, high = 6.6 * len(series_by_name[name].labels[0]), 13
        for side in sides:
            across, up = _SIDES[side]
            cx, cy = x + across * (wide + 16), y + up * (high + 12)
            box = (cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2)
            inside = box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height
            if inside and not any(_meet(box, other) for key, other in boxes.items() if key != name):
                sides_by_name[name] = side
                boxes["label " + name] = box
                break
    return sides_by_name


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
