"""What might change the advice: other situations, each asked again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tunewise.advice.features import Features
from tunewise.advice.forecast import Advisor, situation
from tunewise.advice.question import Asked, Situation


@dataclass(frozen=True)
class Change:
    """Another question to ask: what is different, in words, and the situation; `name` is for machines."""

    name: str
    words: str
    situation: Situation


def changes(advisor: Advisor, asked: Situation, gathered: Asked) -> list[Change]:
    """What might change the answer: each is asked again."""
    features, found = asked.features, list[Change]()

    def other(name: str, words: str, features: Features = features, **wanted: Any) -> None:
        again = replace(gathered, **wanted)
        found.append(Change(name, words, situation(advisor, features, again)))

    other(
        "data x 10", "ten times the data", features.changed(train=features.train * 10, examples=features.examples * 10)
    )
    other(
        "data / 10", "a tenth of the data", features.changed(train=features.train / 10, examples=features.examples / 10)
    )
    if not features.documents:
        other("documents", "documents that hold the answers", features.changed(documents=1.0, in_documents=1.0))
    elif not gathered.documents_change:
        other("documents change", "documents that change after training", documents_change=True)
    if not gathered.forget_nothing:
        other("forget nothing", "a model that must forget nothing", forget_nothing=True)
    if gathered.tenants == 1:
        other("tenants", "a thousand tenants with an adaptation each", tenants=1000)
    other("requests x 100", "a hundred times the requests", requests_per_day=gathered.requests_per_day * 100)
    if advisor.planner is not None and gathered.memory is not None:
        other("memory / 2", "half of the memory", memory=gathered.memory / 2)
    return found
