"""Where the labels of a chart's points stand so that they can be read."""

from __future__ import annotations

import math

from tunewise.results.report.charts import Pair, View

_SIDES = {  # where a label may stand: the share of its width and height by which its centre leaves the point
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
    """Where the label of each point stands ("middle right") on axes of this many pixels; one without room has none.

    The recommended row chooses first, then the highest. A label may not cover another label, a point, or the edge.
    Where intervals lie to the sides of points, labels keep to the corners if they can.
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
    found = {}
    own = {s.name: s for s in view.series if s.style == "points"}
    for name, (x, y) in sorted(points.items(), key=lambda item: (not own[item[0]].taken, -item[1][1])):
        wide, high = 6.6 * len(own[name].labels[0]), 13
        for side in sides:
            across, up = _SIDES[side]
            cx, cy = x + across * (wide + 16), y + up * (high + 12)
            box = (cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2)
            inside = box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height
            if inside and not any(_meet(box, other) for key, other in boxes.items() if key != name):
                found[name] = side
                boxes["label " + name] = box
                break
    return found


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
