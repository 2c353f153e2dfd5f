"""Describes how a comparison was started and who follows it; its results do not depend on this."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunewise.advice.course import Course
    from tunewise.results.schema import Comparison, TrialIdentity

OnRow = Callable[["Comparison"], None]
OnTrial = Callable[[str | None, "TrialIdentity | None"], None]


def ignore_row(result: Comparison, /) -> None:
    """Ignore a finished row."""


def ignore_trial(folder: str | None, identity: TrialIdentity | None, /) -> None:
    """Ignore the start or end of a trial."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """Holds what the caller of `compare` says besides what is compared.

    Attributes:
        held: settings such as "lora.r" that the user chose, which a search does not vary.
        started: when the minutes of the budget started, in seconds since the epoch; default: now.
        command: the command line, which the report shows so that the comparison can be repeated.
        course: advice to follow: what to run in which order, and when to stop; default: all, in their order.
        on_row: is called with the result so far after each row.
        on_trial: is called with a trial's folder and recipe when it starts, and with None twice when it is over.
        attempt_id: identifies this attempt; a trial that failed in it is not retried in it (default: a new one).
        locked: the caller holds the lock of the output folder.
    """

    held: Collection[str] = ()
    started: float | None = None
    command: Sequence[str] | None = None
    course: Course | None = None
    on_row: OnRow = ignore_row
    on_trial: OnTrial = ignore_trial
    attempt_id: str | None = None
    locked: bool = False
