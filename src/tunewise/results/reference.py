"""Computes the score of always giving the most frequent answer, which keeps the scores of techniques in proportion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunewise.results.diagnostics import Majority
from tunewise.results.statistics import LEVEL, Tables, against, interval


@dataclass(frozen=True)
class MajorityScores:
    """Holds the majority row of a comparison with its score of each test example."""

    row: Majority
    table: np.ndarray

    @classmethod
    def of(cls, label: str, share: float, per_example: Sequence[float]) -> MajorityScores:
        """Compute mean and interval from the scores of the test examples."""
        table = np.array([per_example], dtype=float)
        low, high = interval(table)
        return cls(Majority(label=label, share=share, mean=float(table.mean()), low=low, high=high), table)

    def better(self, tables: Tables) -> set[str]:
        """Return the techniques that the paired test, adjusted for their number, finds to be better than this."""
        p_values = against(_MAJORITY, {**tables, _MAJORITY: self.table})
        return {
            name for name, table in tables.items() if p_values[name] <= 1 - LEVEL and table.mean() > self.table.mean()
        }


_MAJORITY = "\0majority"  # cannot be the name of a technique
