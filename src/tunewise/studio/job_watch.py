"""Runs a command for a page and shows what it says while it runs, then its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from tunewise.core.errors import TunewiseError
from tunewise.core.json_record import JsonObject
from tunewise.studio.jobs import Job
from tunewise.studio.parts import alert, button, element, job_line, status
from tunewise.studio.workspace import Workspace

TICK = 0.5  # seconds between two looks at what runs


class JobWatch:
    """The line that shows a job, with a button to stop it, and the place for its result.

    Args:
        workspace: whose jobs they are.
        kind: the kind of job.
        render: shows a result in the place for it.
    """

    def __init__(self, workspace: Workspace, kind: str, render: Callable[[JsonObject], None]) -> None:
        self._workspace, self._kind, self._render = workspace, kind, render
        self.job: Job | None = None
        self._drawn: tuple[str, str] | None = None
        with element("div", classes="watch"):
            self._status = status()
            self._stop = button("Stop", self._stop_job)
            self._stop.set_visibility(False)
        self._note = element(
            "p", "What stands below was found for other choices; begin again for these.", "small stale"
        )
        self._note.set_visibility(False)
        self.place = element("div", aria_live="polite")
        ui.timer(TICK, self.tick)

    def start(self, words: Callable[[], Sequence[str]]) -> None:
        """Start the command; where it is refused before it begins, show why."""
        try:
            given = list(words())
        except TunewiseError as error:
            self._show_problem(str(error))
            return
        if self.job is not None and self.job.is_running and list(self.job.record.words) == given:
            return
        try:
            job = self._workspace.jobs.start(self._kind, given)
        except TunewiseError as error:
            self._show_problem(str(error))
            return
        self.place.clear()  # what an earlier one found is not its result
        self.watch(job)

    def watch(self, job: Job | None) -> None:
        """Show a job, also one that is over."""
        self.job, self._drawn = job, None
        self._note.set_visibility(False)
        self.tick()

    def mark_stale(self, words: Sequence[str]) -> None:
        """Say so where what is shown was not found by the command with these words."""
        self._note.set_visibility(self.job is not None and list(self.job.record.words) != list(words))

    def tick(self) -> None:
        """Show how the job stands now."""
        if self.job is None:
            return
        state = self.job.state
        line = job_line(self.job) if state != "failed" else ""
        if self._drawn == (state, line):
            return
        changed = self._drawn is None or self._drawn[0] != state
        self._drawn = (state, line)
        self._status.set_text(line)
        self._stop.set_visibility(state == "running")
        if not changed or state == "running":
            return
        result = self.job.result()
        if result is not None:
            self.place.clear()
            with self.place:
                self._render(result)
        elif state == "failed":
            self._show_problem(self.job.problem)

    def _show_problem(self, problem: str) -> None:
        self.place.clear()
        with self.place:
            alert(problem)

    def _stop_job(self) -> None:
        if self.job is not None:
            self.job.stop()
