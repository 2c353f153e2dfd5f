"""What advice is drawn from: the question, the candidates, the atlas, and what techniques are foreseen to cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from tunewise.advice.atlas.published import Table
from tunewise.advice.atlas.published import tables as published
from tunewise.advice.atlas.records import all_records
from tunewise.advice.atlas.schema import Record, Row
from tunewise.advice.evidence import Link
from tunewise.advice.features import Features
from tunewise.advice.gains import Recommender, evidence
from tunewise.advice.question import Asked, Candidate, Planner, Situation
from tunewise.core.errors import SettingError

DAYS = 30  # of requests that count as a technique's cost


def reads_documents(recipe: Candidate) -> bool:
    """Whether a technique searches documents when it is asked, so that they may change."""
    parts: tuple[Candidate, ...] = getattr(recipe, "parts", ()) or (recipe,)
    return any(item.name == "knowledge" for part in parts for item in fields(part))


@dataclass(frozen=True)
class Advisor:
    """Everything that advice is drawn from: the candidates, the atlas and what it predicts.

    `refused` are candidates that the model turned down, with its reason; `planner` says what fits.
    """

    techniques: Mapping[str, Candidate]
    records: Mapping[str, Record]
    tables: Mapping[str, Table]
    model: Recommender
    refused: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    planner: Planner | None = None

    @classmethod
    def open(
        cls,
        techniques: Mapping[str, Candidate],
        *,
        refused: Mapping[str, str] | None = None,
        facts: Mapping[str, Mapping[str, bool]] | None = None,
        planner: Planner | None = None,
        records: Mapping[str, Record] | None = None,
        without: str | None = None,
    ) -> Advisor:
        """With the atlas.

        Args:
            techniques: the candidates by name.
            refused: reasons of the model or the task, by technique.
            facts: {"swappable": ...} of techniques that the atlas may not know.
            planner: says what fits.
            records: the atlas's, by name; default: the package's and the user's own.
            without: a task that nothing is to be known of, for tests of advice.

        Raises:
            ArtifactError: a file of the atlas is damaged.
        """
        records = all_records() if records is None else records
        records = {name: record for name, record in records.items() if record.task.name != without}
        tables = {name: table for name, table in published().items() if table.task != without}
        candidates = {name: found for name, found in techniques.items() if name != "base"}
        reading = [name for name, found in candidates.items() if reads_documents(found)]
        model = Recommender.fit(evidence(records.values(), tables.values()), list(candidates), reading)
        return cls(candidates, records, tables, model, refused or {}, facts or {}, planner)

    def nearest(self, technique: str, features: Features) -> tuple[Record, Row, float] | None:
        """The nearest record that has a technique, its row, and how similar it is."""
        for found, similarity in self.model.neighbours(features):
            if found.kind == "atlas" and technique in self.records[found.ref].scored:
                record = self.records[found.ref]
                return record, record.scored[technique], similarity
        return None

    def fact(self, technique: str, name: str) -> tuple[bool, Link]:
        """Whether a technique merges or is swappable, and where that stands."""
        if name == "mergeable":
            value = self.techniques[technique].mergeable
            return value, Link("technique", technique, "mergeable", value, "mergeable")
        for record in self.records.values():
            row = record.scored.get(technique)
            if row is not None and row.cost is not None:
                value = row.cost.swappable
                return value, Link("atlas", record.name, f"{technique}.cost.swappable", value, "swappable")
        value = bool(self.facts.get(technique, {}).get(name))
        return value, Link("technique", technique, "name", technique, technique)


def situation(advisor: Advisor, features: Features, asked: Asked) -> Situation:
    """A question with its plan."""
    rows = advisor.planner(asked.memory) if advisor.planner is not None else []
    if advisor.planner is None and asked.planned:
        raise SettingError(f"{', '.join(asked.planned)}: what a technique takes is not known here; give a planner")
    return Situation(features, asked, {str(row["technique"]): row for row in rows})


def artifact(advisor: Advisor, asked: Situation, name: str) -> float:
    """Bytes of the adaptation: the plan's, else those of the nearest record as a share of its model, for this one."""
    if name in asked.plan and asked.plan[name].get("artifact_bytes") is not None:
        return float(asked.plan[name]["artifact_bytes"])
    near = advisor.nearest(name, asked.features)
    if near is None or near[1].cost is None:
        return asked.features.parameters
    return near[1].cost.artifact_bytes * asked.features.parameters / max(near[0].model.parameters, 1)


def prompt_tokens(advisor: Advisor, asked: Situation, name: str) -> float:
    """Tokens of a request: the plan's, else what the nearest record's technique puts before its prompts."""
    request = (asked.plan.get(name) or {}).get("request") or {}
    if request.get("prompt_tokens") is not None:
        return float(request["prompt_tokens"])
    near = advisor.nearest(name, asked.features)
    if near is None or near[1].cost is None:
        return asked.features.prompt_tokens
    bare = near[0].scored["base"].cost
    assert bare is not None
    return asked.features.prompt_tokens + max(near[1].cost.prompt_tokens - bare.prompt_tokens, 0.0)


def month(advisor: Advisor, asked: Situation, name: str) -> float:
    """What a technique costs, in tokens through the model: training, three passes each, and a month's requests."""
    features = asked.features
    served = asked.asked.requests_per_day * DAYS * prompt_tokens(advisor, asked, name)
    if not advisor.techniques[name].trains:
        return served
    near, full = advisor.nearest(name, features), advisor.nearest("full", features)
    passes = 3.0
    if near is not None and full is not None and near[1].cost is not None and full[1].cost is not None:
        passes *= near[1].cost.train_seconds / max(full[1].cost.train_seconds, 1e-9)
    return served + passes * features.examples * (features.prompt_tokens + features.answer_tokens)


def expected_rise(advisor: Advisor, name: str, features: Features) -> float:
    """Nats a token: records' rises, each as much as it is near, and a little the mean of all of them."""
    pairs = []
    for found, similarity in advisor.model.neighbours(features):
        if found.kind == "atlas" and name in advisor.records[found.ref].scored:
            forgotten = advisor.records[found.ref].scored[name].forgetting
            if forgotten is not None:
                pairs.append((similarity + 0.05, math.log1p(max(forgotten.nll_rise, 0.0))))
    if not pairs:
        return 0.0
    return math.expm1(sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs))


def expected_seconds(advisor: Advisor, name: str, features: Features) -> float:
    """Seconds of a technique in a comparison, as a share of its usual row's: records', each as much as it is near."""
    pairs = []
    for found, similarity in advisor.model.neighbours(features):
        if found.kind == "atlas" and name in advisor.records[found.ref].scored:
            seconds = {n: row.cost.seconds for n, row in advisor.records[found.ref].scored.items() if row.cost}
            usual = sorted(seconds.values())[len(seconds) // 2]
            pairs.append((similarity + 0.05, math.log(max(seconds[name], 1e-3) / max(usual, 1e-3))))
    if not pairs:
        return 1.0
    return math.exp(sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs))
