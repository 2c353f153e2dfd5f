"""The first step: the data as the model sees it, with its format, counts, lengths, problems and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from nicegui import ui

from tunewise.core.errors import SettingError
from tunewise.core.json_record import JsonObject
from tunewise.studio import commands
from tunewise.studio.file_browser import FileBrowser
from tunewise.studio.job_watch import JobWatch
from tunewise.studio.parts import Head, Line, button, command, controls, details, element, heading, paragraph, table
from tunewise.studio.workspace import Workspace

_PAGE = 10  # rows or examples that are shown at a time
_PROBLEMS = Head("Rows with problems", ("split", "row", "problem", "text"), frozenset({0, 2, 3}))


class DataPage:
    """The page of the data."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        choices = workspace.choices
        heading("Data", 1)
        paragraph("A file, a folder with a file for each split, a Hub id, or world:TASK, which is shipped.", "small")
        self._browser = FileBrowser(self._take)
        with controls("Model and data"):
            ui.input("Model", value=choices.model, on_change=lambda event: self._choose(model=event.value)).props(
                "outlined dense"
            )
            self._data = ui.input(
                "Data", value=choices.data, on_change=lambda event: self._choose(data=event.value)
            ).props("outlined dense")
            button("Browse …", lambda: self._browser.open(workspace.choices.data))
        with details("How it is read"), controls("How it is read"):
            ui.input(
                "Columns, as prompt=q,completion=a",
                value=choices.columns,
                on_change=lambda event: self._choose(columns=event.value),
            ).props("outlined dense")
            ui.checkbox(
                "Leave out rows that cannot be used (--skip-bad-rows)",
                value=choices.skip_bad_rows,
                on_change=lambda event: self._choose(skip_bad_rows=event.value),
            )
        with controls("Check"):
            button("Check the data", lambda: self._watch.start(self._words), main=True)
        self._watch = JobWatch(workspace, "check", self._render)
        self._command = element("div")
        self._show_command()
        with suppress(SettingError):
            self._watch.watch(workspace.latest("check", self._words()))

    def _words(self) -> list[str]:
        return commands.check(self._workspace.choices)

    def _take(self, path: str) -> None:
        self._data.set_value(path)

    def _choose(self, **values: object) -> None:
        self._workspace.choose(**{name: value or type(value)() for name, value in values.items()})
        self._show_command()

    def _show_command(self) -> None:
        self._command.clear()
        with self._command, suppress(SettingError):
            command(self._words())
            self._watch.mark_stale(self._words())

    def _render(self, result: JsonObject) -> None:
        heading("What it is")
        counts = ", ".join(f"{count:,} {split}" for split, count in result["counts"].items())
        paragraph(
            f"{result['name']}: {result['kind']}, format {result['format']}, scored by {result['metric']}; {counts}."
        )
        if result.get("skipped"):
            skipped = result["skipped"]
            paragraph("1 bad row was left out." if skipped == 1 else f"{skipped:,} bad rows were left out.")
        for note in [*result["notes"], *result.get("notes_of_model", [])]:
            paragraph(str(note), "small")
        if result["labels"]:
            self._labels(result["labels"])
        if "histogram" in result:
            self._lengths(result)
        self._problems(result["problems"])
        if result.get("examples"):
            self._examples(result["examples"])

    def _labels(self, labels: dict[str, dict[str, int]]) -> None:
        splits = list(next(iter(labels.values())))
        lines = [Line([label, *(f"{counts[split]:,}" for split in splits)]) for label, counts in labels.items()]
        with details(f"Labels: {len(labels)}", opened=len(lines) <= 6):
            table(Head("Labels", ("label", *splits)), lines[:200])

    def _lengths(self, result: JsonObject) -> None:
        tokens, bins = result["tokens"], result["histogram"]
        heading("Lengths")
        paragraph(
            f"{tokens['shortest']:,} to {tokens['longest']:,} tokens, {tokens['mean']:,.0f} on average; the window of "
            f"{result['model']} is {result['window']:,}."
        )
        most = max(each["examples"] for each in bins)
        with element("table", classes="bars"):
            element("caption", "Training examples by their length in tokens", "small")
            with element("tbody"):
                for each in bins:
                    with element("tr"):
                        element("th", f"up to {each['up_to']:,}", scope="row")
                        with element("td"):
                            element("div", classes="bar").style(f"width: {100 * each['examples'] / most:.1f}%")
                        element("td", f"{each['examples']:,}")

    def _problems(self, problems: Sequence[JsonObject]) -> None:
        heading("Problems")
        if not problems:
            paragraph("No row repeats another one, contradicts it, is in train and held out, or exceeds the window.")
            return
        lines = [
            Line([each["split"], str(each["row"] or ""), each["problem"], each["text"]], style="bad")
            for each in problems
        ]
        paragraph("1 row:" if len(lines) == 1 else f"{len(lines):,} rows:")
        Pages(len(lines), lambda first: table(_PROBLEMS, lines[first : first + _PAGE]), "problems")

    def _examples(self, examples: Sequence[JsonObject]) -> None:
        heading("As the model sees it")
        paragraph("What is learnt is marked; the rest is read and not learnt.", "small")
        Pages(len(examples), lambda first: _draw_examples(examples[first : first + _PAGE]), "examples")


def _draw_examples(examples: Sequence[JsonObject]) -> None:
    with element("ol", classes="examples"):
        for each in examples:
            with element("li"):
                row = f"row {each['row']}, " if each["row"] else ""
                element("span", f"{row}{each['tokens']:,} tokens", "small")
                with element("pre"):
                    for text, learnt in each["stretches"]:
                        element("mark" if learnt else "span", str(text))


class Pages:
    """Shows a long list a page at a time.

    Args:
        count: the length of the list.
        draw: shows the page that begins at a place.
        what: what is listed, for the buttons' names.
    """

    def __init__(self, count: int, draw: Callable[[int], None], what: str) -> None:
        self._count, self._draw_page, self._what, self._first = count, draw, what, 0
        self._box = element("div")
        if count > _PAGE:
            with controls(f"Pages of {what}"):
                self._before = button("‹ before", lambda: self._go(-_PAGE))
                self._before.props["aria-label"] = f"{what} before"
                self._where = element("span", "", "small", role="status")
                self._next = button("next ›", lambda: self._go(_PAGE))
                self._next.props["aria-label"] = f"next {what}"
        self._draw()

    def _go(self, step: int) -> None:
        self._first = min(max(self._first + step, 0), (self._count - 1) // _PAGE * _PAGE)
        self._draw()

    def _draw(self) -> None:
        self._box.clear()
        with self._box:
            self._draw_page(self._first)
        if self._count > _PAGE:
            last = min(self._first + _PAGE, self._count)
            self._where.set_text(f"{self._first + 1:,} to {last:,} of {self._count:,}")  # type: ignore[attr-defined]
            self._before.set_enabled(self._first > 0)
            self._next.set_enabled(last < self._count)
