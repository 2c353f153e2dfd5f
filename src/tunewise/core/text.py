"""Makes text for people: names from files that are safe to print, lists, one-line errors."""

from __future__ import annotations

from collections.abc import Iterable


def show(name: str, limit: int = 60) -> str:
    """Make a name from a file safe to print: control characters and lone surrogates escaped, long names truncated."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name[:limit])
    return text + "…" if len(name) > limit else text


def listed(names: Iterable[str]) -> str:
    """Join names for a message: quoted, in order, at most twelve."""
    quoted = [f'"{show(name)}"' for name in names]
    return ", ".join(quoted[:12]) + (f" and {len(quoted) - 12} more" if len(quoted) > 12 else "")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return show(lines[0], 200).rstrip(".") if lines else type(error).__name__


def one_line(error: Exception) -> str:
    """Return the whole message of an error on one line, of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
