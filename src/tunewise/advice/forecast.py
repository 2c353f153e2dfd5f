"""The prediction for each candidate before anything runs: its gain, its forgetting, and what it costs.

`forecasts` makes one `Forecast` per candidate from the evidence; rules, ranking and wording read nothing else about a
candidate.
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

DAYS = 30  # days of requests that are added to the cost of training
_PASSES = 3.0  # cost of training on a token in forward passes: one forward, and a backward that counts twice
_FAR_WEIGHT = 0.05  # weight of a record that has nothing in common with the situation


@dataclass(frozen=True)
class RecordedRow:
    """Holds one recorded comparison's row of a technique, and the similarity of its situation (1: the same)."""

    record: Record
    row: Row
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Holds what is predicted of one candidate in one situation.

    Attributes:
        technique: its name.
        candidate: the technique itself.
        gain: the expected (score - base) / (best - base).
        low: the lower end of the gain's 95 % interval.
        high: the upper end.
        rise: how much the loss on retention text rises, in nats per token.
        prompt_tokens: length of a request.
        artifact_bytes: size of the adaptation on disk.
        month_tokens: tokens that pass through the model in training and in a month of requests.
        seconds: run time of its row in a comparison, divided by that of a typical row.
        mergeable: whether it can be merged into the model's weights.
        swappable: whether its adaptations can be swapped on one loaded model.
        turned_down: why it cannot work on this model or task; None if it can.
        nearest: its row in the most similar record that has it; None if no record has it.
        plan: its row of the plan; None without a plan.
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
    """The rows of a technique in these records, in their order."""
    return [
        RecordedRow(record, record.scored[technique], similarity)
        for record, similarity in records
        if technique in record.scored
    ]


def _prompt_tokens(features: Features, plan: PlanRow | None, nearest: RecordedRow | None) -> float:
    """Tokens per request: from the plan, else the task's plus what the technique adds in the nearest record."""
    if plan is not None and plan.prompt_tokens is not None:
        return float(plan.prompt_tokens)
    if nearest is None or nearest.row.cost is None:
        return features.prompt_tokens
    base_cost = nearest.record.scored["base"].cost
    assert base_cost is not None, f"the record {nearest.record.name} has no costs of base, which reading it refuses"
    return features.prompt_tokens + max(nearest.row.cost.prompt_tokens - base_cost.prompt_tokens, 0.0)


def _artifact_bytes(features: Features, plan: PlanRow | None, nearest: RecordedRow | None) -> float:
    """Bytes of the adaptation: from the plan, else bytes per model parameter in the nearest record x parameters."""
    if plan is not None and plan.artifact_bytes is not None:
        return float(plan.artifact_bytes)
    if nearest is None or nearest.row.cost is None:
        return features.parameters
    return nearest.row.cost.artifact_bytes * features.parameters / max(nearest.record.model.parameters, 1)


def _trained_tokens(features: Features, nearest: RecordedRow | None, full: RecordedRow | None) -> float:
    """Tokens that training passes through the model, scaled by the recorded training time relative to `full`."""
    passes = _PASSES
    if nearest is not None and full is not None and nearest.row.cost is not None and full.row.cost is not None:
        passes *= nearest.row.cost.train_seconds / max(full.row.cost.train_seconds, 1e-9)
    return passes * features.examples * (features.prompt_tokens + features.answer_tokens)


def _rise(rows: Sequence[RecordedRow]) -> float:
    """exp(mean of log(1 + rise)) - 1 over the recorded rises of the loss on retention text; 0 without records."""
    rises = [
        (recorded.similarity, recorded.row.forgetting.nll_rise)
        for recorded in rows
        if recorded.row.forgetting is not None
    ]
    return math.expm1(_average([(similarity, math.log1p(max(rise, 0.0))) for similarity, rise in rises]))


def _seconds(rows: Sequence[RecordedRow]) -> float:
    """The geometric mean over records of seconds / the comparison's median row's seconds; 1 without records."""
    ratios = []
    for recorded in rows:
        seconds = {name: row.cost.seconds for name, row in recorded.record.scored.items() if row.cost is not None}
        median = sorted(seconds.values())[len(seconds) // 2]
        ratio = max(seconds[recorded.row.technique], 1e-3) / max(median, 1e-3)
        ratios.append((recorded.similarity, math.log(ratio)))
    return math.exp(_average(ratios))


def _average(values: Sequence[tuple[float, float]]) -> float:
    """sum_i w_i v_i / sum_i w_i for (similarity, v) pairs, where w = similarity + _FAR_WEIGHT; 0 without any."""
    weights = [similarity + _FAR_WEIGHT for similarity, _ in values]
    return sum(w * value for w, (_, value) in zip(weights, values, strict=True)) / sum(weights) if values else 0.0
