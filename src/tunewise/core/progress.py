"""How long work reports how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what is being done, and how much of it is done out of how much; a total of 0 is not known."""

    def __call__(self, what: str, done: int, total: int, /) -> None:
        """Take a report."""


class RowProgress(Protocol):
    """The same for one of several rows: a technique of a comparison, or a file that is loaded."""

    def __call__(self, row: str, what: str, done: int, total: int, /) -> None:
        """Take a report."""


def silent(what: str, done: int, total: int, /) -> None:
    """Report nothing."""


def silent_row(row: str, what: str, done: int, total: int, /) -> None:
    """Report nothing of any row."""


def for_row(progress: RowProgress, row: str) -> Progress:
    """Progress that reports for this row."""
    return lambda what, done, total: progress(row, what, done, total)
