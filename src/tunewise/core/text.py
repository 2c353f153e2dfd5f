"""Makes text for people: names from files that are safe to print, lists, one-line errors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def show(name: str, limit: int = 60) -> str:
    """Make a name from a file safe to print: control characters and lone surrogates escaped, long names truncated."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name[:limit])
    return text + "…" if len(name) > limit else text


# Controls of terminals, among them those of 8 bits; marks that reorder a line; and separators that act as line ends.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return a text in which every character that would act on a terminal is spelled out; tabs and line feeds stay.

    Spellings are those of JSON, so that JSON stays the same value.

    Examples:
        >>> print(visible("a\x1b[2J"))
        a\u001b[2J
    """
    return _ACTING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def is_encodable(text: str) -> bool:
    """Tell whether a text is Unicode that a file and a tokenizer take: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def inert_markdown(text: object) -> str:
    """Return a text on one line in which nothing acts in Markdown: no HTML, no link, no picture, no code, no cell."""
    plain = " ".join(visible(str(text)).split()).replace("<", "&lt;").replace("`", "'")
    return plain.replace("](", "]&#40;").replace("|", "\\|")


def model_name(name: str, *, local: bool = False) -> str:
    """Shorten the name of a model for people: of a folder its last part; a Hub id (org/name) stays as it is.

    Args:
        name: a folder or a Hub id, as the user wrote it.
        local: whether it is known to be a folder; else one that exists, or that looks like a path, is.
    """
    path = Path(name)
    if not (local or name.startswith((".", "/", "~")) or name.rstrip("/").count("/") > 1 or path.is_dir()):
        return show(name)
    return show(path.name if path.name not in ("", "..") else path.resolve().name or name)


def listed(names: Iterable[str]) -> str:
    """Join names for a message: quoted, in order, at most twelve."""
    quoted = [f'"{show(name)}"' for name in names]
    return ", ".join(quoted[:12]) + (f" and {len(quoted) - 12} more" if len(quoted) > 12 else "")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return show(lines[0], 200).rstrip(".") if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return the whole message of an error on one line, of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
