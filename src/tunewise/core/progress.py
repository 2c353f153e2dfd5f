"""Defines the callbacks through which long work reports its progress, and the stages that it reports.

What is reported is a stage, which details may follow after a comma: "training, loss 1.234".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Receives what is being done, how much of it is done, and the total; a total of 0 means unknown."""

    def __call__(self, what: str, done: int, total: int, /) -> None:
        """Receive one report."""


class RowProgress(Protocol):
    """Receives the same for one of several rows: a technique of a comparison, or a file that is loaded."""

    def __call__(self, row: str, what: str, done: int, total: int, /) -> None:
        """Receive one report."""


@dataclass(frozen=True)
class RowStart:
    """Says that a row of a comparison begins.

    Attributes:
        technique: the technique's name.
        number: its place among the rows, from 1.
        rows: how many rows there will be; None where advice decides on the way.
        trials: trials of full length that its search and its seeds may take.
    """

    technique: str
    number: int
    rows: int | None
    trials: int


PREPARING = "preparing"
TRAINING = "training"
VALIDATING = "validating"
SCORING = "scoring"
FORGETTING = "measuring forgetting"
DIVERGENCE = "measuring the divergence on the task"
PROBING = "probing"
REFERENCES = "scoring the right answers"  # their likelihood, before answers are generated
JUDGING = "asking the judge"
# What is counted in a stage; the others say it themselves or have no count.
UNITS = {
    TRAINING: "step",
    VALIDATING: "example",
    SCORING: "example",
    REFERENCES: "example",
    JUDGING: "example",
    PROBING: "example",
    FORGETTING: "pass",
    DIVERGENCE: "example",
}


def stage_of(what: str) -> str:
    """Return the stage of a report without its details."""
    return what.partition(",")[0]


def training_report(loss: float) -> str:
    """Return what a step of training reports."""
    return f"{TRAINING}, loss {loss:.3f}"


def silent(what: str, done: int, total: int, /) -> None:
    """Report nothing."""


def silent_row(row: str, what: str, done: int, total: int, /) -> None:
    """Report nothing about any row."""


def for_row(progress: RowProgress, row: str) -> Progress:
    """Return a callback that reports progress for this row."""
    return lambda what, done, total: progress(row, what, done, total)


def as_stage(progress: Progress, stage: str) -> Progress:
    """Return a callback that reports whatever is done as this stage."""
    return lambda what, done, total: progress(stage, done, total)
