"""Predicts how long the work that is shown will still take, from an estimate where there is one, and from its pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunewise.core.progress import (
    DIVERGENCE,
    FORGETTING,
    JUDGING,
    PREPARING,
    PROBING,
    REFERENCES,
    SCORING,
    TRAINING,
    VALIDATING,
    RowStart,
    stage_of,
)
from tunewise.results.estimate import Estimate

Part = Literal["preparing", "training", "scoring", "forgetting"]  # those of a `RowEstimate`, in their order
_PARTS: tuple[Part, ...] = ("preparing", "training", "scoring", "forgetting")
_PART_OF: Mapping[str, Part] = {
    PREPARING: "preparing",
    TRAINING: "training",
    VALIDATING: "scoring",
    SCORING: "scoring",
    REFERENCES: "scoring",
    JUDGING: "scoring",
    FORGETTING: "forgetting",
    DIVERGENCE: "forgetting",
    PROBING: "forgetting",
}
_READ_FROM_DISK = 0.05  # a row that takes a smaller share of its estimate was finished before


@dataclass
class Stage:
    """Holds the newest report of a stage, and when it began.

    Attributes:
        row: the row that it belongs to.
        name: the stage.
        what: the same with details.
        done: how much of it is done.
        total: how much there is to do; 0 if that is not known.
        started: when it began.
        reported: when `done` last changed.
        part: the part of the row that it belongs to.
        pace_from: time and `done` that its pace is measured from.
    """

    row: str
    name: str
    what: str
    done: int
    total: int
    started: float
    reported: float
    part: Part
    pace_from: tuple[float, int]

    def leave_out_first_steps(self, done: int, now: float) -> None:
        """Measure the pace without the first step, which is slow, and without steps of a run that is resumed."""
        if self.done:
            self.pace_from = (self.reported, self.done)
        elif done > 1:
            self.pace_from = (now, done)

    def left(self, now: float) -> float | None:
        """Return the seconds that are left at its pace so far; None if there is none yet."""
        since, first = self.pace_from
        if not self.total or self.done <= first or self.reported <= since:
            return None
        pace = (self.reported - since) / (self.done - first)
        return max(pace * (self.total - self.done) - (now - self.reported), 0.0)


@dataclass
class _Row:
    """Holds a row that runs, or ran: when it began and what its parts took so far, without the current stage."""

    start: RowStart
    started: float
    parts: dict[Part, float] = field(default_factory=dict)


class Tracker:
    """Follows rows and stages, and says how long is left of them.

    What is left of the rows is what was estimated for them, times (measured / estimated) of the rows that are done.
    Without an estimate it is what the finished rows that trained took. The pace of the current stage is looked at too.
    Times are those of `now`, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.started = now()
        self.stage: Stage | None = None
        self.row: RowStart | None = None
        self._running: _Row | None = None
        self._took: dict[str, dict[Part, float]] = {}  # seconds of the parts of finished rows, by technique
        self._expected: Estimate | None = None

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return self.now() - self.started

    def expect(self, estimate: Estimate) -> None:
        """Take in what the comparison is expected to take."""
        self._expected = estimate

    def start_row(self, start: RowStart) -> None:
        """Take in that a row begins."""
        self._end_stage()
        self.row, self._running = start, _Row(start, self.now())

    def end_row(self) -> float:
        """Take in that the row is over, and return the seconds that it took."""
        self._end_stage()
        row, self.row, self._running = self._running, None, None
        if row is None:
            return 0.0
        seconds = self.now() - row.started
        if seconds >= sum(
            self._took.get(row.start.technique, {}).values()
        ):  # a new worker reads what the first one ran
            self._took[row.start.technique] = row.parts
        return seconds

    def note_end(self, technique: str) -> None:
        """Take in that a row is over which ran beside the current one."""
        if self._running is None or technique != self._running.start.technique:
            self._took.setdefault(technique, {})

    def report(self, row: str, what: str, done: int, total: int) -> bool:
        """Take in a report, and return whether a stage begins with it."""
        now, name, stage = self.now(), stage_of(what), self.stage
        begins = stage is None or (stage.row, stage.name) != (row, name) or done < stage.done
        if begins:
            part: Part = _PART_OF.get(
                name, stage.part if stage is not None and self._running is not None else "preparing"
            )
            self._end_stage()
            self.stage = Stage(row, name, what, done, total, now, now, part, (now, done))
        elif stage is not None:
            if done > stage.done:
                if name == TRAINING and stage.pace_from[1] == 0:
                    stage.leave_out_first_steps(done, now)
                stage.reported = now
            stage.what, stage.done, stage.total = what, done, total
        return begins

    def _end_stage(self) -> None:
        """Add the time of the current stage to its part of the row."""
        stage, self.stage = self.stage, None
        if stage is not None and self._running is not None:
            spent = self.now() - max(stage.started, self._running.started)
            self._running.parts[stage.part] = self._running.parts.get(stage.part, 0.0) + spent

    def stage_left(self) -> float | None:
        """Return the seconds that are left of the current stage; None if that is not known."""
        return self.stage.left(self.now()) if self.stage is not None else None

    def left(self) -> float | None:
        """Return the seconds that are left of all rows; None if that cannot be known yet."""
        if self._running is None and not (self._expected is not None and not self._took):
            return None
        if self._expected is not None:
            return self._left_of_estimate(self._expected)
        trained = [parts for parts in self._took.values() if parts.get("training")]
        typical = {part: _mean([parts.get(part, 0.0) for parts in trained]) for part in _PARTS} if trained else {}
        row, running = self.row, self._running
        if row is None or running is None or row.rows is None:
            return None
        rows_after = row.rows - row.number
        current = self._left_of_row(running, typical)
        if typical:
            return current + rows_after * sum(typical.values())
        pace_known = self.stage is not None and self.stage.part == "training" and self.stage_left() is not None
        if rows_after and not pace_known:
            return None
        if not rows_after and self.stage_left() is None:
            return None
        return current + rows_after * (self.now() - running.started + current)

    def _left_of_estimate(self, estimate: Estimate) -> float:
        by_technique = {row.technique: row for row in estimate.rows}
        done = [
            (sum(parts.values()), by_technique[name].seconds)
            for name, parts in self._took.items()
            if name in by_technique and sum(parts.values()) >= _READ_FROM_DISK * by_technique[name].seconds
        ]
        expected = sum(seconds for _, seconds in done)
        scale = sum(seconds for seconds, _ in done) / expected if expected > 0 else 1.0
        running = self._running
        current = running.start.technique if running is not None else None
        left = sum(row.seconds * scale for name, row in by_technique.items() if name not in (*self._took, current))
        if running is None:
            return left / (estimate.workers or 1) + max(estimate.startup - self.elapsed, 0.0)
        own = by_technique.get(running.start.technique)
        parts = {part: getattr(own, part) * scale for part in _PARTS} if own is not None else {}
        return left / (estimate.workers or 1) + self._left_of_row(running, parts)

    def _left_of_row(self, row: _Row, expected: Mapping[Part, float]) -> float:
        """Return what is left of the row: what is expected of its parts less what they took, or more at its pace."""
        stage, at_pace = self.stage, self.stage_left()
        current = _PARTS.index(stage.part) if stage is not None else 0
        left = 0.0
        for place, part in enumerate(_PARTS):
            spent = row.parts.get(part, 0.0)
            if stage is not None and place == current:
                spent += self.now() - max(stage.started, row.started)
            rest = max(expected.get(part, 0.0) - spent, 0.0)
            if place == current and at_pace is not None:
                rest = at_pace if part == "training" and row.start.trials <= 1 else max(rest, at_pace)
            elif place < current and row.start.trials <= 1:
                rest = 0.0
            left += rest
        return left


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
