"""What advice is drawn from, and sentences that say where each of their figures is from.

A link is {"kind", "ref", "path", "value", "shown"}: in the source of that kind and name, `path` leads to `value`, which
stands in the sentence as `shown`.

    atlas      ref: a record's name         path: lora.gain, lora.score.mean, lora.cost.artifact_bytes, similarity
               ref: all                     path: lora.gain, the mean over all records
    paper      ref: a published table's id  path: lora.score, lora.memory_gb, similarity
    plan       ref: a technique             path: memory.peak, verdict, ...
    task       ref: a feature               path: "" (the number itself)
    technique  ref: a technique             path: a fact of its class: needs, mergeable, trains, ...
    request    ref: what was asked          path: ""
    change     ref: what is different       path: gain, was
    forecast   ref: a technique             path: gain.mean, chance, ... of this advice's own rows
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tunewise.advice.atlas.published import Table
from tunewise.advice.atlas.published import tables as published_tables
from tunewise.advice.atlas.records import all_records
from tunewise.advice.atlas.schema import Record
from tunewise.advice.features import Features
from tunewise.advice.gains import Recommender, observed_gains
from tunewise.advice.question import Candidate, Planner, reads_documents

ALL = "all"  # the records together


@dataclass(frozen=True)
class Link:
    """Leads from one figure or fact to its source."""

    kind: str
    ref: str
    path: str
    value: object
    shown: str


@dataclass(frozen=True)
class Sentence:
    """Holds a sentence with the sources of what it says."""

    text: str
    links: tuple[Link, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the text and the links."""
        return {"text": self.text, "evidence": [asdict(link) for link in self.links]}


def say(template: str, *links: Link) -> Sentence:
    """Fill the `{}` of a sentence with what the links show; a link beyond them is cited without a figure."""
    places = template.count("{}")
    return Sentence(template.format(*(link.shown for link in links[:places])), tuple(links))


@dataclass(frozen=True)
class Fact:
    """Says whether something is so, and where that stands."""

    holds: bool
    source: Link


@dataclass(frozen=True)
class Evidence:
    """Holds everything that advice is drawn from.

    Attributes:
        candidates: the techniques to choose from, by name, the base not among them.
        records: the recorded comparisons, by name.
        tables: the published tables, by id.
        recommender: predicts gains from the two.
        refused: why the model or the task turned candidates down, by technique.
        swappable: whether a candidate that was tried on the model leaves the model's own weights alone, by technique.
        planner: says what fits; None where nothing can be asked of memory and time.
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
            refused: why the model or the task turned some down.
            swappable: of techniques that no record may have, whether they are swappable.
            planner: says what fits.
            records: in place of those of the package and the user.
            without: a task that nothing is to be known of, for measuring how good advice is.

        Raises:
            ArtifactError: a file of the atlas is damaged.
        """
        records = all_records() if records is None else records
        records = {name: record for name, record in records.items() if record.task.name != without}
        tables = {name: table for name, table in published_tables().items() if table.task != without}
        candidates = {name: candidate for name, candidate in candidates.items() if name != "base"}
        reading = [name for name, candidate in candidates.items() if reads_documents(candidate)]
        recommender = Recommender.fit(observed_gains(records.values(), tables.values()), list(candidates), reading)
        return cls(candidates, records, tables, recommender, refused or {}, swappable or {}, planner)

    def nearest_records(self, features: Features) -> list[tuple[Record, float]]:
        """Return the recorded comparisons with their similarity to a situation, nearest first."""
        neighbours = self.recommender.neighbours(features)
        return [(self.records[each.ref], similarity) for each, similarity in neighbours if each.kind == "atlas"]

    def is_mergeable(self, technique: str) -> Fact:
        """Tell whether a technique can be merged into the model's weights."""
        value = self.candidates[technique].mergeable
        return Fact(value, Link("technique", technique, "mergeable", value, "mergeable"))

    def is_swappable(self, technique: str) -> Fact:
        """Tell whether adaptations of a technique can be swapped on one loaded model: as recorded, else as tried."""
        for record in self.records.values():
            row = record.scored.get(technique)
            if row is not None and row.cost is not None:
                value = row.cost.swappable
                return Fact(value, Link("atlas", record.name, f"{technique}.cost.swappable", value, "swappable"))
        return Fact(bool(self.swappable.get(technique)), Link("technique", technique, "name", technique, ""))
