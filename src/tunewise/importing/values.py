"""Reads the values of entries in the types that are expected; what has another type is an error with its line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from tunewise.importing.source import Entry, Source

_T = TypeVar("_T")


def optional(read: Callable[[Entry], _T], source: Source, *keys: str) -> _T | None:
    """Return the value of the first of these keys that the file gives, read by `read`, or None."""
    key = next((key for key in keys if source.value(key) is not None), None)
    return None if key is None else read(source.entries[key])


def is_true(source: Source, *keys: str) -> bool:
    """Tell whether any of these keys is true."""
    return any(yes_no(source.entries[key]) for key in keys if source.value(key) is not None)


def text(entry: Entry) -> str:
    """Return a text that is not blank."""
    if not isinstance(entry.value, str) or not entry.value.strip():
        raise entry.error("text")
    return entry.value.strip()


def yes_no(entry: Entry) -> bool:
    """Return true or false; both may be written as text."""
    words = {"true": True, "false": False}
    if isinstance(entry.value, str) and entry.value.strip().lower() in words:
        return words[entry.value.strip().lower()]
    if not isinstance(entry.value, bool):
        raise entry.error("true or false")
    return entry.value


def number(entry: Entry) -> float:
    """Return a finite number; YAML reads 1e-4 as text."""
    value = entry.value
    try:
        converted = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        converted = math.nan
    if not math.isfinite(converted):
        raise entry.error("a number")
    return converted


def whole(entry: Entry) -> int:
    """Return a whole number that 64 bits hold."""
    value = number(entry)
    if value != int(value) or abs(value) >= 2**63:
        raise entry.error("a whole number")
    return int(value)


def names(entry: Entry) -> list[str]:
    """Return names: a list, or a text in which commas separate them."""
    value = entry.value
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise entry.error("names, as a list or separated by commas")
    return [part.strip() for part in parts]
