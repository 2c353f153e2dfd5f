"""The third step: comparisons, started, stopped and continued here, and followed while they run."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nicegui import ui

from tunewise.core.errors import SettingError, TunewiseError
from tunewise.core.text import visible
from tunewise.core.units import duration
from tunewise.results.report.tables import heading as describe
from tunewise.studio import commands
from tunewise.studio.comparison_form import ComparisonForm
from tunewise.studio.parts import alert, button, command, controls, details, element, heading, paragraph, status
from tunewise.studio.run_view import RunView, beside_view
from tunewise.studio.runs import Run
from tunewise.studio.workspace import Workspace

_SHOWN = 30  # comparisons that are listed until all are asked for
_TICK = 1.0  # seconds between two looks at the folders
_STATES = {"running": "running", "finished": "finished", "stopped": "not finished", "failed": "failed"}


class ComparisonPage:
    """The page of the comparisons."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        runs = workspace.runs.all()
        heading("Compare", 1)
        with details("New comparison", opened=not runs):
            self._form = ComparisonForm(workspace, self._start)
        self._problem = element("div")
        heading("Comparisons")
        self._list = RunList(workspace, self._show)
        self._view_box = element("section", aria_label="The chosen comparison")
        self._view: RunView | None = None
        self._beside_key: tuple[object, ...] = ()
        with self._view_box:
            self._name = element("h2", "")
            self._actions = Actions(workspace)
            self._place = element("div")
            self._beside_choice = ui.select(
                {"": "no other"}, label="Side by side with", value="", on_change=self._choose_beside
            ).props("outlined dense")
            self._beside_place = element("div")
        self._view_box.set_visibility(False)
        ui.timer(_TICK, self._tick)  # at once for the first time, when the page is shown already

    def _start(self) -> None:
        workspace = self._workspace
        self._problem.clear()
        try:
            name = commands.folder_name(workspace.choices.name.strip() or workspace.new_name())
            out = workspace.root / name
            if out.is_symlink():
                raise SettingError(f"{name} is a link to another folder; choose another name")
            run = workspace.runs.find(name)
            if run is not None and run.state == "running":
                raise SettingError(f"{name} is running; stop it first, or choose another name")
            workspace.jobs.start("compare", commands.compare(workspace.choices, out, workspace.searching()), target=out)
        except TunewiseError as error:
            with self._problem:
                alert(str(error))
            return
        workspace.choose(run=name, name="", beside="")
        self._form.started()
        self._tick()

    def _show(self, name: str) -> None:
        self._workspace.choose(run=name)
        self._tick()

    def _tick(self) -> None:
        runs = self._workspace.runs.all()
        current = next((run for run in runs if run.name == self._workspace.choices.run), runs[0] if runs else None)
        self._list.update(runs, current)
        self._view_box.set_visibility(current is not None)
        if current is None:
            return
        self._name.set_text(current.name)  # type: ignore[attr-defined]
        self._actions.update(current)
        if self._view is None or self._view.folder != current.folder:
            self._place.clear()
            with self._place:
                self._view = RunView(current.folder)
        self._view.update(current)
        self._update_beside(runs, current)

    def _update_beside(self, runs: list[Run], current: Run) -> None:
        others = {"": "no other"} | {run.name: run.name for run in runs if run.result and run.name != current.name}
        chosen = self._workspace.choices.beside if self._workspace.choices.beside in others else ""
        if self._beside_choice.options != others or self._beside_choice.value != chosen:
            self._beside_choice.set_options(others, value=chosen)
        other = next((run for run in runs if run.name == chosen), None)
        key = (current.name, id(current.result), chosen, id(other.result) if other else None)
        if key == self._beside_key:
            return
        self._beside_key = key
        self._beside_place.clear()
        if other is not None and other.result is not None and current.result is not None:
            with self._beside_place:
                beside_view(current, other)

    def _choose_beside(self) -> None:
        self._workspace.choose(beside=str(self._beside_choice.value or ""))
        self._tick()


class Actions:
    """How a comparison stands, with the buttons that stop and continue it, and its command."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._run: Run | None = None
        self._key: tuple[object, ...] = ()
        self._status = status()
        with controls("This comparison"):
            self._stop = button("Stop", self._stop_run)
            self._continue = button("Continue", self._continue_run)
        self._problem = element("div")
        self._command = element("div")

    def update(self, run: Run) -> None:
        """Show how the comparison stands now."""
        self._run = run
        job = run.job
        progress = job.progress if job is not None and run.state == "running" else ""
        self._status.set_text(f"{_STATES[run.state]}{f': {progress}' if progress else ''}")
        self._stop.set_visibility(run.state == "running")
        self._continue.set_visibility(run.may_continue)
        key = (run.name, run.problem, tuple(run.words))
        if key == self._key:
            return
        self._key = key
        self._problem.clear()
        with self._problem:
            if run.problem:
                alert(run.problem)
        self._command.clear()
        with self._command:
            if run.words:
                command(run.words, "This comparison on the command line")

    def _stop_run(self) -> None:
        if self._run is not None:
            self._workspace.runs.stop(self._run)

    def _continue_run(self) -> None:
        if self._run is not None and self._run.may_continue:
            self._workspace.jobs.start("compare", self._run.words, target=self._run.folder)


class RunList:
    """The comparisons of the folder, in a table with a button for each."""

    def __init__(self, workspace: Workspace, show: Callable[[str], None]) -> None:
        self._workspace, self._show = workspace, show
        self._box = element("div")
        self._key: tuple[object, ...] = ()
        self._most = _SHOWN

    def update(self, runs: list[Run], current: Run | None) -> None:
        """Show the list where it has changed."""
        listed = [run for place, run in enumerate(runs) if place < self._most or run is current]
        hidden = len(runs) - len(listed)
        key = (
            hidden,
            *(
                (run.name, run.state, id(run.result), current is not None and run.name == current.name)
                for run in listed
            ),
        )
        if key == self._key and runs:
            return
        self._key = key
        self._box.clear()
        with self._box:
            if not runs:
                paragraph(f"There is none yet in {self._workspace.root}.")
                return
            with element("ul", classes="runs"):
                for run in listed:
                    self._entry(run, current is not None and run.name == current.name)
            if hidden:
                button(f"Show {hidden} older ones", self._show_all)

    def _show_all(self) -> None:
        self._most = sys.maxsize

    def _entry(self, run: Run, is_current: bool) -> None:
        with element("li", classes="current" if is_current else ""):
            opener = ui.button(visible(run.name), on_click=lambda: self._show(run.name), color=None).props(
                "flat no-caps dense"
            )
            if is_current:
                opener.props["aria-current"] = "true"
            element("span", _STATES[run.state], f"mark {run.state}")
            result = run.result
            if result is not None:
                best = f"; recommended: {result.recommended}" if result.recommended else ""
                rows = f"{len(result.rows)} of {len(run.asked)} rows" if run.waiting else f"{len(result.rows)} rows"
                took = f", {duration(result.seconds)}" if result.seconds else ""
                element("span", f"{describe(result)}; {rows}{took}{best}", "small")
