"""The terminal: results on stdout, progress with the time left on stderr, libraries kept quiet."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

    from tunewise.results.schema import Comparison


def console() -> Console:
    """Open the console that results are printed on."""
    from rich.console import Console

    # Piped output has no width of its own; a table must not be folded to 80 columns in a file.
    return Console(width=None if sys.stdout.isatty() else 200)


def print_text(text: str) -> None:
    """Print plain text on stdout, folded at the terminal's width."""
    console().print(text, markup=False, highlight=False)


def print_json(value: object) -> None:
    """Print a result as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_result(value: object, as_json: bool, view: Callable[[], RenderableType]) -> None:
    """Print a result as JSON, or else as its view; a view that is a string is printed as it is."""
    if as_json:
        print_json(value)
        return
    rendered = view()
    if isinstance(rendered, str):
        print_text(rendered)
    else:
        console().print(rendered)


class ProgressDisplay:
    """Shows what runs, its progress and the time left, below the rows so far; a total of 0 means unknown."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, row: str, what: str, done: int, total: int, /) -> None:
        """Show the progress of what `row` does."""
        live, tasks = self._live, self._tasks
        kind = "training" if what.startswith("loss") else what
        if (row, kind) not in tasks or done < live.tasks[live.task_ids.index(tasks[row, kind])].completed:
            for task in tasks.values():
                live.update(task, visible=False)
            tasks[row, kind] = live.add_task("", row=row, what=what, total=total or None)
        live.update(tasks[row, kind], completed=done, total=total or None, what=what)

    def rows(self, result: Comparison) -> None:
        """Show a comparison's table so far."""
        from tunewise.results.report.tables import table

        self._live.above = table(result)
        self._live.refresh()


@contextmanager
def progress_display() -> Iterator[ProgressDisplay]:
    """Open a live display on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Board(Progress):
        above: RenderableType | None = None

        def get_renderables(self) -> Iterator[RenderableType]:
            if self.above is not None:
                yield self.above
            yield self.make_tasks_table(self.tasks)

    stderr = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[row]}", markup=False),
        TextColumn("{task.fields[what]}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Board(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as live:
        yield ProgressDisplay(live)
