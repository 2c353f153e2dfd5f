"""The registry: every technique is found by being there, and recipes are made by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from tunewise.contract.composed import Composed
from tunewise.contract.technique import FAMILIES, Technique
from tunewise.core.errors import SettingError


@cache
def all_techniques() -> dict[str, type[Technique]]:
    """Every technique by name, in the order of the taxonomy: found in `tunewise.techniques` and in plug-ins."""
    package = importlib.import_module(__package__)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(f"{__package__}.building"):
            importlib.import_module(module.name)
    for plug_in in entry_points(group="tunewise.techniques"):
        plug_in.load()
    found = [
        cls
        for cls in _subclasses(Technique)  # type: ignore[type-abstract]
        if "name" in vars(cls) and cls is not Composed and not cls.name.startswith(("_", "peft:"))
    ]
    return {cls.name: cls for cls in sorted(found, key=lambda c: (FAMILIES.index(c.family), c.name != "base", c.name))}


def _subclasses(cls: type[Technique]) -> Iterator[type[Technique]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def make(name: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Technique:
    """The recipe called `name`, or several joined by "+", with `settings[technique][setting]` over the defaults.

    Raises:
        SettingError: an unknown technique or setting, with the nearest name, or a value out of range.
        TechniqueError: the named techniques cannot compose.
    """
    if "+" in name:
        return Composed(parts=tuple(make(part, settings) for part in name.split("+")))
    if name.startswith("peft:"):
        from tunewise.techniques import peft_bridge

        return peft_bridge.recipe(name, (settings or {}).get(name, {}))
    cls = all_techniques().get(name)
    if cls is None:
        raise SettingError(f'there is no technique "{name}"{_nearest(name, all_techniques())}')
    known = {item.name for item in fields(cls)}
    given = dict((settings or {}).get(name, {}))
    for key in given:
        if key not in known:
            raise SettingError(f'{name} has no setting "{key}"{_nearest(key, known)}')
    return cls(**given)


def _nearest(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), 1)
    return f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(sorted(known)) or 'none'}"
