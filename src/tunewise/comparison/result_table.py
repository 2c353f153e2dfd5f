"""Gathers the rows of a comparison as they end, in whatever order, and concludes from those that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tunewise.advice.course import Course
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.trial_measures import ANSWERS
from tunewise.engine.memory import process_peak_bytes
from tunewise.results.needs import Need
from tunewise.results.reference import MajorityScores
from tunewise.results.schema import Answer, Answered, Comparison, FinishedTrial, Row, ScoredRow, Verdict
from tunewise.results.statistics import against, interval, ranks, seed_variance
from tunewise.results.verdict import verdict


@dataclass(frozen=True)
class ResultTable:
    """Holds the rows that are over, in the order of `names`, which no conclusion depends on the arrival of.

    Attributes:
        context: what the trials share.
        names: the techniques in the order of the request.
        needs: what is required of the recommended row.
        majority: the score of the most frequent label, of a classification.
        price: US dollars per hour of this machine.
        rows: the rows so far.
    """

    context: ComparisonContext
    names: Sequence[str]
    needs: Sequence[Need]
    majority: MajorityScores | None
    price: float | None = None
    rows: list[Row] = field(default_factory=list)
    _scores: dict[str, np.ndarray] = field(default_factory=dict)
    _answers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, row: Row, records: Sequence[FinishedTrial]) -> None:
        """Take in a row that is over, and the records of its seeds that finished."""
        self.rows.append(row)
        self.rows.sort(key=lambda row: self.names.index(row.technique))
        if records:
            self._scores[row.technique] = np.array([record.per_example for record in records])
            self._answers[row.technique] = records[0].answers

    def result(self, result: Comparison, course: Course | None, seconds: float) -> Comparison:
        """Return a comparison with the rows so far, and the conclusions from them.

        Args:
            result: the comparison.
            course: the advice that is followed, if any.
            seconds: what the comparison has taken so far.
        """
        scores = {name: self._scores[name] for name in self.names if name in self._scores}
        self.rows[:], conclusion = _with_intervals_and_verdict(self._priced(), scores, self.needs, self.majority)
        answers = {name: self._answers[name] for name in scores}
        return replace(
            result,
            rows=tuple(self.rows),
            verdict=conclusion,
            advice=course.followed() if course is not None else None,
            answers=_first_answers(self.context, scores, answers),
            seconds=seconds,
            process_peak_bytes=process_peak_bytes(),
        )

    def _priced(self) -> list[Row]:
        """Return the rows with the price of a thousand requests, where an hour has one."""
        if self.price is None:
            return self.rows
        rows: list[Row] = []
        for row in self.rows:
            if isinstance(row, ScoredRow):
                usd = row.cost.seconds_per_example / 3.6 * self.price
                row = replace(row, cost=replace(row.cost, usd_per_1000_requests=usd))
            rows.append(row)
        return rows


def _with_intervals_and_verdict(
    rows: Sequence[Row],
    tables: dict[str, np.ndarray],
    needs: Sequence[Need],
    majority: MajorityScores | None,
) -> tuple[list[Row], Verdict]:
    """Give each row its interval, rank and p value among the rows so far, and reach the verdict over them."""
    seeds, rank_of = seed_variance(tables), ranks(tables)
    ranked: list[Row] = []
    for row in rows:
        if isinstance(row, ScoredRow) and row.technique in tables:
            low, high = interval(tables[row.technique], seeds)
            row = replace(row, score=replace(row.score, low=low, high=high), rank=rank_of[row.technique])
        ranked.append(row)
    conclusion = verdict([row for row in ranked if isinstance(row, ScoredRow)], tables, needs, majority)
    p_values = against(conclusion.best, tables) if conclusion.best is not None else {}
    return [replace(row, p_value=p_values.get(row.technique)) for row in ranked], conclusion


def _first_answers(
    context: ComparisonContext, tables: Mapping[str, np.ndarray], answers: Mapping[str, tuple[str, ...]]
) -> tuple[Answer, ...]:
    """Return the first test examples, with what each technique's first seed answered."""
    return tuple(
        Answer(
            prompt=example.prompt,
            answer=example.answer,
            rows={
                name: Answered(text=texts[place], score=float(tables[name][0, place]))
                for name, texts in answers.items()
            },
        )
        for place, example in enumerate(context.test[:ANSWERS])
    )
