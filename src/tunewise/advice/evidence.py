"""The evidence that advice is drawn from: the candidates, recorded comparisons and published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tunewise.advice.atlas.records import all_records
from tunewise.advice.atlas.schema import Record
from tunewise.advice.features import Features
from tunewise.advice.gains import Belief, Recommender, Variances, learned, likeness
from tunewise.advice.observations import (
    ObservedGains,
    PublishedComparison,
    observed_gains,
    observed_name,
    published_comparisons,
)
from tunewise.advice.question import Candidate, Planner
from tunewise.advice.sentences import Link

_KIN = 0.5  # likeness from which what is known of a composition is quoted for another one


@dataclass(frozen=True)
class Fact:
    """Says whether something holds, with the source."""

    holds: bool
    source: Link


@dataclass(frozen=True)
class Quoted:
    """Holds an observed gain that is quoted for a candidate.

    Attributes:
        observed: the comparison.
        technique: the technique's name there.
        similarity: of its conditions.
        same: whether it is the candidate itself, or else a composition like it.
    """

    observed: ObservedGains
    technique: str
    similarity: float
    same: bool


@dataclass(frozen=True)
class Evidence:
    """Holds everything that advice is drawn from.

    Attributes:
        candidates: the techniques to choose from, by name, the base not among them.
        records: the recorded comparisons, by name.
        comparisons: the published comparisons, by name.
        recommender: predicts gains from both.
        refused: why candidates cannot work on this model or task, by technique.
        swappable: whether a candidate leaves the model's own weights unchanged, as attaching it showed, by technique.
        planner: says what each candidate takes; without one, sizes, memory and time are not known.
    """

    candidates: Mapping[str, Candidate]
    records: Mapping[str, Record]
    comparisons: Mapping[str, PublishedComparison]
    recommender: Recommender
    refused: Mapping[str, str] = field(default_factory=dict)
    swappable: Mapping[str, bool] = field(default_factory=dict)
    planner: Planner | None = None

    @classmethod
    def collect(
        cls,
        candidates: Mapping[str, Candidate],
        *,
        refused: Mapping[str, str] | None = None,
        swappable: Mapping[str, bool] | None = None,
        planner: Planner | None = None,
        records: Mapping[str, Record] | None = None,
        comparisons: Mapping[str, PublishedComparison] | None = None,
        variances: Variances | None = None,
    ) -> Evidence:
        """Read the atlas and the publications.

        Args:
            candidates: the techniques to choose from, by name; `base` is left out.
            refused: why candidates cannot work on this model or task.
            swappable: whether techniques that no record has are swappable.
            planner: says what each candidate takes.
            records: recorded comparisons; default: those of the package and the user.
            comparisons: published comparisons; default: all.
            variances: how gains vary; default: as learned from the package's evidence.

        Raises:
            ArtifactError: a file of the atlas or of the publications is damaged.
        """
        records = all_records() if records is None else records
        comparisons = published_comparisons() if comparisons is None else comparisons
        candidates = {name: candidate for name, candidate in candidates.items() if name != "base"}
        recommender = Recommender(observed_gains(records.values(), comparisons.values()), variances or learned())
        return cls(candidates, records, comparisons, recommender, refused or {}, swappable or {}, planner)

    def predict(self, features: Features) -> Belief:
        """Return the belief over the candidates' gains in a situation."""
        names = [observed_name(name, reading=features.searchable) for name in self.candidates]
        return self.recommender.predict(features.conditions, names, names=tuple(self.candidates))

    def nearest_records(self, features: Features) -> list[tuple[Record, float]]:
        """Return the recorded comparisons with their similarity to a situation, nearest first."""
        records = list(self.records.values())
        if not records:
            return []
        conditions = [record.features.features().conditions for record in records]
        similarities = self.recommender.similarities(conditions, features.conditions)
        return sorted(zip(records, similarities, strict=True), key=lambda pair: -pair[1])

    def quotable(self, features: Features) -> dict[str, tuple[Quoted, ...]]:
        """Return what was observed of each candidate, most similar first; of compositions, also of those like it."""
        neighbours = self.recommender.neighbours(features.conditions)
        return {
            candidate: tuple(self._quoted(observed_name(candidate, reading=features.searchable), neighbours))
            for candidate in self.candidates
        }

    def _quoted(self, name: str, neighbours: Sequence[tuple[ObservedGains, float]]) -> Iterator[Quoted]:
        alike = self._compositions_like(name) if "+" in name else {}
        for observed, similarity in neighbours:
            if name in observed.gains:
                yield Quoted(observed, name, similarity, same=True)
                continue
            others = [other for other in observed.gains if alike.get(other, 0.0) >= _KIN]
            if others:
                yield Quoted(observed, max(others, key=alike.__getitem__), similarity, same=False)

    def _compositions_like(self, name: str) -> dict[str, float]:
        names = sorted({other for gains in self.recommender.observed for other in gains.gains if "+" in other})
        row = likeness((name, *names), self.recommender.variances.family)[0, 1:]
        return dict(zip(names, row.tolist(), strict=True))

    def is_recorded(self, technique: str) -> bool:
        """Tell whether a record has a technique."""
        return any(technique in record.scored for record in self.records.values())

    def is_mergeable(self, technique: str) -> Fact:
        """Tell whether a technique can be merged into the model's weights."""
        value = self.candidates[technique].mergeable
        return Fact(value, Link("technique", technique, "mergeable", value, "mergeable"))

    def is_swappable(self, technique: str) -> Fact:
        """Tell whether adaptations of a technique can be swapped on one loaded model, by a record or else a trial."""
        for record in self.records.values():
            row = record.scored.get(technique)
            if row is not None and row.cost is not None:
                value = row.cost.swappable
                return Fact(value, Link("atlas", record.name, f"{technique}.cost.swappable", value, "swappable"))
        return Fact(bool(self.swappable.get(technique)), Link("technique", technique, "name", technique, ""))
