"""The candidates in the order in which they are advised, and why the others are ruled out.

Candidates are ordered by expected gain, and by cost where the expected gains are about equal. A candidate is ruled out
only by something certain, see `rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunewise.advice.evidence import Evidence
from tunewise.advice.forecast import Forecast, forecasts
from tunewise.advice.question import ALIKE, Situation
from tunewise.advice.rules import refusal
from tunewise.advice.wording import Sentence


@dataclass(frozen=True)
class Ranking:
    """Holds the ranked candidates of one situation.

    Attributes:
        situation: the model, the task and the question.
        forecasts: of all candidates, by technique.
        order: the techniques that can be chosen, the advised one first.
        refused: the techniques that are ruled out, each with the reason.
        chances: the probability that each technique of the order is the best of them.
    """

    situation: Situation
    forecasts: Mapping[str, Forecast]
    order: tuple[str, ...]
    refused: Mapping[str, Sentence]
    chances: Mapping[str, float]

    @property
    def top(self) -> Forecast | None:
        """Return the forecast of the advised technique; None where no technique can be chosen."""
        return self.forecasts[self.order[0]] if self.order else None


def rank(evidence: Evidence, situation: Situation) -> Ranking:
    """Order the candidates for a situation."""
    expected = forecasts(evidence, situation)
    reasons = {name: refusal(forecast, situation) for name, forecast in expected.items()}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    by_gain = sorted(
        (forecast for name, forecast in expected.items() if name not in refused), key=lambda forecast: -forecast.gain
    )
    order: list[str] = []
    while by_gain:
        tied = [forecast for forecast in by_gain if by_gain[0].gain - forecast.gain < ALIKE]
        tied.sort(key=lambda forecast: _running_cost(forecast, situation.question.tenants))
        order += [forecast.technique for forecast in tied]
        by_gain = by_gain[len(tied) :]
    belief = evidence.recommender.predict(situation.features)
    return Ranking(situation, expected, tuple(order), refused, belief.only(order).chances() if order else {})


def _running_cost(forecast: Forecast, tenants: int) -> tuple[float, float]:
    """Sort key of candidates with equal gains: size on disk first if there are several tenants, else tokens first."""
    if tenants > 1:
        return forecast.artifact_bytes, forecast.month_tokens
    return forecast.month_tokens, forecast.artifact_bytes
