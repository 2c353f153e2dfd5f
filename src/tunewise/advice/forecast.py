"""The prediction for each candidate before anything runs: its gain, its forgetting, and what it costs.

`forecasts` makes one `Forecast` per candidate from the evidence; rules, ranking and wording read nothing else about a
candidate. Gains come from evidence. Sizes, memory, time and lengths of requests are the plan's, which counts them on
the model itself; without a plan they are not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunewise.advice.atlas.schema import Record, Row
from tunewise.advice.evidence import Evidence, Fact, Quoted
from tunewise.advice.features import Features
from tunewise.advice.plan.plan_row import PlanRow
from tunewise.advice.published.publications import publications
from tunewise.advice.question import Candidate, Situation

# The publication and the names of the constants that say how much trained parameters can hold.
CAPACITY, STORED_BITS, NEEDED_BITS = "schulman-2025", "stored_bits_per_parameter", "bits_per_token_to_learn"
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
        prompt_tokens: length of a request; None without a plan.
        artifact_bytes: size of the adaptation on disk; None without a plan.
        month_tokens: tokens that pass through the model in training and in a month of requests.
        seconds: run time of its row in a comparison, divided by that of a typical row.
        mergeable: whether it can be merged into the model's weights.
        swappable: whether its adaptations can be swapped on one loaded model.
        turned_down: why it cannot work on this model or task; None if it can.
        capacity: bits that its trained parameters hold / bits of all answers; None if it is not trained or planned.
        quoted: what was observed of it, the most similar first.
        plan: its row of the plan; None without a plan.
    """

    technique: str
    candidate: Candidate
    gain: float
    low: float
    high: float
    rise: float
    prompt_tokens: float | None
    artifact_bytes: float | None
    month_tokens: float
    seconds: float
    mergeable: Fact
    swappable: Fact
    turned_down: str | None
    capacity: float | None
    quoted: tuple[Quoted, ...]
    plan: PlanRow | None


def forecasts(evidence: Evidence, situation: Situation) -> dict[str, Forecast]:
    """Predict everything that advice needs of each candidate.

    Returns:
        The forecasts by technique, in the order of the candidates.
    """
    features = situation.features
    belief = evidence.predict(features)
    records, quotable = evidence.nearest_records(features), evidence.quotable(features)
    result = {}
    for name, candidate in evidence.candidates.items():
        rows, plan = _rows_of(name, records), situation.plan.get(name)
        gain, low, high = belief.interval(name)
        prompt_tokens = plan.prompt_tokens if plan is not None else None
        served = features.prompt_tokens if prompt_tokens is None else prompt_tokens
        result[name] = Forecast(
            technique=name,
            candidate=candidate,
            gain=gain,
            low=low,
            high=high,
            rise=_rise(rows),
            prompt_tokens=prompt_tokens,
            artifact_bytes=plan.artifact_bytes if plan is not None else None,
            month_tokens=situation.question.requests_per_day * DAYS * served
            + (_trained_tokens(features) if candidate.trains else 0.0),
            seconds=_seconds(rows),
            mergeable=evidence.is_mergeable(name),
            swappable=evidence.is_swappable(name),
            turned_down=evidence.refused.get(name),
            capacity=_capacity(features, plan) if candidate.trains else None,
            quoted=quotable[name],
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


def _trained_tokens(features: Features) -> float:
    """Tokens that training passes through the model, a backward pass counted as two."""
    return _PASSES * features.examples * (features.prompt_tokens + features.answer_tokens)


def _capacity(features: Features, plan: PlanRow | None) -> float | None:
    """Bits that the trained parameters hold / bits of the answers, by the constants of a publication."""
    if plan is None or not plan.optimised_parameters:
        return None
    stored, needed = (constant(CAPACITY, name) for name in (STORED_BITS, NEEDED_BITS))
    return plan.optimised_parameters * stored / max(features.train * features.answer_tokens * needed, 1.0)


def constant(publication: str, name: str) -> float:
    """Return a constant of a publication; raises `KeyError` if it has none of this name."""
    return {each.name: each.value for each in publications()[publication].constants}[name]  # type: ignore[index]


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
