"""Text for people: names from files made safe to print, lists, one-line errors."""

from __future__ import annotations

from collections.abc import Iterable


def show(name: str, limit: int = 60) -> str:
    """A name from a file, safe to print: control characters and lone surrogates escaped, long ones cut."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name[:limit])
    return text + "…" if len(name) > limit else text


def listed(names: Iterable[str]) -> str:
    """Names for a message: quoted, in order, at most twelve."""
    quoted = [f'"{show(name)}"' for name in names]
    return ", ".join(quoted[:12]) + (f" and {len(quoted) - 12} more" if len(quoted) > 12 else "")


def first_line(error: Exception) -> str:
    """What an error says, as one sentence without its full stop."""
    lines = str(error).strip().splitlines()
    return show(lines[0], 200).rstrip(".") if lines else type(error).__name__
