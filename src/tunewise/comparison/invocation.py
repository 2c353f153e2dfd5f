"""How a comparison was started and who follows it, as far as its results do not depend on it."""

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
    """Do nothing about a row."""


def ignore_trial(folder: str | None, identity: TrialIdentity | None, /) -> None:
    """Do nothing about a trial."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What the caller of `compare` says beyond the question.

    Attributes:
        held: settings as "lora.r" that were chosen, which a search leaves alone.
        started: when the minutes of the budget began, in seconds since the epoch; default: now.
        command: the words of the command line, for whoever wants to repeat the comparison.
        course: advice to follow: what to run in which order, and when to stop; default: all, in their order.
        on_row: called with the result so far after each row.
        on_trial: called with a trial's folder and recipe when it begins, and with None twice when it is over.
        life: names this attempt; a trial that failed in it is not tried again in it (default: a new one).
        locked: the caller holds the lock of the output folder.
    """

    held: Collection[str] = ()
    started: float | None = None
    command: Sequence[str] | None = None
    course: Course | None = None
    on_row: OnRow = ignore_row
    on_trial: OnTrial = ignore_trial
    life: str | None = None
    locked: bool = False
