"""The candidates in the order in which they are advised, and why the others are ruled out.

Candidates are ordered by expected gain. Where the evidence cannot order them, because none of them is better than
another with a chance of at least `ORDERED`, the rules of `RULES` do, each in turn: three that are stated, and then
cost. A candidate is ruled out only by something certain, see `rules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tunewise.advice.evidence import Evidence
from tunewise.advice.forecast import Forecast, forecasts
from tunewise.advice.gains import Belief
from tunewise.advice.question import Situation, reads_documents
from tunewise.advice.rules import refusal
from tunewise.advice.sentences import Sentence

ORDERED = 0.6  # the chance to be better from which the evidence orders two candidates
FEW = 100  # training examples below which what trains nothing goes first
_SAME_COST = 1.25  # numbers of tokens whose ratio is below it count as about the same cost


class Rule(NamedTuple):
    """Orders candidates that the evidence cannot order: the lower key goes first.

    `words` say so of the one that goes first; the costs of the rules without are told in figures.
    """

    name: Literal["documents", "few examples", "capacity", "tokens", "merges", "size"]
    words: str
    key: Callable[[Forecast, Situation], float]


def _tokens(forecast: Forecast, situation: Situation) -> float:
    return round(math.log(max(forecast.month_tokens, 1.0)) / math.log(_SAME_COST))


def _stored(forecast: Forecast, situation: Situation) -> float:
    return math.inf if forecast.artifact_bytes is None else forecast.artifact_bytes


RULES = (
    Rule(
        "documents",
        "it searches the documents, which hold the answers and may change without training",
        lambda forecast, situation: float(
            situation.features.kind == "answers in documents" and not reads_documents(forecast.candidate)
        ),
    ),
    Rule(
        "few examples",
        f"with fewer than {FEW} examples what trains nothing goes first",
        lambda forecast, situation: float(situation.features.train < FEW and forecast.candidate.trains),
    ),
    Rule(
        "capacity",
        "its parameters can hold so many answers",
        lambda forecast, situation: float((forecast.capacity or 1.0) < 1.0),
    ),
    Rule("tokens", "", _tokens),
    Rule(
        "merges",
        "it merges into the weights, so that requests cost what they cost without it",
        lambda forecast, situation: float(situation.question.tenants == 1 and not forecast.mergeable.holds),
    ),
    Rule("size", "", _stored),
)


@dataclass(frozen=True)
class Ranking:
    """Holds the ranked candidates of one situation.

    Attributes:
        situation: the model, the task and the question.
        forecasts: of all candidates, by technique.
        order: the techniques that can be chosen, the advised one first.
        tied: of the order, those that the evidence cannot tell from the first, itself included.
        refused: the techniques that are ruled out, each with the reason.
        chances: the probability that each technique of the order is the best of them.
        belief: over the gains of the techniques of the order.
    """

    situation: Situation
    forecasts: Mapping[str, Forecast]
    order: tuple[str, ...]
    tied: tuple[str, ...]
    refused: Mapping[str, Sentence]
    chances: Mapping[str, float]
    belief: Belief

    @property
    def top(self) -> Forecast | None:
        """Return the forecast of the advised technique; None where no technique can be chosen."""
        return self.forecasts[self.order[0]] if self.order else None


def rank(evidence: Evidence, situation: Situation) -> Ranking:
    """Order the candidates for a situation."""
    expected = forecasts(evidence, situation)
    reasons = {name: refusal(forecast, situation) for name, forecast in expected.items()}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    belief = evidence.predict(situation.features)
    by_gain = sorted((name for name in expected if name not in refused), key=lambda name: -expected[name].gain)
    groups = list[list[str]]()
    while by_gain:
        tied = [name for name in by_gain if name == by_gain[0] or belief.better(by_gain[0], name) < ORDERED]
        groups.append(sorted(tied, key=lambda name: _place(expected[name], situation)))
        by_gain = [name for name in by_gain if name not in tied]
    order = tuple(name for group in groups for name in group)
    chances = belief.only(order).chances() if order else {}
    return Ranking(situation, expected, order, tuple(groups[0]) if groups else (), refused, chances, belief.only(order))


def _place(forecast: Forecast, situation: Situation) -> tuple[float, ...]:
    """Sort key of candidates that the evidence cannot order; with several tenants what is kept counts before tokens."""
    keys = {rule.name: rule.key(forecast, situation) for rule in RULES}
    stored = keys.pop("size")
    stated, costs = list(keys.values())[:3], list(keys.values())[3:]
    return (*stated, stored, *costs) if situation.question.tenants > 1 else (*stated, *costs, stored)


def deciding(first: Forecast, other: Forecast, situation: Situation) -> Rule:
    """Return the rule that puts one candidate before another that the evidence cannot tell from it."""
    rules = (
        sorted(RULES, key=lambda rule: rule.name in ("tokens", "merges")) if situation.question.tenants > 1 else RULES
    )
    unequal = (rule for rule in rules if rule.key(first, situation) != rule.key(other, situation))
    return next(unequal, RULES[-1])
