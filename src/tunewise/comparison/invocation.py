"""Describes how a comparison was started and who follows it; its results do not depend on this."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunewise.core.progress import RowStart

if TYPE_CHECKING:
    from tunewise.advice.course import Course
    from tunewise.comparison.pool import Pool
    from tunewise.results.estimate import Estimate
    from tunewise.results.schema import Comparison, TrialIdentity

OnRow = Callable[["Comparison"], None]
OnRowStart = Callable[[RowStart], None]
OnMessage = Callable[[str], None]
OnEstimate = Callable[["Estimate"], None]
OpenPool = Callable[[], "Pool"]
OnTrial = Callable[[str | None, "TrialIdentity | None"], None]


def ignore_row_start(start: RowStart, /) -> None:
    """Ignore the start of a row."""


def ignore_row(result: Comparison, /) -> None:
    """Ignore a finished row."""


def ignore_trial(folder: str | None, identity: TrialIdentity | None, /) -> None:
    """Ignore the start or end of a trial."""


def ignore_message(text: str, /) -> None:
    """Ignore a sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """Holds what the caller of `compare` says besides what is compared.

    Attributes:
        held: settings such as "lora.r" that the user chose, which a search does not vary.
        started: when the minutes of the budget started, on this machine's monotonic clock, which all its processes
            share and nobody sets; default: now.
        command: the command line, which the report shows so that the comparison can be repeated.
        course: advice to follow: what to run in which order, and when to stop; default: all, in their order.
        on_row_start: is called before each row that is run.
        on_row: is called with the result so far after each row.
        on_trial: is called with a trial's folder and recipe when it starts, and with None twice when it is over.
        on_message: is called with sentences that the user should read before training, such as the chosen budget.
        on_estimate: is called with what the comparison is expected to take, before it trains, and may raise to refuse
            it; None: nothing is estimated.
        estimate: what it is expected to take, where that is known already.
        attempt_id: identifies this attempt; a trial that failed in it is not retried in it (default: a new one).
        locked: the caller holds the lock of the output folder.
        open_pool: starts the workers that trials run in, once the base is measured; the base here loses its weights
            then. Without it, trials run in this process.
        workers: how many it starts.
    """

    held: Collection[str] = ()
    started: float | None = None
    command: Sequence[str] | None = None
    course: Course | None = None
    on_row_start: OnRowStart = ignore_row_start
    on_row: OnRow = ignore_row
    on_trial: OnTrial = ignore_trial
    on_message: OnMessage = ignore_message
    on_estimate: OnEstimate | None = None
    estimate: Estimate | None = None
    attempt_id: str | None = None
    locked: bool = False
    open_pool: OpenPool | None = None
    workers: int = 1
