"""Defines the callbacks through which long work reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what is being done, how much of it is done, and the total; a total of 0 means unknown."""

    def __call__(self, what: str, done: int, total: int, /) -> None:
        """Receive one report."""


class RowProgress(Protocol):
    """Receives the same for one of several rows: a technique of a comparison, or a file that is loaded."""

    def __call__(self, row: str, what: str, done: int, total: int, /) -> None:
        """Receive one report."""


def silent(what: str, done: int, total: int, /) -> None:
    """Report nothing."""


def silent_row(row: str, what: str, done: int, total: int, /) -> None:
    """Report nothing about any row."""


def for_row(progress: RowProgress, row: str) -> Progress:
    """Return a callback that reports progress for this row."""
    return lambda what, done, total: progress(row, what, done, total)
