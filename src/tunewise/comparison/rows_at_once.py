"""Runs several rows of a comparison at once, each in a thread that waits for what workers do.

What is shown is one row at a time, the first that runs; the table grows with each row that is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from tunewise.advice.course import Course
from tunewise.comparison.invocation import OnRowStart
from tunewise.comparison.row import Runs
from tunewise.contract.technique import Technique
from tunewise.core.progress import RowProgress, RowStart
from tunewise.results.schema import FinishedTrial, Row

Finished = tuple[Row, list[FinishedTrial]]
Turn = tuple[Technique, int, str | None]  # as `Course.turns` gives them


class RowsAtOnce:
    """Begins rows before their results are asked for.

    Args:
        runs: runs a row, with a pool of workers.
        resolve: gives a technique its learning rate.
        on_row_start: is called when a row becomes the one that is shown.
        starts: what is said then, by the technique's name.
    """

    def __init__(
        self,
        runs: Runs,
        resolve: Callable[[Technique], Technique],
        on_row_start: OnRowStart,
        starts: dict[str, RowStart],
    ) -> None:
        self._shown = _ShownRow(runs.progress, on_row_start, starts)
        self._plain, self._resolve = runs, resolve
        self._threads = ThreadPoolExecutor(max(len(starts), 1), thread_name_prefix="row")
        self._begun: dict[str, Future[Finished]] = {}

    def begin(self, technique: Technique, runs: Runs | None = None) -> None:
        """Begin a row, unless it has begun."""
        if technique.name not in self._begun:
            self._begun[technique.name] = self._threads.submit(self._row, technique, runs or self._plain)

    def _row(self, technique: Technique, runs: Runs) -> Finished:
        try:
            return replace(runs, progress=self._shown.report).row_of(self._resolve(technique))
        finally:
            self._shown.over(technique.name)

    def row(self, technique: Technique) -> Finished:
        """Wait for a row, which is begun if it has not been."""
        self.begin(technique)
        return self._begun[technique.name].result()

    def turns(self, order: Sequence[Technique]) -> Iterator[Turn]:
        """Begin all rows, and yield each when it is over."""
        for technique in order:
            self.begin(technique)
        yield from self._as_they_end(order)

    def timed_turns(self, order: Sequence[Technique], workers: int) -> Iterator[Turn]:
        """Do the same within a budget of minutes: first what trains nothing, then all others for what time is left.

        Their steps are timed while no worker is at work, and each row gets the same share of the time of all workers.
        """
        asked = [technique for technique in order if technique.trains or technique.chooses]
        first = [technique for technique in order if technique not in asked]
        yield from self.turns(first)
        self._note_scoring(first)
        rounds = -(-len(asked) // workers)
        paced = [(technique, self._plain.paced(self._resolve(technique), rounds)) for technique in asked]
        for technique, runs in paced:
            if runs is not None:
                self.begin(technique, runs)
        yield from self._as_they_end([technique for technique, runs in paced if runs is not None])
        for technique, runs in paced:
            if runs is None:
                yield technique, 0, self._plain.out_of_time()

    def _note_scoring(self, over: Sequence[Technique]) -> None:
        """Take in how long trials needed besides training, which steps leave room for."""
        for record in (record for technique in over for record in self.row(technique)[1]):
            if self._plain.clock is not None:
                scoring = (record.seconds or 0.0) - record.cost.train_seconds
                self._plain.clock.scoring = max(self._plain.clock.scoring, scoring)

    def _as_they_end(self, order: Sequence[Technique]) -> Iterator[Turn]:
        left = list(order)
        while left:
            wait([self._begun[technique.name] for technique in left], return_when=FIRST_COMPLETED)
            for technique in [each for each in left if self._begun[each.name].done()]:
                yield technique, len(left), None
                left.remove(technique)

    def followed(self, course: Course, turns: Iterator[Turn], rows: Sequence[Row], workers: int) -> Iterator[Turn]:
        """Follow advice as one worker does, and have the other workers begin what it is likely to run next.

        What is run in the end, and in which order, is what the scores say; a row that was begun and is not asked for
        stays out of the table.
        """
        for technique, rows_left, reason in turns:
            if reason is None:
                self.begin(technique)
                for likely in course.likely_next(technique, rows, workers - 1):
                    self.begin(likely)
            yield technique, rows_left, reason

    def close(self) -> None:
        """Begin nothing more; what runs ends with the pool."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _ShownRow:
    """Lets one row at a time be seen: the first that reports while none is."""

    def __init__(self, progress: RowProgress, on_row_start: OnRowStart, starts: dict[str, RowStart]) -> None:
        self._progress, self._on_row_start, self._starts = progress, on_row_start, starts
        self._lock, self._row = threading.Lock(), ""
        self._over: set[str] = set()

    def report(self, row: str, what: str, done: int, total: int, /) -> None:
        """Pass on a report of the row that is shown."""
        with self._lock:
            if not self._row and row in self._starts and row not in self._over:
                self._row = row
                self._on_row_start(self._starts[row])
            if row in (self._row, ""):
                self._progress(row, what, done, total)

    def over(self, row: str) -> None:
        """Let another row be seen."""
        with self._lock:
            self._over.add(row)
            if self._row == row:
                self._row = ""
