"""Addresses of what is shipped with the package: `world` is a model, `world:reviews` a task of that world.

One place knows the scheme. Who owns a name registers it (`tunewise/__init__.py` does so for `world`); readers of tasks,
documents, texts and models ask here before they take an address for a path or a Hub id.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Shipped(Protocol):
    """What a registered name must offer; `tunewise.data.world` is one."""

    MODEL: Path

    def task(self, name: str) -> Any:
        """The `Task` called `name`."""

    def documents(self, name: str) -> list[dict[str, str]]:
        """The documents that go with a task, as {"id", "text"}."""

    def retention(self) -> list[str]:
        """Text that the model should not forget."""


_registered: dict[str, Callable[[], Shipped]] = {}


def register(scheme: str, load: Callable[[], Shipped]) -> None:
    """Let `scheme` and `scheme:...` be addresses of what `load()` returns; it is called when one is asked for."""
    _registered[scheme] = load


def shipped(address: str) -> tuple[Shipped, str] | None:
    """What `world:reviews` belongs to and the name within it ("reviews"), or None for any other address."""
    scheme, colon, name = address.partition(":")
    return (_registered[scheme](), name) if colon and scheme in _registered else None


def shipped_model(address: str) -> Path | None:
    """The folder of the model that a bare scheme such as `world` names, or None for any other address."""
    return _registered[address]().MODEL if address in _registered else None
