"""What is expected of each candidate before anything runs: gain, forgetting, and what it costs.

`forecasts` makes one `Forecast` for each candidate from the evidence; rules, ranking and wording read nothing else of
a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunewise.advice.atlas.schema import Record, Row
from tunewise.advice.evidence import Evidence, Fact
from tunewise.advice.features import Features
from tunewise.advice.plan.plan_row import PlanRow
from tunewise.advice.question import Candidate, Situation

DAYS = 30  # of requests that count as a technique's cost
_PASSES = 3.0  # through the model that a training token costs: one forward, and a backward one that counts twice
_FAR_WEIGHT = 0.05  # weight that a record has however far it is


@dataclass(frozen=True)
class RecordedRow:
    """Holds what one recorded comparison measured of a technique, and how similar its situation is (1: the same)."""

    record: Record
    row: Row
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Says what is expected of one candidate in one situation.

    Attributes:
        technique: its name.
        candidate: the technique itself.
        gain: (score - base) / (best - base) that is expected.
        low: the lower end of the gain's 95 % interval.
        high: the upper end.
        rise: of the loss on retention text, in nats per token.
        prompt_tokens: of a request.
        artifact_bytes: of the adaptation on disk.
        month_tokens: through the model, in training and for a month's requests.
        seconds: of its row in a comparison, as a share of a usual row's.
        mergeable: whether it can be merged into the model's weights.
        swappable: whether its adaptations can be swapped on one loaded model.
        turned_down: why the model or the task cannot have it; None where they can.
        nearest: the most similar recorded comparison that has it; None where no record has it.
        plan: its row of the plan; None where there is none.
    """

    technique: str
    candidate: Candidate
    gain: float
    low: float
    high: float
    rise: float
    prompt_tokens: float
    artifact_bytes: float
    month_tokens: float
    seconds: float
    mergeable: Fact
    swappable: Fact
    turned_down: str | None
    nearest: RecordedRow | None
    plan: PlanRow | None


def forecasts(evidence: Evidence, situation: Situation) -> dict[str, Forecast]:
    """Predict everything that advice needs of each candidate.

    Returns:
        The forecasts by technique, in the order of the candidates.
    """
    features = situation.features
    belief = evidence.recommender.predict(features)
    records = evidence.nearest_records(features)
    full = next(iter(_rows_of("full", records)), None)
    result = {}
    for name, candidate in evidence.candidates.items():
        rows, plan = _rows_of(name, records), situation.plan.get(name)
        nearest = rows[0] if rows else None
        gain, low, high = belief.interval(name)
        prompt_tokens = _prompt_tokens(features, plan, nearest)
        served = situation.question.requests_per_day * DAYS * prompt_tokens
        trained = _trained_tokens(features, nearest, full) if candidate.trains else 0.0
        result[name] = Forecast(
            technique=name,
            candidate=candidate,
            gain=gain,
            low=low,
            high=high,
            rise=_rise(rows),
            prompt_tokens=prompt_tokens,
            artifact_bytes=_artifact_bytes(features, plan, nearest),
            month_tokens=served + trained,
            seconds=_seconds(rows),
            mergeable=evidence.is_mergeable(name),
            swappable=evidence.is_swappable(name),
            turned_down=evidence.refused.get(name),
            nearest=nearest,
            plan=plan,
        )
    return result


def _rows_of(technique: str, records: Sequence[tuple[Record, float]]) -> list[RecordedRow]:
    """What these records measured of a technique, in their order."""
    return [
        RecordedRow(record, record.scored[technique], similarity)
        for record, similarity in records
        if technique in record.scored
    ]


def _prompt_tokens(features: Features, plan: PlanRow | None, nearest: RecordedRow | None) -> float:
    """Tokens of a request: the plan's, else those of the task and what the technique adds in the nearest record."""
    if plan is not None and plan.prompt_tokens is not None:
        return float(plan.prompt_tokens)
    if nearest is None or nearest.row.cost is None:
        return features.prompt_tokens
    base_cost = nearest.record.scored["base"].cost
    assert base_cost is not None, f"the record {nearest.record.name} has no costs of base, which its reading refuses"
    return features.prompt_tokens + max(nearest.row.cost.prompt_tokens - base_cost.prompt_tokens, 0.0)


def _artifact_bytes(features: Features, plan: PlanRow | None, nearest: RecordedRow | None) -> float:
    """Bytes of the adaptation: the plan's, else the nearest record's share of its model, taken of this model."""
    if plan is not None and plan.artifact_bytes is not None:
        return float(plan.artifact_bytes)
    if nearest is None or nearest.row.cost is None:
        return features.parameters
    return nearest.row.cost.artifact_bytes * features.parameters / max(nearest.record.model.parameters, 1)


def _trained_tokens(features: Features, nearest: RecordedRow | None, full: RecordedRow | None) -> float:
    """Tokens that training puts through the model; `full`'s time in the nearest record is what a plain step takes."""
    passes = _PASSES
    if nearest is not None and full is not None and nearest.row.cost is not None and full.row.cost is not None:
        passes *= nearest.row.cost.train_seconds / max(full.row.cost.train_seconds, 1e-9)
    return passes * features.examples * (features.prompt_tokens + features.answer_tokens)


def _rise(rows: Sequence[RecordedRow]) -> float:
    """The rise of the loss on retention text: the recorded ones', averaged as log(1 + rise); 0 where none is known."""
    rises = [(each.similarity, each.row.forgetting.nll_rise) for each in rows if each.row.forgetting is not None]
    return math.expm1(_average([(similarity, math.log1p(max(rise, 0.0))) for similarity, rise in rises]))


def _seconds(rows: Sequence[RecordedRow]) -> float:
    """Seconds over those of the same comparison's middle row: the recorded ratios' geometric mean; 1 without any."""
    ratios = []
    for each in rows:
        seconds = {name: row.cost.seconds for name, row in each.record.scored.items() if row.cost is not None}
        middle = sorted(seconds.values())[len(seconds) // 2]
        own = seconds[each.row.technique]
        ratios.append((each.similarity, math.log(max(own, 1e-3) / max(middle, 1e-3))))
    return math.exp(_average(ratios))


def _average(values: Sequence[tuple[float, float]]) -> float:
    """The mean of (similarity, value) pairs, each as much as it is similar; 0 without any."""
    weights = [similarity + _FAR_WEIGHT for similarity, _ in values]
    return sum(w * value for w, (_, value) in zip(weights, values, strict=True)) / sum(weights) if values else 0.0
