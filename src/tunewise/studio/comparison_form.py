"""The form of a new comparison: techniques, budget, and the command that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from tunewise.core.errors import TunewiseError
from tunewise.resolve import COMPARED
from tunewise.studio import commands
from tunewise.studio.parts import button, command, controls, element, number, paragraph
from tunewise.studio.workspace import Workspace

_PAUSE = 2.0  # seconds until another comparison can be started
_BUDGETS = {"chosen": "chosen by tunewise", "steps": "steps", "epochs": "epochs", "minutes": "minutes in all"}


class ComparisonForm:
    """The controls of a new comparison; `start` begins it."""

    def __init__(self, workspace: Workspace, start: Callable[[], None]) -> None:
        self._workspace = workspace
        choices = workspace.choices
        paragraph(f"{choices.data or 'no data'} with {choices.model or 'no model'}, as chosen under Data.", "small")
        names = list(dict.fromkeys([*workspace.technique_names(), *choices.techniques]))
        with controls("Techniques"):
            self._boxes = {
                name: ui.checkbox(name, value=name in choices.techniques, on_change=self._take_boxes) for name in names
            }
        with controls("Choice of techniques"):
            button("None", lambda: self._set_boxes(()))
            button("The usual ones", lambda: self._set_boxes(COMPARED.split(",")))
            button("All", lambda: self._set_boxes(names))
            ui.checkbox(
                "All that could win, best first, until it is settled",
                value=choices.advised,
                on_change=lambda event: self._choose(advised=bool(event.value)),
            )
        with controls("Budget"):
            ui.select(
                _BUDGETS,
                label="Training of each technique",
                value=choices.budget_kind,
                on_change=lambda event: self._choose(budget_kind=event.value),
            ).props("outlined dense")
            self._number("Number", "budget", float, 1)
            self._number("Search, in trainings", "search", int, 1)
            self._number("Seeds", "seeds", int, 1)
            self._number("Test examples (0: the default)", "test_examples", int, 0)
        with controls("Documents"):
            ui.input(
                "Documents to search (folder or index)",
                value=choices.knowledge,
                on_change=lambda event: self._choose(knowledge=(event.value or "").strip()),
            ).props("outlined dense")
        with controls("Name"):
            self._name = ui.input(
                "Name of its folder",
                value=choices.name,
                placeholder=workspace.new_name(),
                on_change=lambda event: self._choose(name=(event.value or "").strip()),
            ).props("outlined dense stack-label")
            ui.checkbox(
                "Go on if it takes more than an hour",
                value=choices.long,
                on_change=lambda event: self._choose(long=bool(event.value)),
            )
            self._begin = button("Start the comparison", start, main=True)
        self._command = element("div")
        self._show_command()

    def started(self) -> None:
        """Make room for the next name; a second click right after the first is none."""
        self._begin.disable()
        ui.timer(_PAUSE, self._begin.enable, once=True)
        self._name.set_value("")
        self._name.props["placeholder"] = self._workspace.new_name()

    def _set_boxes(self, names: Sequence[str]) -> None:
        for name, box in self._boxes.items():
            box.set_value(name in names)

    def _take_boxes(self) -> None:
        self._choose(techniques=tuple(name for name, box in self._boxes.items() if box.value))

    def _number(self, label: str, name: str, kind: type[int] | type[float], least: int) -> None:
        def change(number: float) -> None:
            self._choose(**{name: kind(number)})

        value = getattr(self._workspace.choices, name)
        number(label, value, least, kind, change)

    def _choose(self, **values: object) -> None:
        self._workspace.choose(**values)
        self._show_command()

    def _show_command(self) -> None:
        workspace = self._workspace
        self._command.clear()
        with self._command:
            try:
                name = commands.folder_name(workspace.choices.name or workspace.new_name())
                command(commands.compare(workspace.choices, workspace.root / name, workspace.searching()))
            except TunewiseError as error:
                paragraph(str(error), "alert")
