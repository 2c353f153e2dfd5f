"""Shows what runs, how far it is and how long is left: two bars in a terminal, plain lines everywhere else."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

from tunewise.cli.console import console
from tunewise.cli.time_left import Stage, Tracker
from tunewise.core.progress import UNITS, RowStart
from tunewise.core.text import show, visible
from tunewise.core.units import duration, rough_duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live
    from rich.segment import Segment

    from tunewise.results.estimate import Estimate
    from tunewise.results.schema import Comparison, Row

_SHORT = 2.0  # seconds; a shorter stage gets no line of its own
_BETWEEN_LINES = 60.0  # seconds between two lines of one stage, at most
_TICK = 0.5  # seconds between two looks at whether a line is due
_BELOW_TABLE = 6  # lines of the screen that the table above the bars leaves free
_NARROWEST_BAR, _WIDEST_BAR = 8, 40


class ProgressDisplay:
    """Follows the rows of a comparison, or the stages of other work, and shows them until it is closed."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._lock = threading.RLock()  # a display looks at the tracker from a thread of its own
        self._shown_rows: set[str] = set()

    def __call__(self, row: str, what: str, done: int, total: int, /) -> None:
        """Show the progress of what `row` does; a total of 0 means unknown."""
        with self._lock:
            self.tracker.report(row, what, done, total)
            self.refresh()

    def expect(self, estimate: Estimate) -> None:
        """Take the time that is left from what the comparison is expected to take."""
        with self._lock:
            self.tracker.expect(estimate)

    def row_starts(self, start: RowStart) -> None:
        """Show that a row of a comparison begins."""
        with self._lock:
            self.tracker.start_row(start)
            self.show_start(start)

    def rows(self, result: Comparison) -> None:
        """Show a comparison's rows so far, of which the current one is over."""
        with self._lock:
            place, start = self.place(), self.tracker.row
            over = {row.technique for row in result.rows}
            for name in over:
                self.tracker.note_end(name)
            seconds = self.tracker.end_row() if start is None or start.technique in over else 0.0
            new = [row for row in result.rows if row.technique not in self._shown_rows]
            self._shown_rows |= {row.technique for row in new}
            for row in new:
                own = start is not None and row.technique == start.technique
                self.show_end(row, place if own else "", seconds if own else None)
            self.show_rows(result)

    def message(self, text: str) -> None:
        """Show a sentence that the user should read before training."""

    def place(self) -> str:
        """Return which row of how many runs, as the beginning of a line; empty where none does."""
        row = self.tracker.row
        if row is None:
            return ""
        return f"row {row.number} of {row.rows}" if row.rows is not None else f"row {row.number}"

    def refresh(self) -> None:
        """Show what the tracker says now, where it is time to."""

    def show_start(self, start: RowStart) -> None:
        """Show that a row begins."""

    def show_end(self, row: Row, place: str, seconds: float | None) -> None:
        """Show the score of a finished row, or the reason that it has none."""

    def show_rows(self, result: Comparison) -> None:
        """Show the table so far."""

    def paused(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is drawn, so that a question can be asked in the terminal."""
        return nullcontext()


class PlainDisplay(ProgressDisplay):
    """Writes lines without control characters: at each row and stage, and every minute within a stage."""

    def __init__(self, tracker: Tracker, write: Callable[[str], None]) -> None:
        super().__init__(tracker)
        self._write = write
        self._announced: Stage | None = None
        self._last_line = -math.inf
        self._closed = threading.Event()

    def __enter__(self) -> PlainDisplay:
        """Look from now on at whether a line is due, even if nothing reports."""
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write no further line."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_TICK):
            with self._lock:
                self.refresh()

    def refresh(self) -> None:
        """Write a line for a stage that has become long enough, or that has had none for a minute."""
        stage, now = self.tracker.stage, self.tracker.now()
        if stage is None or self._closed.is_set() or now - stage.started < _SHORT:
            return
        if stage is not self._announced or now - self._last_line >= _BETWEEN_LINES:
            self._announced = stage
            self._line(self.place() if self._is_of_row(stage) else "", f"{stage.row}: {stage_text(stage)}")

    def _is_of_row(self, stage: Stage) -> bool:
        return self.tracker.row is not None and stage.row == self.tracker.row.technique

    def message(self, text: str) -> None:
        """Write a sentence that the user should read before training."""
        with self._lock:
            self._write(show(text, len(text)))

    def show_start(self, start: RowStart) -> None:
        """Write that a row begins."""
        self._line(self.place(), f"{start.technique}: begins")

    def show_end(self, row: Row, place: str, seconds: float | None) -> None:
        """Write the score of a row and what it took, or why it has no score."""
        took = f" in {duration(seconds)}" if seconds is not None else ""
        self._line(place, f"{row.technique}: {outcome(row)}{took}")

    def _line(self, place: str, text: str) -> None:
        whole, left, of = self.tracker.elapsed, self.tracker.left(), ""
        if left is None and not self.tracker.row:
            left, of = self.tracker.stage_left(), " of this stage"
        clock = f"{int(whole // 3600):02d}:{int(whole % 3600 // 60):02d}:{int(whole % 60):02d}"
        line = (
            f"[{clock}] "
            + (f"{place}, " if place else "")
            + text
            + (f"; about {rough_duration(left)} left{of}" if left else "")
        )
        self._last_line = self.tracker.now()
        self._write(show(line, len(line)))


class LiveDisplay(ProgressDisplay):
    """Draws the table so far, a bar for all rows and one for the current stage, at the bottom of a terminal."""

    def __init__(self, tracker: Tracker, console: Console) -> None:
        from rich.live import Live

        super().__init__(tracker)
        self._table: RenderableType | None = None
        self._live: Live = Live(
            console=console, transient=True, refresh_per_second=4, get_renderable=self.drawn, vertical_overflow="crop"
        )

    def __enter__(self) -> LiveDisplay:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear what was drawn."""
        self._live.stop()

    def message(self, text: str) -> None:
        """Print a sentence that the user should read before training, above what is drawn."""
        self._live.console.print(show(text, len(text)), markup=False, highlight=False, soft_wrap=True)

    def show_rows(self, result: Comparison) -> None:
        """Draw the table so far."""
        from tunewise.results.report.tables import table

        self._table = table(result, explained=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Draw nothing meanwhile, so that a question can be asked in the terminal."""
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def drawn(self) -> RenderableType:
        """Return what is drawn now."""
        from rich.console import Group

        with self._lock:
            parts: list[RenderableType] = [_Cropped(self._table)] if self._table is not None else []
            tracker, stage = self.tracker, self.tracker.stage
            left, place = tracker.left(), self.place()
            if place or left is not None:
                parts.append(_Bar(place or "all rows", _share_of_rows(tracker, left), _times(tracker.elapsed, left)))
            if stage is not None:
                times = _times(tracker.now() - stage.started, tracker.stage_left())
                share = stage.done / stage.total if stage.total else None
                parts.append(_Bar(f"{stage.row}: {stage_text(stage)}", share, times))
            return Group(*parts)


def _share_of_rows(tracker: Tracker, left: float | None) -> float | None:
    """Return which share of all rows is done, by time if that is known, else by number; None if neither is."""
    row, elapsed = tracker.row, tracker.elapsed
    if left is not None:
        return elapsed / max(elapsed + left, 1e-9)
    return (row.number - 1) / row.rows if row is not None and row.rows else None


def _times(elapsed: float, left: float | None) -> str:
    return duration(elapsed) + (f", about {rough_duration(left)} left" if left else "")


class _Cropped:
    """Shows the first lines of a table, as many as leave the bars on the screen, and counts the others."""

    def __init__(self, table: RenderableType) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        from rich.segment import Segment
        from rich.text import Text

        lines = console.render_lines(self._table, options.update(height=None), pad=False)
        most = max(console.height - _BELOW_TABLE, 1)
        for line in lines if len(lines) <= most else lines[: most - 1]:
            yield from line
            yield Segment.line()
        if len(lines) > most:
            yield Text(f"({len(lines) - most + 1} further lines follow in the end)", "dim")


class _Bar:
    """Draws a text, a bar and times in one line, or without the bar where there is no room; None is no known share."""

    def __init__(self, text: str, share: float | None, times: str) -> None:
        self._text, self._share, self._times = show(text, len(text)), share, times

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.cells import cell_len
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        room = options.max_width - cell_len(self._text) - cell_len(self._times) - 4
        if room < _NARROWEST_BAR:
            yield Text(f"{self._text}  {self._times}", overflow="fold")
            return
        known = self._share is not None
        bar = ProgressBar(
            total=1.0 if known else None, completed=self._share or 0.0, width=min(room, _WIDEST_BAR), pulse=not known
        )
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(Text(self._text), bar, Text(self._times))
        yield grid


def stage_text(stage: Stage) -> str:
    """Describe how far a stage is: training, step 40 of 100, loss 1.234."""
    details = stage.what.removeprefix(stage.name)
    if not stage.total and not stage.done:
        return stage.what
    unit = f"{UNITS[stage.name]} " if stage.name in UNITS else ""
    counted = f"{unit}{stage.done:,}" + (f" of {stage.total:,}" if stage.total else "")
    return f"{stage.name}, {counted}{details}"


def outcome(row: Row) -> str:
    """Describe how a row ended: its score with its interval, or why it has none."""
    from tunewise.results.report.layout import decimals_of_intervals, with_interval
    from tunewise.results.schema import ScoredRow

    if not isinstance(row, ScoredRow):
        return f"{row.status}: {row.reason or ''}"
    score = row.score
    decimals = decimals_of_intervals([score.high - score.low])
    return f"{score.metric} {with_interval(score.mean, score.low, score.high, decimals)}"


def _write_line(line: str) -> None:
    sys.stderr.write(visible(line) + "\n")
    sys.stderr.flush()


@contextmanager
def progress_display(*, shown: bool = True) -> Iterator[ProgressDisplay]:
    """Open a display on stderr: bars where it is a terminal, else plain lines; nothing where it is not `shown`."""
    stderr = console(stderr=True)
    if not shown:
        with PlainDisplay(Tracker(), lambda line: None) as hidden:
            yield hidden
    elif sys.stderr.isatty() and not stderr.is_dumb_terminal:
        with LiveDisplay(Tracker(), stderr) as live:
            yield live
    else:
        with PlainDisplay(Tracker(), _write_line) as plain:
            yield plain
