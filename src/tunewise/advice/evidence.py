"""The evidence that advice is drawn from: the candidates, recorded comparisons and published tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunewise.advice.atlas.published import Table
from tunewise.advice.atlas.published import tables as published_tables
from tunewise.advice.atlas.records import all_records
from tunewise.advice.atlas.schema import Record
from tunewise.advice.features import Features
from tunewise.advice.gains import Recommender, observed_gains
from tunewise.advice.question import Candidate, Planner, reads_documents
from tunewise.advice.wording import Link


@dataclass(frozen=True)
class Fact:
    """Says whether something holds, with the source."""

    holds: bool
    source: Link


@dataclass(frozen=True)
class Evidence:
    """Holds everything that advice is drawn from.

    Attributes:
        candidates: the techniques to choose from, by name, the base not among them.
        records: the recorded comparisons, by name.
        tables: the published tables, by id.
        recommender: predicts gains from the records and the tables.
        refused: why candidates cannot work on this model or task, by technique.
        swappable: whether a candidate leaves the model's own weights unchanged, as attaching it showed, by technique.
        planner: says what fits; without one, memory and time cannot be limited.
    """

    candidates: Mapping[str, Candidate]
    records: Mapping[str, Record]
    tables: Mapping[str, Table]
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
        without: str | None = None,
    ) -> Evidence:
        """Read the atlas and fit the recommender to it.

        Args:
            candidates: the techniques to choose from, by name; `base` is left out.
            refused: why candidates cannot work on this model or task.
            swappable: whether techniques that no record has are swappable.
            planner: says what fits.
            records: recorded comparisons; default: those of the package and the user.
            without: a task to leave out of the evidence, for measuring how good advice is.

        Raises:
            ArtifactError: a file of the atlas is damaged.
        """
        records = all_records() if records is None else records
        records = {name: record for name, record in records.items() if record.task.name != without}
        tables = {name: table for name, table in published_tables().items() if table.task != without}
        candidates = {name: candidate for name, candidate in candidates.items() if name != "base"}
        readers = [name for name, candidate in candidates.items() if reads_documents(candidate)]
        recommender = Recommender.fit(observed_gains(records.values(), tables.values()), list(candidates), readers)
        return cls(candidates, records, tables, recommender, refused or {}, swappable or {}, planner)

    def nearest_records(self, features: Features) -> list[tuple[Record, float]]:
        """Return the recorded comparisons with their similarity to a situation, nearest first."""
        neighbours = self.recommender.neighbours(features)
        return [(self.records[gains.ref], similarity) for gains, similarity in neighbours if gains.kind == "atlas"]

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
