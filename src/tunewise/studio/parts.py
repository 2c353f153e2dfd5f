"""Pieces that several pages are made of. Every text goes to the browser as text: no name and no answer is ever HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from nicegui import ui

from tunewise.core.text import visible
from tunewise.studio.commands import shown
from tunewise.studio.jobs import Job

_COPY = """(event) => {
  const button = event.currentTarget, text = button.parentElement.querySelector('pre').textContent;
  navigator.clipboard.writeText(text).then(() => {
    button.querySelector('.block').textContent = 'copied';
    setTimeout(() => { button.querySelector('.block').textContent = 'copy'; }, 1500);
  });
}"""


@dataclass(frozen=True)
class Line:
    """A line of a table: its cells, a note behind the first one, and whether it stands out or is ruled out."""

    cells: Sequence[str]
    marks: Sequence[str] = ()
    style: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Head:
    """The head of a table; the columns in `words` hold text, the others numbers."""

    caption: str
    names: Sequence[str]
    words: frozenset[int] = field(default=frozenset({0}))


def element(tag: str, text: str | None = None, classes: str = "", **properties: str) -> ui.element:
    """Make an element of HTML with text in it, which is never read as HTML."""
    made = TextElement(tag, visible(text)) if text is not None else ui.element(tag)
    for name, value in properties.items():
        made.props[name.rstrip("_").replace("_", "-")] = value
    return made.classes(classes) if classes else made


class TextElement(ui.label):
    """A label with a tag of its own."""

    def __init__(self, tag: str, text: str) -> None:
        super().__init__(text)
        self.tag = tag


def heading(text: str, level: int = 2) -> None:
    """Show a heading."""
    element(f"h{level}", text)


def paragraph(text: str, classes: str = "") -> ui.element:
    """Show a paragraph."""
    return element("p", text, classes)


def table(head: Head, lines: Sequence[Line]) -> None:
    """Show a table that can be scrolled sideways, also by the keyboard."""
    with element("div", classes="scroll", tabindex="0", role="region", aria_label=head.caption), element("table"):
        element("caption", head.caption, "hidden")
        with element("thead"), element("tr"):
            for place, name in enumerate(head.names):
                element("th", name, "words" if place in head.words else "", scope="col")
        with element("tbody"):
            for line in lines:
                _line(head, line)


def _line(head: Head, line: Line) -> None:
    with element("tr", classes=line.style):
        with element("th", scope="row"):
            element("span", line.cells[0])
            for mark in line.marks:
                element("span", mark, "mark")
        if line.reason:
            with element("td", classes="words", colspan=str(max(len(head.names) - 1, 1))):
                element("span", line.reason, "reason")
            return
        for place, cell in enumerate(line.cells[1:], 1):
            element("td", cell, "words" if place in head.words else "")


def command(words: Sequence[str], label: str = "The same on the command line") -> None:
    """Show a command line with a button that copies it."""
    command_text(shown(words), label)


def command_text(text: str, label: str) -> None:
    """Show a command line that is given as text."""
    with element("div", classes="command"):
        element("span", label, "small")
        element("pre", text, tabindex="0", role="region", aria_label=label)
        copy = ui.button("copy", color=None).props("flat dense no-caps")
        copy.props["aria-label"] = f"copy: {label}"
        copy.on("click", js_handler=_COPY)


def button(text: str, act: Callable[..., object], *, main: bool = False) -> ui.button:
    """Show a button."""
    made = ui.button(text, on_click=act, color=None).props("no-caps unelevated" if main else "no-caps outline")
    return made.classes("main" if main else "")


def alert(text: str) -> ui.element:
    """Show what went wrong."""
    return element("p", text, "alert", role="alert")


def status(text: str = "") -> TextElement:
    """Show a line that a screen reader reads aloud when it changes."""
    line = TextElement("p", visible(text))
    line.props["role"] = "status"
    line.classes("small status")
    return line


@contextmanager
def details(summary: str, *, opened: bool = False) -> Iterator[ui.element]:
    """Show a section that is folded until it is opened."""
    with element("details") as section:
        if opened:
            section.props["open"] = True
        element("summary", summary)
        yield section


@contextmanager
def controls(label: str) -> Iterator[None]:
    """Show controls side by side, as a group with a name."""
    with element("div", classes="controls", role="group", aria_label=label):
        yield


def choice(label: str, names: Sequence[str], value: str, choose: Callable[[str], None]) -> None:
    """Show a choice of one of several names; `choose` is told the new one."""
    made = ui.select(list(names), label=label, value=value, on_change=lambda event: choose(event.value))
    made.props("outlined dense")


def number(
    label: str, value: float, least: float, kind: type[int] | type[float], choose: Callable[[float], None]
) -> None:
    """Show a field for a number; `choose` is told a new one, and below the field stands why another is not taken."""
    whole = "a whole number" if kind is int else "a number"

    def fits(given: float | None) -> bool:
        return given is not None and given >= least and (kind is float or float(given).is_integer())

    def change(given: float | None) -> None:
        if given is not None and fits(given):
            choose(given)

    made = ui.number(
        label,
        value=value,
        min=least,
        validation={f"{whole} of at least {least:g}; the last one is kept": fits},
        on_change=lambda event: change(event.value),
    )
    made.props("outlined dense")


def job_line(job: Job | None) -> str:
    """Say in a line how a job stands."""
    if job is None:
        return ""
    if job.state == "running":
        return f"running … {job.progress}"
    return {"done": "done", "stopped": "stopped", "failed": job.problem}[job.state]
