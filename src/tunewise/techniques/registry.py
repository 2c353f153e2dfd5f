"""The registry: finds every technique in this package and in plug-ins, and makes recipes by name."""

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
    """Return every technique by name, in the order of the taxonomy: those in `tunewise.techniques` and in plug-ins.

    Examples:
        >>> list(all_techniques())[:4]
        ['base', 'icl', 'rag', 'full']
    """
    package = importlib.import_module(__package__)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(f"{__package__}.building"):
            importlib.import_module(module.name)
    for plug_in in entry_points(group="tunewise.techniques"):
        plug_in.load()
    classes = [
        cls
        for cls in _subclasses(Technique)  # type: ignore[type-abstract]
        if "name" in vars(cls) and cls is not Composed and not cls.name.startswith(("_", "peft:"))
    ]
    return {
        cls.name: cls for cls in sorted(classes, key=lambda c: (FAMILIES.index(c.family), c.name != "base", c.name))
    }


def _subclasses(cls: type[Technique]) -> Iterator[type[Technique]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def make(name: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Technique:
    """Make the recipe called `name`, or several joined by "+", with `settings[technique][setting]` over the defaults.

    Raises:
        SettingError: an unknown technique or setting, with the nearest name, or a value out of range.
        TechniqueError: the named techniques cannot compose.

    Examples:
        >>> make("rag+lora", {"lora": {"r": 8}}).name
        'rag+lora'
        >>> make("lorra")
        Traceback (most recent call last):
        tunewise.core.errors.SettingError: ...
    """
    if "+" in name:
        return Composed(parts=tuple(make(part, settings) for part in name.split("+")))
    if name.startswith("peft:"):
        from tunewise.techniques import peft_bridge

        return peft_bridge.recipe(name, (settings or {}).get(name, {}))
    cls = all_techniques().get(name)
    if cls is None:
        raise SettingError(f'there is no technique "{name}"{_suggestion(name, all_techniques())}')
    setting_names = {item.name for item in fields(cls)}
    values = dict((settings or {}).get(name, {}))
    for key in values:
        if key not in setting_names:
            raise SettingError(f'{name} has no setting "{key}"{_suggestion(key, setting_names)}')
    return cls(**values)


def _suggestion(name: str, names: Any) -> str:
    matches = get_close_matches(name, list(names), 1)
    return f'; did you mean "{matches[0]}"?' if matches else f"; there are {', '.join(sorted(names)) or 'none'}"
