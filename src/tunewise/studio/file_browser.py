"""A dialog in which a file or folder of this machine is chosen; names are shown as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nicegui import ui

from tunewise.core.text import show
from tunewise.studio.parts import button, element, heading

_MOST = 500  # entries of a folder that are listed


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files of a folder by name, without hidden ones; none where it cannot be read."""
    try:
        entries = sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
        )
        folders = [path for path in entries if path.is_dir()]
        return folders[:_MOST], [path for path in entries if path.is_file()][:_MOST]
    except OSError:
        return [], []


def named(path: Path) -> str:
    """Return a path as a user would type it: relative to the current folder where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) and path != here else str(path)


class FileBrowser:
    """The dialog; `chosen` is called with the path."""

    def __init__(self, chosen: Callable[[str], None]) -> None:
        self._chosen = chosen
        self._folder = Path.cwd()
        with ui.dialog() as self._dialog, ui.card().classes("browser"):
            self._dialog.props["aria-label"] = "Choose a file or folder"
            self._box = element("div")

    def open(self, start: str = "") -> None:
        """Show the folder of a path, or the current one."""
        path = Path(start).expanduser() if start else Path.cwd()
        self._folder = next((each for each in (path, *path.parents) if each.is_dir()), Path.cwd()).resolve()
        self._draw()
        self._dialog.open()

    def _draw(self) -> None:
        folders, files = listing(self._folder)
        self._box.clear()
        with self._box:
            heading("Choose a file or folder")
            element("p", str(self._folder), "small")
            with element("div", classes="controls"):
                button("Take this folder", lambda: self._take(self._folder), main=True)
                button("Close", self._dialog.close)
            with element("ul", classes="files"):
                if self._folder.parent != self._folder:
                    self._entry("↑ the folder above", self._folder.parent)
                for path in folders:
                    self._entry(f"{show(path.name)}/", path)
                for path in files:
                    self._entry(show(path.name), path)

    def _entry(self, text: str, path: Path) -> None:
        with element("li"):
            ui.button(text, on_click=lambda: self._go(path), color=None).props("flat no-caps dense align=left")

    def _go(self, path: Path) -> None:
        if path.is_dir():
            self._folder = path
            self._draw()
        else:
            self._take(path)

    def _take(self, path: Path) -> None:
        self._dialog.close()
        self._chosen(named(path))
