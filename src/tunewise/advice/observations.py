"""What has been observed of techniques: the gains of recorded comparisons, and those of published ones.

The gain of a technique in a comparison is (score - base) / (best - base): 1 for the best, 0 for the unadapted model.

A published comparison is the rows of one table that share model and budget; of several forms of a technique the best
row counts. Where a publication does not give the unadapted model's score, half of the best score stands for it. Each
observation has a standard deviation: of a record from the intervals of its scores, of a publication by how far it is
comparable with records. All gains of one comparison have a common error besides, since they have the same base and the
same best row; a comparison that gives no base has a large one, so that it counts by how its rows differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tunewise.advice.atlas.schema import Record
from tunewise.advice.atlas.staleness import stale_rows
from tunewise.advice.features import Conditions, Kind
from tunewise.advice.published import publications as published

READING = " over documents"  # with documents to search, a technique that searches counts as a different one
SEARCHES = "rag"  # the technique that searches documents, in the names of publications

_LEAST_ERROR = 0.03  # bounds of the standard deviation of a recorded gain
_MOST_ERROR = 1.0
_STALE_ERROR = 0.1  # added where the technique's defaults have changed since
_COMMON_ERROR = 0.1  # of all gains of a comparison together
_COMMON_ERROR_WITHOUT_BASE = 0.3
_NO_BASE = 0.5  # of the best score, where the unadapted model's is not given
_ENCODER_ERROR = 0.1  # added where the model is not a decoder
_PUBLISHED_ERRORS: Mapping[published.Comparable, float] = {
    "tuned alike": 0.1,
    "partly tuned": 0.15,
    "quoted": 0.2,
    "untuned": 0.25,
    "other models": 0.3,
    "own budgets": 0.3,
}
_KINDS: Mapping[published.Kind, Kind] = {
    "classification": "a choice of labels",
    "multiple choice": "a choice of labels",
    "question answering": "short answers",
    "facts from documents": "answers in documents",
    "knowledge": "long answers",
    "generation": "long answers",
    "arithmetic reasoning": "long answers",
    "code": "long answers",
    "instruction following": "long answers",
    "continued pretraining": "new text",
}
_USUAL_TRAIN = 30_000.0  # training examples of a published table that does not say how many


@dataclass(frozen=True)
class ObservedGains:
    """Holds the gains of one comparison.

    Attributes:
        kind: a record of the atlas, or a published comparison.
        ref: its name.
        task: the task, for leaving it out.
        conditions: what it is compared by.
        gains: by technique.
        errors: the standard deviation of each gain.
        common_error: the standard deviation of what all of them have in common.
    """

    kind: Literal["atlas", "paper"]
    ref: str
    task: str
    conditions: Conditions
    gains: Mapping[str, float]
    errors: Mapping[str, float]
    common_error: float = _COMMON_ERROR


def recorded_gains(record: Record) -> ObservedGains:
    """Compute the gains of a record, and their errors by propagating those of the scores, the base and the best."""
    best, best_score = record.best
    gains, errors = dict[str, float](), dict[str, float]()
    features, stale = record.features.features(), stale_rows(record)
    for technique in record.scored:
        if technique == "base":
            continue
        gain = record.gain(technique)
        score_error, base_error, best_error = (_deviation(record, name) for name in (technique, "base", best))
        variance = score_error**2 + ((1 - gain) * base_error) ** 2 + (gain * best_error) ** 2
        error = min(max(math.sqrt(variance) / (best_score - record.base), _LEAST_ERROR), _MOST_ERROR)
        name = observed_name(technique, reading=bool(features.documents))
        gains[name], errors[name] = gain, math.hypot(error, _STALE_ERROR if technique in stale else 0.0)
    return ObservedGains("atlas", record.name, record.task.name, features.conditions, gains, errors)


def _deviation(record: Record, name: str) -> float:
    score = record.scored[name].score
    assert score is not None, f"the record {record.name} has no score of {name}, which reading it refuses"
    return (score.high - score.low) / 3.92  # a 95 % interval is 2 x 1.96 standard deviations wide


def observed_name(technique: str, *, reading: bool) -> str:
    """Return the name that a technique's gains are kept under: parts in order, those that search documents marked."""
    parts = [part + READING if reading and part == SEARCHES else part for part in technique.split("+")]
    return "+".join(sorted(parts))


@dataclass(frozen=True)
class PublishedComparison:
    """Holds the rows of a published table that share model and budget.

    Attributes:
        publication: where the table stands.
        table: the table.
        model: what the publication calls the model.
        budget: what the rows have in common besides; "" where the table has one budget.
        rows: the best row of each technique.
        shown_before: the techniques whose row is from the largest smaller budget, as no more examples fit a prompt.
    """

    publication: published.Publication
    table: published.Table
    model: str
    budget: str
    rows: Mapping[str, published.Row]
    shown_before: frozenset[str] = frozenset()

    @property
    def ref(self) -> str:
        """Return its name: publication, table, model and budget."""
        parts = (self.publication.id, self.table.id, self.model, self.budget)
        return "/".join(part for part in parts if part)

    @property
    def parameters(self) -> int:
        """Return the size of the model."""
        return self.publication.models[self.model].parameters

    @cached_property
    def train(self) -> float:
        """Return the number of training examples; a usual one where the table does not give it."""
        counts = [row.train for name, row in self.rows.items() if row.train and name not in self.shown_before]
        about = (self.table.about or {}).get(self.budget)
        return float(self.table.train or max(counts, default=0) or about or _USUAL_TRAIN)

    @property
    def conditions(self) -> Conditions:
        """Return what it is compared by."""
        reads = any(SEARCHES in name.split("+") for name in self.rows)
        kind: Kind = "answers in documents" if reads else _KINDS[self.table.kind]
        return Conditions(float(self.parameters), self.train, kind)

    @property
    def best(self) -> str:
        """Return the technique with the best score."""
        return max((name for name in self.rows if name != "base"), key=lambda name: self.rows[name].score)

    @property
    def base(self) -> float:
        """Return the unadapted model's score, or what stands for it."""
        score = self.rows["base"].score if self.has_base else math.inf
        return score if score < self.rows[self.best].score else _NO_BASE * self.rows[self.best].score

    @property
    def has_base(self) -> bool:
        """Tell whether the unadapted model's score is given."""
        return "base" in self.rows

    def gain(self, technique: str) -> float:
        """Return (score - base) / (best - base), at least -1."""
        return max((self.rows[technique].score - self.base) / (self.rows[self.best].score - self.base), -1.0)

    @property
    def words(self) -> str:
        """Say what was compared: the model, the task and how much was learnt from."""
        known = self.table.train or any(row.train for row in self.rows.values())
        examples = f", {self.train:,.0f} examples" if known else f", {self.budget}" if self.budget else ""
        return f"{self.model} on {self.table.task}{examples}"

    @property
    def cited(self) -> str:
        """Return the short reference."""
        return f"{self.publication.authors} {self.publication.year}"

    def observed(self) -> ObservedGains:
        """Compute the gains."""
        error = _PUBLISHED_ERRORS[self.table.comparable]
        if self.publication.models[self.model].architecture != "decoder":
            error += _ENCODER_ERROR
        gains = {
            observed_name(name, reading=True): self.gain(name)
            for name in self.rows
            if name != "base" and "peft:" not in name
        }
        common = _COMMON_ERROR if self.has_base else _COMMON_ERROR_WITHOUT_BASE
        task = f"{self.publication.id}/{self.table.id}"
        return ObservedGains(
            "paper", self.ref, task, self.conditions, gains, dict.fromkeys(gains, error), common_error=common
        )


def published_comparisons() -> dict[str, PublishedComparison]:
    """Return every published comparison of two or more techniques, by name.

    Raises:
        ArtifactError: a file of the package is damaged.
    """
    found = (
        comparison
        for publication in published.publications().values()
        for table in publication.tables
        for comparison in _comparisons(publication, table)
    )
    return {comparison.ref: comparison for comparison in found if len(comparison.observed().gains) > 1}


def _comparisons(publication: published.Publication, table: published.Table) -> Iterator[PublishedComparison]:
    """Yield a table's comparisons, those of small budgets first.

    Examples in a prompt (`icl`) that are missing from a budget are taken from the largest smaller one: with more
    examples to choose from, no more fit a prompt.
    """
    shown = dict[str, published.Row]()
    for group in sorted(table.groups(), key=lambda rows: max(row.train or 0 for row in rows)):
        model, rows = group[0].model, dict[str, published.Row]()
        for row in group:
            if row.technique not in rows or row.score > rows[row.technique].score:
                rows[row.technique] = row
        before = frozenset({"icl"} if model in shown and "icl" not in rows and group[0].train else ())
        if before:
            rows["icl"] = shown[model]
        elif "icl" in rows:
            shown[model] = rows["icl"]
        yield PublishedComparison(publication, table, model, group[0].budget or "", rows, before)


def observed_gains(
    records: Iterable[Record], comparisons: Iterable[PublishedComparison] = ()
) -> tuple[ObservedGains, ...]:
    """Compute the gains of records and publications; records in which nothing is better than the base are left out."""
    recorded = [recorded_gains(record) for record in records if record.best[1] > record.base]
    return (*recorded, *(comparison.observed() for comparison in comparisons))
