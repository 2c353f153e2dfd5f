"""The candidates in the order in which they are advised, and why others are out of the question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunewise.advice.evidence import Sentence
from tunewise.advice.forecast import Advisor, artifact, expected_rise, month
from tunewise.advice.gains import Belief
from tunewise.advice.question import Situation
from tunewise.advice.rules import refusal

ALIKE = 0.02  # expected gains that differ by less are ordered by cost


@dataclass(frozen=True)
class Ranking:
    """The answer: the belief over all candidates, those that can be chosen in order, and why others cannot."""

    situation: Situation
    belief: Belief
    order: tuple[str, ...]
    refused: Mapping[str, Sentence]
    tokens: Mapping[str, float]  # what a month costs, in tokens through the model
    rises: Mapping[str, float]  # nats a token that retention text's loss is expected to rise by

    @property
    def top(self) -> str | None:
        """The advised technique."""
        return self.order[0] if self.order else None


def ranking(advisor: Advisor, asked: Situation) -> Ranking:
    """The candidates in order."""
    belief = advisor.model.predict(asked.features)
    rises = {name: expected_rise(advisor, name, asked.features) for name in advisor.techniques}
    refused = {}
    for name in advisor.techniques:
        sentence = refusal(advisor, asked, name, rises[name])
        if sentence is not None:
            refused[name] = sentence
    tokens = {name: month(advisor, asked, name) for name in advisor.techniques}
    left = sorted((name for name in advisor.techniques if name not in refused), key=lambda n: -belief.interval(n)[0])
    order: list[str] = []
    while left:
        best = belief.interval(left[0])[0]
        alike = [name for name in left if best - belief.interval(name)[0] < ALIKE]
        order += sorted(alike, key=lambda name: _price(advisor, asked, name, tokens[name]))
        left = left[len(alike) :]
    return Ranking(asked, belief, tuple(order), refused, tokens, rises)


def _price(advisor: Advisor, asked: Situation, name: str, tokens: float) -> tuple[float, float]:
    disk = artifact(advisor, asked, name)
    return (disk, tokens) if asked.asked.tenants > 1 else (tokens, disk)
