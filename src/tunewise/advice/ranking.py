"""The candidates in the order in which they are advised, and why others are out of the question.

The order is that of the expected gain; what is expected to gain alike is ordered by what it costs. Only what is certain
leaves a candidate out, see `rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunewise.advice.evidence import Evidence, Sentence
from tunewise.advice.forecast import Forecast, forecasts
from tunewise.advice.question import Situation
from tunewise.advice.rules import refusal

ALIKE = 0.02  # expected gains that differ by less are ordered by cost


@dataclass(frozen=True)
class Ranking:
    """Holds the answer to one situation.

    Attributes:
        situation: what was asked.
        forecasts: of all candidates, by technique.
        order: the techniques that can be chosen, the advised one first.
        refused: the others, each with the reason against it.
        chances: how likely each technique of the order is the best of them.
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
    left = sorted((expected[name] for name in expected if name not in refused), key=lambda each: -each.gain)
    order: list[str] = []
    while left:
        alike = [forecast for forecast in left if left[0].gain - forecast.gain < ALIKE]
        alike.sort(key=lambda forecast: _price(forecast, situation.question.tenants))
        order += [forecast.technique for forecast in alike]
        left = left[len(alike) :]
    belief = evidence.recommender.predict(situation.features)
    return Ranking(situation, expected, tuple(order), refused, belief.only(order).chances() if order else {})


def _price(forecast: Forecast, tenants: int) -> tuple[float, float]:
    """What orders candidates that gain alike: with several tenants the size on disk first, else the tokens."""
    if tenants > 1:
        return forecast.artifact_bytes, forecast.month_tokens
    return forecast.month_tokens, forecast.artifact_bytes
