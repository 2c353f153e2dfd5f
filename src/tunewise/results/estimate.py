"""Holds what a comparison is expected to take before anything is trained, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from tunewise.core.json_record import Count, JsonRecord, NonNegative


@dataclass(frozen=True, kw_only=True)
class RowEstimate(JsonRecord):
    """Holds what one technique is expected to take, over its search and its seeds; times in seconds.

    Attributes:
        technique: its name.
        preparing: time before the first step, such as choosing examples on validation.
        training: time of all optimiser steps.
        scoring: time of the validation losses and of the test split.
        forgetting: time of measuring what was forgotten.
        peak_memory_bytes: peak of memory of the whole process while this row runs.
    """

    technique: str
    preparing: NonNegative
    training: NonNegative
    scoring: NonNegative
    forgetting: NonNegative
    peak_memory_bytes: Count

    @property
    def seconds(self) -> float:
        """Return the time of the whole row."""
        return self.preparing + self.training + self.scoring + self.forgetting


@dataclass(frozen=True, kw_only=True)
class Estimate(JsonRecord):
    """Holds what a comparison is expected to take: the seconds of its start, and its rows in their order.

    `workers` is how many of them run at once; it is absent where one runs after the other. `fewest_steps` are the
    optimiser steps that a budget in minutes leaves a trial of the slowest technique; it is absent in other budgets.
    """

    startup: NonNegative
    rows: tuple[RowEstimate, ...]
    workers: Count | None = None
    fewest_steps: Count | None = None

    @property
    def seconds(self) -> float:
        """Return the time from the start to the report."""
        rows = [row.seconds for row in self.rows]
        return self.startup + max(sum(rows) / (self.workers or 1), max(rows, default=0.0))

    @property
    def peak_memory_bytes(self) -> int:
        """Return the peak of memory of the process, or of all workers together; 0 without rows."""
        return sum(sorted((row.peak_memory_bytes for row in self.rows), reverse=True)[: self.workers or 1])
