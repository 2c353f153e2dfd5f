"""Situations that differ in one respect from the one asked about, to show what would change the advice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunewise.advice.evidence import Evidence
from tunewise.advice.question import Situation


@dataclass(frozen=True)
class Change:
    """Names another situation to give advice for: `name` is its key in JSON, `words` the difference in a sentence."""

    name: str
    words: str
    situation: Situation


def changes(evidence: Evidence, situation: Situation) -> Iterator[Change]:
    """Yield the situations that may have another answer: more or less data, other needs, less memory."""
    features, question = situation.features, situation.question
    more = features.changed(train=features.train * 10, examples=features.examples * 10)
    fewer = features.changed(train=features.train / 10, examples=features.examples / 10)
    yield Change("data x 10", "ten times the data", replace(situation, features=more))
    yield Change("data / 10", "a tenth of the data", replace(situation, features=fewer))
    if not features.documents:
        library = features.changed(documents=1.0, in_documents=1.0)
        yield Change("documents", "documents that hold the answers", replace(situation, features=library))
    elif not question.documents_change:
        changing = replace(question, documents_change=True)
        words = "documents that change after training"
        yield Change("documents change", words, replace(situation, question=changing))
    if not question.forget_nothing:
        no_forgetting = replace(question, forget_nothing=True)
        yield Change("forget nothing", "a model that must forget nothing", replace(situation, question=no_forgetting))
    if question.tenants == 1:
        many = replace(question, tenants=1000)
        words = "a thousand tenants, each with its own adaptation"
        yield Change("tenants", words, replace(situation, question=many))
    busier = replace(question, requests_per_day=question.requests_per_day * 100)
    yield Change("requests x 100", "a hundred times the requests", replace(situation, question=busier))
    if evidence.planner is not None and question.memory is not None:
        half = replace(question, memory=question.memory / 2)
        planned = Situation.planned(features, half, evidence.planner)
        yield Change("memory / 2", "half the memory", planned)
