"""The terminal: results on stdout, progress with the time left on stderr, libraries kept quiet."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tunewise.results.schema import Comparison


def console() -> Any:
    """Where results are printed."""
    from rich.console import Console

    # Piped output has no width of its own; a table must not be folded to 80 columns in a file.
    return Console(width=None if sys.stdout.isatty() else 200)


def print_json(value: object) -> None:
    """Print a result as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


class Show:
    """What runs, how far it is and the time left, below the rows so far; a total of 0 is one that nobody knows."""

    def __init__(self, live: Any) -> None:
        self._live, self._tasks = live, dict[tuple[str, str], Any]()

    def __call__(self, row: str, what: str, done: int, total: int) -> None:
        """Show where `row` is with what it does."""
        live, tasks = self._live, self._tasks
        kind = "training" if what.startswith("loss") else what
        if (row, kind) not in tasks or done < live.tasks[live.task_ids.index(tasks[row, kind])].completed:
            for old in tasks.values():
                live.update(old, visible=False)
            tasks[row, kind] = live.add_task("", row=row, what=what, total=total or None)
        live.update(tasks[row, kind], completed=done, total=total or None, what=what)

    def rows(self, result: Comparison) -> None:
        """Show a comparison's table so far."""
        from tunewise.results.report.tables import table

        self._live.above = table(result)
        self._live.refresh()


@contextmanager
def progress() -> Iterator[Show]:
    """A live display on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Board(Progress):
        above: Any = None

        def get_renderables(self) -> Iterator[Any]:
            if self.above is not None:
                yield self.above
            yield self.make_tasks_table(self.tasks)

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[row]}", markup=False),
        TextColumn("{task.fields[what]}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Board(*columns, console=console, transient=True, disable=not console.is_terminal) as live:
        yield Show(live)
