"""Commands that compare techniques on a task, show a comparison again, and run the demo."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import console, echo, print_json, print_result, print_text, shows_all
from tunewise.cli.options import Json, Out, ShownOptions, Techniques, Wide, grouped_options
from tunewise.cli.progress_display import progress_display
from tunewise.comparison.request import BudgetOptions, CompareOptions, ForgettingOptions, Request
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.core.extras import require
from tunewise.resolve import COMPARED, TrainOptions

if TYPE_CHECKING:
    from tunewise.results.estimate import Estimate
    from tunewise.results.schema import Comparison

_PATIENCE = 1800  # seconds; as the supervisor has it, which is too heavy to import before it is needed


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the trials of a comparison are run; what they give does not depend on it."""

    patience: Annotated[
        float, typer.Option(help="Seconds without progress after which a trial is stopped as hanging.")
    ] = _PATIENCE
    workers: Annotated[
        str | None,
        typer.Option(
            help="Run so many trials at once, each on a GPU or a group of cores of its own; or on a Ray cluster: "
            "ray://HOST:PORT, or auto for the one that runs here."
        ),
    ] = None
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="Let workers have devices of several kinds; rows are then timed on one of them."),
    ] = False
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run trials in this process, where a crash ends the comparison.")
    ] = False
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before a comparison that takes more than an hour.")
    ] = False


@grouped_options
def compare(
    options: CompareOptions,
    how: RunOptions,
    *,
    shown: ShownOptions,
) -> None:
    """Compare techniques under one budget and say which to use; run it again to continue."""
    request = Request(options=options, started=time.monotonic(), command=_command_line())
    _compare(request, shown, how)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    other: Annotated[
        Path | None, typer.Argument(help="Folder of a second comparison, to show both side by side.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page of HTML to this file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the charts as pictures to this folder.")] = None,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """Show a comparison again, or two side by side."""
    from tunewise.core import artifact_writer
    from tunewise.results.report.page import render_html
    from tunewise.results.report.png_charts import pngs
    from tunewise.results.report.side_by_side import beside
    from tunewise.results.report.tables import picture, terminal

    if other is not None and (html or svg or png):
        raise SettingError("--html, --svg and --png show one comparison; give one folder")
    results = [_read_comparison(path) for path in (folder, other) if path is not None]
    everything = shows_all(wide)
    view = beside(*results, wide=everything) if other is not None else terminal(results[0], wide=everything)
    drawn = picture(results[0], None if everything else console().width) if svg else ""
    texts = [(html, render_html(results[0], folder) if html else ""), (svg, drawn)]
    if png:
        pngs(results[0], png)
    for path, text in texts:
        if path is not None:
            artifact_writer.write_text(path, text)
    written = [result.to_json() for result in results]
    print_result(written[0] if other is None else written, as_json, lambda: view)
    if other is None and not as_json:
        _print_next_steps(results[0], folder)


def _print_next_steps(result: Comparison, folder: Path) -> None:
    """Print the commands that use the recommended row, unfolded, so that they can be copied."""
    from tunewise.results.report.tables import next_lines

    lines = next_lines(result, folder)
    if lines:
        echo("\n" + "\n".join(lines))


def _read_comparison(folder: Path) -> Comparison:
    """Read the content of a comparison's `compare.json`."""
    from tunewise.results.schema import Comparison

    if not (folder / "compare.json").is_file():
        raise SettingError(f"{folder}: holds no comparison (no compare.json); give the --out of tunewise compare")
    return Comparison.read(folder / "compare.json")


def demo(
    out: Out = Path("tunewise-demo"),
    task: Annotated[str, typer.Option(help="Task: town, reviews, records, skill or letters.")] = "town",
    techniques: Techniques = COMPARED,
    all_techniques: Annotated[bool, typer.Option("--all", help="Compare every technique.")] = False,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """Compare techniques on the shipped model and its tasks, offline; the default eight take under three minutes."""
    from tunewise.data import world

    options = CompareOptions(
        model="world",
        data=f"world:{task}",
        out=out / task,
        budget=BudgetOptions(budget_steps=100),
        techniques="all" if all_techniques else techniques,
        forgetting=ForgettingOptions(retention="world:text", probe="world:memory"),
        training=TrainOptions(batch_size=16),
    )
    sources = [source_task.source for source_task in world.sources().values()]
    _compare(
        Request(options=options, default_sources=sources, started=time.monotonic(), command=_command_line()),
        ShownOptions(wide=wide, as_json=as_json),
    )


def _command_line() -> list[str]:
    """Return the arguments of this command line, which a comparison records."""
    return ["tunewise", *sys.argv[1:]]


def _compare(request: Request, shown: ShownOptions, how: RunOptions | None = None) -> None:
    """Run the comparison and print it; raise `TunewiseError` if no technique finished."""
    from tunewise.cli.spending import Consent
    from tunewise.comparison.workers import Workers

    how = how or RunOptions()
    if how.workers is not None:
        if Workers.read(how.workers).address is not None:
            require(f"--workers {how.workers}", "ray")
        if how.in_process:
            raise SettingError("--workers runs trials in processes of their own, and --in-process in this one")
    elif how.mixed:
        raise SettingError("--mixed is for the devices of several workers; give their number with --workers")
    consent = Consent(how.yes, request.options.budget.budget_minutes)
    with progress_display() as display:

        def on_estimate(estimate: Estimate) -> None:
            with display.paused():
                consent(estimate)
            display.expect(estimate)

        if how.in_process:
            from tunewise.comparison.invocation import Invocation

            callbacks = Invocation(
                on_row_start=display.row_starts,
                on_row=display.rows,
                on_message=display.message,
                on_estimate=on_estimate,
            )
            result = request.run(display, callbacks)
        else:
            from tunewise.comparison.supervisor import supervise

            result = supervise(
                request,
                patience=how.patience,
                workers=how.workers,
                mixed=how.mixed,
                progress=display,
                on_row_start=display.row_starts,
                on_row=display.rows,
                on_message=display.message,
                on_estimate=on_estimate,
            )
    out = request.options.out
    if shown.as_json:
        print_json(result.to_json())
    else:
        from tunewise.results.report.tables import terminal

        print_result(result.to_json(), False, lambda: terminal(result, wide=shows_all(shown.wide)))
        _print_next_steps(result, out)
        print_text(f"\nReport: {out / 'report.html'} and report.md")
    if not any(row.status == "ok" for row in result.rows):
        raise TunewiseError(f"no technique finished; the reasons are in {out / 'compare.json'}")
