"""Finds what other packages add to tunewise: the entry points of a group, loaded and checked."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, cast

from tunewise.core.errors import SettingError

_T = TypeVar("_T")


def plug_ins(group: str, kind: type[_T]) -> list[_T]:
    """Return what installed packages add under an entry-point group, in the order of the entry points' names.

    Raises:
        SettingError: one of them cannot be imported, or is of another kind; it is named with its package.
    """
    return cast(list[_T], _loaded(group, cast(type, kind)))


@cache
def _loaded(group: str, kind: type) -> list[object]:
    return [_load(entry, kind) for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)]


def _load(entry: EntryPoint, kind: type) -> object:
    package = entry.dist.name if entry.dist is not None else "an unknown package"
    place = f'the plug-in {entry.name} = "{entry.value}" of {package}'
    try:
        value = entry.load()
    except Exception as error:  # the plug-in's own code
        raise SettingError(f"{place} cannot be imported ({error!r}); mend it, or uninstall the package") from error
    if not isinstance(value, kind):
        raise SettingError(f"{place} is a {type(value).__name__} and must be a {kind.__name__}")
    return value


def refuse_taken(names: list[str], what: str, taken: set[str]) -> None:
    """Refuse plug-ins whose names are taken: by tunewise itself, or by one another.

    Raises:
        SettingError: names the first of them.
    """
    for place, name in enumerate(names):
        if name in taken or name in names[:place]:
            raise SettingError(f"{what} {name} is defined twice; uninstall one of the packages that define it")
