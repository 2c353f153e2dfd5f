"""Reads and writes numbers with units; no other module does."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tunewise.core.errors import SettingError


def count(number: float) -> str:
    """Write a number of parameters: 812, 24.6k, 3.1M."""
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}B"


def size(number: float) -> str:
    """Write a number of bytes: 812 B, 24.6 kB, 3.1 MB."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def duration(seconds: float) -> str:
    """Write a time as people read it: 0.4 s, 42 s, 3 min 10 s, 1 h 20 min, 2 d 3 h."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    for unit, unit_seconds, part, part_seconds in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= unit_seconds:
            rest = whole % unit_seconds // part_seconds
            return f"{whole // unit_seconds} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def rough_duration(seconds: float) -> str:
    """Write a predicted time no more exactly than it can be known: 40 s, 21 min, 1 h 20 min."""
    if seconds < 90:
        return f"{max(5 * math.ceil(seconds / 5), 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else duration(60 * minutes)


# The value of each unit, in bytes and in seconds.
BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def quantity(option: str, text: str, units: Mapping[str, float]) -> float:
    """Read a number with a unit, such as "24GB".

    Raises:
        SettingError: the text has another form or another unit; the message names the option.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2] not in units:
        raise SettingError(f'{option} is "{text}" but must be a number with one of {", ".join(filter(None, units))}')
    return float(match[1]) * units[match[2]]
