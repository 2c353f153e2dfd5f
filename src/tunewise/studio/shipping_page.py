"""The last step: the winner exported with the proof that it is what was trained, served, and pushed."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from tunewise.core import artifact_reader
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.core.json_record import JsonObject
from tunewise.studio import commands
from tunewise.studio.job_watch import JobWatch
from tunewise.studio.jobs import Job
from tunewise.studio.parts import (
    alert,
    button,
    choice,
    command,
    controls,
    details,
    element,
    heading,
    job_line,
    paragraph,
    status,
)
from tunewise.studio.runs import Run
from tunewise.studio.server_address import address_of
from tunewise.studio.workspace import Workspace

_TICK = 0.5
_PORT = 8000


class ShippingPage:
    """The page that ships an adaptation of a comparison."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        heading("Ship", 1)
        names = [run.name for run in workspace.runs.all() if run.adaptations()]
        value = workspace.chosen_among(names)
        if value is None:
            paragraph("No comparison has an adaptation yet; start one under Compare.")
            return
        with controls("What is shipped"):
            choice("Comparison", names, value, self._choose)
            self._technique = ui.select([], label="Technique", on_change=self._show).props("outlined dense")
        self._place = element("div")
        self._choose(value)

    def _choose(self, name: str) -> None:
        self._workspace.choose(run=name)
        run = self._workspace.runs.find(name)
        self._run = run
        if run is None or run.result is None:
            return
        techniques = list(run.adaptations())
        recommended = run.result.recommended
        value = recommended if recommended in techniques else next(iter(techniques), None)
        self._technique.set_options(techniques, value=value)
        self._show()

    def _show(self) -> None:
        self._place.clear()
        run, technique = self._run, self._technique.value
        if run is None or technique not in run.adaptations():
            return
        with self._place:
            Export(self._workspace, run, technique)
            Serving(self._workspace, run, technique)
            Push(self._workspace, run, technique)


class Export:
    """The export of an adaptation, and those that are there."""

    def __init__(self, workspace: Workspace, run: Run, technique: str) -> None:
        self._workspace, self._run, self._adaptation = workspace, run, run.adaptations()[technique]
        self._technique = technique
        row = next(row for row in run.result.scored if row.technique == technique) if run.result else None
        suggested = row.export_format if row is not None and row.export_format in commands.FORMATS else "merged"
        heading("Export")
        if technique == "base":
            paragraph("The base needs no export.")
            return
        with controls("Export"):
            self._format = ui.select(
                list(commands.FORMATS), label="Format", value=suggested, on_change=self._show_command
            ).props("outlined dense")
            button("Export and compare", lambda: self._watch.start(self._words), main=True)
        self._watch = JobWatch(workspace, "export", self._render)
        self._command = element("div")
        self._show_command()
        with details("Exports that are there"):
            self._list()

    @property
    def _out(self) -> Path:
        name = commands.plain_name(self._technique.replace("+", "-").replace(":", "-"))
        return self._run.folder / "exports" / f"{name}-{self._format.value}"

    def _words(self) -> list[str]:
        return commands.export(self._adaptation, str(self._format.value), self._out, self._run.data_words)

    def _show_command(self) -> None:
        self._command.clear()
        with self._command:
            command(self._words(), "The export on the command line")
        self._watch.place.clear()
        self._watch.watch(self._workspace.latest("export", self._words()))

    def _render(self, record: JsonObject) -> None:
        _parity(record, self._out)

    def _list(self) -> None:
        found = sorted((self._run.folder / "exports").glob("*/parity.json"))
        if not found:
            paragraph("There is none yet.", "small")
        for path in found:
            try:
                _parity(artifact_reader.read_json(path), path.parent)
            except ArtifactError as error:
                alert(str(error))


def _parity(record: JsonObject, folder: Path) -> None:
    """Show in words whether an export is what was trained."""
    from tunewise.export.summary import parity_summary

    try:
        lines = parity_summary(record, folder).splitlines()  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        alert(f"{folder}: parity.json is not as tunewise writes it")
        return
    style = "good" if record.get("same") is True else "alert"
    with element("div", classes=f"parity {style}"):
        for place, line in enumerate(lines):
            paragraph(line, "" if place == 0 else "small")


class Serving:
    """A server of the adaptation with OpenAI's API."""

    def __init__(self, workspace: Workspace, run: Run, technique: str) -> None:
        self._workspace, self._run, self._technique = workspace, run, technique
        heading("Serve")
        paragraph("OpenAI's API on this machine, until it is stopped or the studio ends.", "small")
        with controls("Serve"):
            self._port = ui.number("Port (0: a free one)", value=_PORT, min=0, max=65535, on_change=self._show_command)
            self._port.props("outlined dense")
            self._start = button("Serve it", self._serve, main=True)
            self._stop = button("Stop serving", self._end)
        self._status = status()
        self._command = element("div")
        self._show_command()
        self._tick()
        ui.timer(_TICK, self._tick)

    def _words(self) -> list[str]:
        adaptation = self._run.adaptations()[self._technique]
        return commands.serve({commands.plain_name(self._technique): adaptation}, int(self._port.value or 0))

    def _show_command(self) -> None:
        self._command.clear()
        with self._command:
            command(self._words(), "The server on the command line")

    @property
    def _job(self) -> Job | None:
        return self._workspace.jobs.latest("serve", self._run.folder)

    def _serve(self) -> None:
        self._end()
        self._workspace.jobs.start("serve", self._words(), target=self._run.folder)

    def _end(self) -> None:
        if self._job is not None:
            self._job.stop()

    def _tick(self) -> None:
        job = self._job
        state = job.state if job is not None else "none"
        address = address_of(job) if job is not None else None
        served = ", ".join(_served(job)) if job is not None else ""
        line = f"serving {served} at {address}" if address else job_line(job) if state in ("running", "failed") else ""
        self._status.set_text(line)
        self._start.set_visibility(state != "running")
        self._stop.set_visibility(state == "running")


def _served(job: Job) -> list[str]:
    """Return the names under which a server answers."""
    return [name for word in job.record.words if (name := word.partition("=")[0]) != word]


class Push:
    """The push of the adaptation to the Hugging Face Hub; the only thing on the page that sends anything elsewhere."""

    def __init__(self, workspace: Workspace, run: Run, technique: str) -> None:
        self._folder = run.adaptations()[technique]
        heading("Push")
        paragraph("This sends the adaptation and its card to the Hugging Face Hub.", "small")
        with controls("Push"):
            self._repository = ui.input("Repository, owner/name", on_change=self._show_command).props("outlined dense")
            self._private = ui.checkbox("Private", on_change=self._show_command)
            button("Show the card", lambda: self._watch.start(lambda: self._words(card_only=True)))
            button("Push", lambda: self._watch.start(lambda: self._words(card_only=False)), main=True)
        self._watch = JobWatch(workspace, "push", self._render)
        self._command = element("div")

    def _words(self, *, card_only: bool) -> list[str]:
        repository = str(self._repository.value or "").strip()
        return commands.push(self._folder, repository, private=bool(self._private.value), card_only=card_only)

    def _show_command(self) -> None:
        self._command.clear()
        with self._command:
            try:
                command(self._words(card_only=False), "The push on the command line")
            except SettingError as error:
                paragraph(str(error), "small")

    def _render(self, result: JsonObject) -> None:
        if "card" in result:
            files = ", ".join(str(name) for name in result["files"])
            paragraph(f"The files: {files}", "small")
            element("pre", str(result["card"]), tabindex="0", role="region", aria_label="Model card")
        else:
            paragraph(f"Pushed {len(result['files'])} files to {result['url']}.")
