"""Resolves addresses of what is shipped with the package: `world` is a model, `world:reviews` a task of that world.

Only this module knows the scheme. The owner of a name registers it (`tunewise/__init__.py` does so for `world`).
Readers of tasks, documents, texts and models ask here before they treat an address as a path or a Hub id.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Shipped(Protocol):
    """Describes what a registered loader must return; the module `tunewise.data.world` is one example."""

    MODEL: Path

    def task(self, name: str) -> Any:
        """Return the `Task` called `name`."""

    def documents(self, name: str) -> list[dict[str, str]]:
        """Return the documents that go with a task, each with the keys "id" and "text"."""

    def retention(self) -> list[str]:
        """Return texts that the model should not forget."""


def path_at(address: str | Path) -> Path:
    """Return an address as a path, with the user's folder for ~; ~ of a user that is not known stays as it is."""
    try:
        return Path(address).expanduser()
    except RuntimeError:
        return Path(address)


_registered: dict[str, Callable[[], Shipped]] = {}


def register(scheme: str, load: Callable[[], Shipped]) -> None:
    """Make `scheme` and `scheme:...` addresses of what `load()` returns; `load` is called when one is first used."""
    _registered[scheme] = load


def shipped(address: str) -> tuple[Shipped, str] | None:
    """Return what `world:reviews` belongs to and the name in it ("reviews"), or None for any other address."""
    scheme, colon, name = address.partition(":")
    return (_registered[scheme](), name) if colon and scheme in _registered else None


def shipped_model(address: str) -> Path | None:
    """Return the folder of the model that a bare scheme such as `world` names, or None for any other address."""
    return _registered[address]().MODEL if address in _registered else None
