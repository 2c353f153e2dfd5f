"""The evidence in words that a practitioner can check: which model, which task, how many examples, how similar."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunewise.advice.observations import observed_name
from tunewise.advice.sentences import Link, Sentence, escaped, say
from tunewise.core.units import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tunewise.advice.evidence import Evidence, Quoted
    from tunewise.advice.forecast import Forecast

_FAR = 0.5  # comparisons of less similar conditions are not quoted one by one
_NEARLY = 0.85  # of the best similarity, from which a comparison of the other kind is quoted besides


def quotations(forecast: Forecast, evidence: Evidence) -> list[Sentence]:
    """Quote the comparison under the most similar conditions; of records and publications both if both are near."""
    name = forecast.technique
    if not forecast.quoted:
        link = Link("technique", name, "name", name, name)
        return [say("No comparison has {}: it is expected to be as its family is.", link)]
    nearest = forecast.quoted[0]
    if nearest.similarity < _FAR and nearest.same:
        return [_far(forecast, evidence)]
    sentences = [_quoted(nearest, evidence)]
    for other in forecast.quoted:
        if other.observed.kind != nearest.observed.kind and other.similarity >= _NEARLY * nearest.similarity:
            return [*sentences, _quoted(other, evidence)]
    return sentences


def _quoted(quoted: Quoted, evidence: Evidence) -> Sentence:
    return _recorded(quoted, evidence) if quoted.observed.kind == "atlas" else _published(quoted, evidence)


def _recorded(quoted: Quoted, evidence: Evidence) -> Sentence:
    """Quote a record: the score, beside those of the base and of the best technique, and forgetting."""
    from tunewise.advice.atlas.staleness import stale_rows

    record = evidence.records[quoted.observed.ref]
    raw = _name_in(record.scored, quoted.technique, reading=bool(record.features.documents))
    row, best = record.scored[raw], record.best[0]
    assert row.score is not None, f"{record.name} scores {raw}"

    def score(name: str) -> Link:
        value = record.scored[name].score
        assert value is not None, f"{record.name} scores {name}"
        return Link("atlas", record.name, f"{name}.score.mean", value.mean, f"{value.mean:.3f}")

    model = f"{record.model.name.rpartition('/')[2]}, {count(record.model.parameters)} parameters"
    where = (
        f"{record.task.name} with {escaped(model)}, {record.task.train:,} examples and {record.budget.steps} steps "
        f"(similarity {{}}; the base {{}}, the best {{}} with {best})"
    )
    found, links = "scored {}", [score(raw)]
    if row.forgetting is not None:
        rise = row.forgetting.nll_rise
        links.append(Link("atlas", record.name, f"{raw}.forgetting.nll_rise", rise, f"{rise:+.2f}"))
        found += " and changed the loss on other text by {} nats per token"
    if raw in stale_rows(record):
        found += ", with other defaults than today's"
    facts = [_similarity(quoted), score("base"), score(best)]
    return _quote(where, facts, found, links, subject=raw, named=not quoted.same)


def _published(quoted: Quoted, evidence: Evidence) -> Sentence:
    """Quote a published score beside the best other technique's."""
    comparison = evidence.comparisons[quoted.observed.ref]
    raw = _name_in(comparison.rows, quoted.technique, reading=True)
    others = [name for name in comparison.rows if name not in (raw, "base") and "peft:" not in name]
    other = max(others, key=lambda name: comparison.rows[name].score)
    figures = [
        Link("paper", comparison.ref, f"{name}.score", comparison.rows[name].score, f"{comparison.rows[name].score:g}")
        for name in (raw, other)
    ]
    metric = escaped(comparison.table.metric)
    found = f"{{}} {metric} with {raw}, {{}} with {other}"
    if comparison.has_base:
        base = comparison.rows["base"].score
        figures.append(Link("paper", comparison.ref, "base.score", base, f"{base:g}"))
        found += ", {} unadapted"
    where = f"{escaped(comparison.words)} ({escaped(comparison.cited)}; {comparison.table.comparable}; similarity {{}})"
    return _quote(where, [_similarity(quoted)], found, figures)


def _quote(
    where: str, facts: Sequence[Link], found: str, figures: Sequence[Link], *, subject: str = "", named: bool = False
) -> Sentence:
    """Say what was found in a comparison: both as one sentence, and apart.

    Args:
        where: describes the comparison.
        facts: the links of its figures.
        found: what was found.
        figures: the links of its figures.
        subject: the technique of which that is said, if `found` does not name it.
        named: whether a table must name it too, because it is not the row's own.
    """
    source, finding = say(where, *facts), say(found, *figures)
    with_subject = f"{subject} {finding.text}".lstrip()
    return Sentence(
        f"On {source.text}: {with_subject}.",
        (*source.links, *finding.links),
        source.text,
        with_subject if named else finding.text,
    )


def _far(forecast: Forecast, evidence: Evidence) -> Sentence:
    """Say that all evidence of a technique is from other conditions: how much there is, and up to which size."""
    own = [quoted for quoted in forecast.quoted if quoted.same]
    largest = max(own, key=lambda quoted: quoted.observed.conditions.parameters)
    parameters = largest.observed.conditions.parameters
    gain = largest.observed.gains[largest.technique]
    raw = _raw_name(largest, evidence)
    link = Link(largest.observed.kind, largest.observed.ref, f"{raw}.gain", gain, f"{gain:.2f}")
    return say(
        f"{forecast.technique} was seen in {len(own)} comparisons, none of them similar; with the largest model, of "
        f"{count(parameters)} parameters, it gained {{}} ({escaped(largest.observed.ref)}, similarity {{}}).",
        link,
        _similarity(largest),
    )


def _raw_name(quoted: Quoted, evidence: Evidence) -> str:
    if quoted.observed.kind == "paper":
        return _name_in(evidence.comparisons[quoted.observed.ref].rows, quoted.technique, reading=True)
    record = evidence.records[quoted.observed.ref]
    return _name_in(record.scored, quoted.technique, reading=bool(record.features.documents))


def _name_in(names: Iterable[str], technique: str, *, reading: bool) -> str:
    """Return the name that a comparison itself has for an observed technique."""
    return next(name for name in names if observed_name(name, reading=reading) == technique)


def _similarity(quoted: Quoted) -> Link:
    return Link(quoted.observed.kind, quoted.observed.ref, "similarity", quoted.similarity, f"{quoted.similarity:.2f}")


def capacity(forecast: Forecast) -> list[Sentence]:
    """Say where the answers hold more than the trained parameters can: a published rule, counted from the plan."""
    from tunewise.advice.forecast import CAPACITY, NEEDED_BITS, STORED_BITS, constant

    plan = forecast.plan
    if plan is None or plan.optimised_parameters is None or forecast.capacity is None or forecast.capacity >= 1:
        return []
    stored, needed = (constant(CAPACITY, name) for name in (STORED_BITS, NEEDED_BITS))
    return [
        say(
            "Its {} trained parameters hold {} bits each, and the answers need {} bit a token: "
            f"{math.ceil(1 / forecast.capacity):,} times as many parameters would hold them, or full fine-tuning.",
            Link(
                "plan",
                forecast.technique,
                "parameters.optimised",
                plan.optimised_parameters,
                f"{plan.optimised_parameters:,}",
            ),
            Link("constant", CAPACITY, STORED_BITS, stored, f"{stored:g}"),
            Link("constant", CAPACITY, NEEDED_BITS, needed, f"{needed:g}"),
        )
    ]
