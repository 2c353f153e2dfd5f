"""Commands that compare techniques on a task, show a comparison again, and run the demo."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import print_json, print_result, print_text, progress_display
from tunewise.cli.options import Json, Out, Techniques, grouped_options
from tunewise.comparison.request import CompareOptions, ForgettingOptions, Request
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.resolve import COMPARED, TrainOptions

if TYPE_CHECKING:
    from tunewise.results.schema import Comparison

_PATIENCE = 1800  # seconds; as the supervisor has it, which is too heavy to import before it is needed


@grouped_options
def compare(
    options: CompareOptions,
    patience: Annotated[
        float, typer.Option(help="Seconds without progress after which a trial is stopped as hanging.")
    ] = _PATIENCE,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run trials in this process, where a crash ends the comparison.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare techniques under one budget and say which to use; run it again to continue."""
    _compare(Request(options=options, started=time.time(), command=_command_line()), as_json, patience, in_process)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    other: Annotated[
        Path | None, typer.Argument(help="Folder of a second comparison, to show both side by side.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page of HTML to this file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the charts as pictures to this folder.")] = None,
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
    view = beside(*results) if other is not None else terminal(results[0])
    texts = [(html, render_html(results[0]) if html else ""), (svg, picture(results[0]) if svg else "")]
    if png:
        pngs(results[0], png)
    for path, text in texts:
        if path is not None:
            artifact_writer.write_text(path, text)
    written = [result.to_json() for result in results]
    print_result(written[0] if other is None else written, as_json, lambda: view)


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
    as_json: Json = False,
) -> None:
    """Compare techniques on the shipped model and its tasks, offline; the default eight take under three minutes."""
    from tunewise.data import world

    options = CompareOptions(
        model="world",
        data=f"world:{task}",
        out=out / task,
        techniques="all" if all_techniques else techniques,
        forgetting=ForgettingOptions(retention="world:text", probe="world:memory"),
        training=TrainOptions(batch_size=16),
    )
    sources = [source_task.source for source_task in world.sources().values()]
    _compare(Request(options=options, default_sources=sources, command=_command_line()), as_json)


def _command_line() -> list[str]:
    """Return the arguments of this command line, which a comparison records."""
    return ["tunewise", *sys.argv[1:]]


def _compare(request: Request, as_json: bool, patience: float = _PATIENCE, in_process: bool = False) -> None:
    """Run the comparison and print it; raise `TunewiseError` if no technique finished."""
    with progress_display() as display:
        if in_process:
            from tunewise.comparison.invocation import Invocation

            result = request.run(display, Invocation(on_row=display.rows))
        else:
            from tunewise.comparison.supervisor import supervise

            result = supervise(request, patience=patience, progress=display, on_row=display.rows)
    out = request.options.out
    if as_json:
        print_json(result.to_json())
    else:
        from tunewise.results.report.tables import terminal

        print_result(result.to_json(), False, lambda: terminal(result))
        print_text(f"\nReport: {out / 'report.html'} and report.md")
    if not any(row.status == "ok" for row in result.rows):
        raise TunewiseError(f"no technique finished; the reasons are in {out / 'compare.json'}")
