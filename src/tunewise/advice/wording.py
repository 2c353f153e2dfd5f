"""The sentences of advice, with a link from each of their figures to its source.

A link is {"kind", "ref", "path", "value", "shown"}: in the source of that kind and name, `path` leads to `value`, which
the sentence prints as `shown`.

    atlas      ref: a record's name         path: lora.gain, lora.score.mean, lora.cost.artifact_bytes, similarity
               ref: all                     path: lora.gain, the mean over all records
    paper      ref: a published table's id  path: lora.score, lora.memory_gb, similarity
    plan       ref: a technique             path: memory.peak, verdict, ...
    task       ref: a feature               path: "" (the number itself)
    technique  ref: a technique             path: a fact of its class: needs, mergeable, trains, ...
    request    ref: a question's field      path: ""
    change     ref: the changed situation   path: gain, was
    forecast   ref: a technique             path: gain.mean, chance, ... in the rows of this advice
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tunewise.advice.features import Features, distance
from tunewise.advice.question import ALIKE
from tunewise.core.units import size

if TYPE_CHECKING:
    from tunewise.advice.atlas.published import Table
    from tunewise.advice.changes import Change
    from tunewise.advice.evidence import Evidence
    from tunewise.advice.forecast import Forecast
    from tunewise.advice.ranking import Ranking

ALL = "all"  # `ref` of a mean over all records
_TABLE_DISTANCE = 4.0  # published tables further away are not quoted
_FAR = 0.2  # records of less similarity are not quoted
_CLOSE = 0.5  # similarity below which the user is told that the nearest record is far


@dataclass(frozen=True)
class Link:
    """Leads from one figure or fact to its source."""

    kind: str
    ref: str
    path: str
    value: object
    shown: str


@dataclass(frozen=True)
class Sentence:
    """Holds a sentence with links to the sources of what it says."""

    text: str
    links: tuple[Link, ...]

    def to_json(self) -> dict[str, object]:
        """Return the text and the links."""
        return {"text": self.text, "evidence": [asdict(link) for link in self.links]}


def say(template: str, *links: Link) -> Sentence:
    """Fill each `{}` of a sentence with the figure of a link; links beyond those are cited without a figure.

    Args:
        template: the sentence, with one `{}` for each figure.
        *links: the sources, those with figures first and in the order of the sentence.
    """
    figures = template.count("{}")
    return Sentence(template.format(*(link.shown for link in links[:figures])), tuple(links))


def summary(ranking: Ranking) -> list[Sentence]:
    """Say what is advised, how certain that is, and what the task looks like."""
    return [*_advised(ranking), *_task(ranking.situation.features)]


def _advised(ranking: Ranking) -> list[Sentence]:
    top = ranking.top
    if top is None:
        needs = Link("request", "needs", "", list(ranking.situation.question.needs), "")
        return [say("No technique meets the requirements; each row says why.", needs)]
    name = top.technique
    sentences = [
        say(
            "{} is advised: it is expected to reach {} of the best technique's gain ({} to {}).",
            Link("forecast", name, "technique", name, name),
            *_gain_links(top),
        )
    ]
    if len(ranking.order) > 1:
        chance = ranking.chances[name]
        sentences.append(
            say(
                "It is the best of these with a probability of {}; run tunewise compare --advised to measure it.",
                Link("forecast", name, "chance", chance, f"{chance:.0%}"),
            )
        )
    if (trade := trade_off(ranking)) is not None:
        sentences.append(trade)
    if top.nearest is not None and top.nearest.similarity < _CLOSE:
        record = top.nearest.record.name
        similarity = top.nearest.similarity
        sentences.append(
            say(
                "No recorded comparison is close: the nearest with this technique, {}, has a similarity of {}.",
                Link("atlas", record, f"{name}.technique", name, record),
                Link("atlas", record, "similarity", similarity, f"{similarity:.2f}"),
            )
        )
    return sentences


def trade_off(ranking: Ranking) -> Sentence | None:
    """Say which technique of higher expected gain the user's requirements rule out; None if they cost nothing."""
    top = ranking.top
    # A reason that links to no request comes from the plan or the model: dropping a requirement would not help.
    excluded = [
        ranking.forecasts[name]
        for name, reason in ranking.refused.items()
        if any(link.kind == "request" for link in reason.links)
    ]
    if top is None or not excluded:
        return None
    better = max(excluded, key=lambda forecast: forecast.gain)
    if better.gain - top.gain < ALIKE:
        return None
    return say(
        "The requirements have a price: {} is ruled out, although it would be expected to reach {} instead of {}.",
        Link("forecast", better.technique, "technique", better.technique, better.technique),
        Link("forecast", better.technique, "gain.mean", better.gain, f"{better.gain:.2f}"),
        Link("forecast", top.technique, "gain.mean", top.gain, f"{top.gain:.2f}"),
    )


def _task(features: Features) -> list[Sentence]:
    """Describe the task by its size and its unusual features."""

    def fact(name: str, shown: str) -> Link:
        return Link("task", name, "", getattr(features, name), shown)

    kind = "generated answers" if features.generation else f"a choice of {features.labels:.0f} labels"
    sentences = [
        say(
            "The task has {} training examples, " + kind + ", prompts of {} tokens and answers of {}.",
            fact("train", f"{features.train:,.0f}"),
            fact("prompt_tokens", f"{features.prompt_tokens:.0f}"),
            fact("answer_tokens", f"{features.answer_tokens:.1f}"),
            fact("labels", ""),
            fact("generation", ""),
        )
    ]
    if features.base_loss is not None:
        loss = fact("base_loss", f"{features.base_loss:.2f}")
        sentences.append(say("The unadapted model's loss on it is {} nats per answer token.", loss))
    if features.labels and features.balance < 0.8:
        balance = fact("balance", f"{features.balance:.2f}")
        sentences.append(say("The labels are imbalanced: their balance is {} (1 is uniform).", balance))
    if features.documents:
        share = fact("in_documents", f"{features.in_documents:.0%}")
        sentences.append(say("Documents are given; {} of the held-out answers occur in them word for word.", share))
    if features.unseen >= 0.1 and not features.documents:
        unseen = fact("unseen", f"{features.unseen:.0%}")
        sentences.append(say("{} of the held-out answers occur in no training example.", unseen))
    if features.copied >= 0.1:
        copied = fact("copied", f"{features.copied:.0%}")
        sentences.append(say("{} of the held-out answers occur in their own prompts.", copied))
    return sentences


def why(forecast: Forecast, refused: Sentence | None, evidence: Evidence, ranking: Ranking) -> list[Sentence]:
    """Explain the place of a technique: the reason that rules it out, or the evidence behind its forecast."""
    if refused is not None:
        return [refused]
    situation = ranking.situation
    return [
        say("Expected to reach {} of the best technique's gain ({} to {}).", *_gain_links(forecast)),
        *_recorded(forecast, evidence),
        *_published(forecast, evidence, situation.features),
        *_planned(forecast),
        _cost(forecast, situation.question.tenants),
    ]


def _gain_links(forecast: Forecast) -> list[Link]:
    """Links of the expected gain and its interval to the row of the advice."""
    figures = {"mean": forecast.gain, "low": forecast.low, "high": forecast.high}
    name = forecast.technique
    return [Link("forecast", name, f"gain.{part}", value, f"{value:.2f}") for part, value in figures.items()]


def _recorded(forecast: Forecast, evidence: Evidence) -> list[Sentence]:
    """Quote the nearest record of the technique, or its mean over all records if none is near."""
    name, nearest = forecast.technique, forecast.nearest
    if nearest is None:
        return [say("No recorded comparison has this technique.", Link("technique", name, "name", name, ""))]
    record, row, similarity = nearest.record, nearest.row, nearest.similarity
    if similarity < _FAR:
        gains = [other.gain(name) for other in evidence.records.values() if name in other.scored]
        mean = sum(gains) / len(gains)
        source = Link("atlas", ALL, f"{name}.gain", mean, f"{mean:.2f}")
        return [
            say(
                f"No recorded comparison is similar; over all {len(gains)} with this technique its mean gain is {{}}.",
                source,
            )
        ]
    assert row.score is not None, f"{record.name} scores {name}"
    score, gain = float(row.score.mean), record.gain(name)
    sentences = [
        say(
            f"On {record.task.name} with {record.model.name.rpartition('/')[2]} (" + "{}, similarity {}) it scored {}, "
            "{} of the best gain there.",
            Link("atlas", record.name, f"{name}.technique", name, record.name),
            Link("atlas", record.name, "similarity", similarity, f"{similarity:.2f}"),
            Link("atlas", record.name, f"{name}.score.mean", score, f"{score:.3f}"),
            Link("atlas", record.name, f"{name}.gain", gain, f"{gain:.2f}"),
        )
    ]
    if row.forgetting is not None:
        rise = row.forgetting.nll_rise
        source = Link("atlas", record.name, f"{name}.forgetting.nll_rise", rise, f"{rise:+.2f}")
        sentences.append(say("There it changed the loss on retention text by {} nats per token.", source))
    return sentences


def _published(forecast: Forecast, evidence: Evidence, features: Features) -> list[Sentence]:
    """Quote the published tables that are nearer than any record: a score beside another technique's, and memory."""
    name, nearest = forecast.technique, forecast.nearest
    limit = _TABLE_DISTANCE
    if nearest is not None:
        limit = min(_TABLE_DISTANCE, distance(nearest.record.features.features(), features))
    tables = [table for table in evidence.tables.values() if name in table.scored]
    distances = {table.id: distance(table.features.features(), features) for table in tables}
    nearer = sorted((table for table in tables if distances[table.id] < limit), key=lambda table: distances[table.id])
    compared = next((table for table in nearer if len(table.rows) > 1), None)
    sentences = [_beside_another(compared, name)] if compared is not None else []
    for table in nearer:
        memory = table.scored[name].memory_gb
        if memory is not None:
            source = Link("paper", table.id, f"{name}.memory_gb", memory, f"{memory:.3g}")
            where = _escaped(f"{table.setting}; {table.authors} {table.year}")
            return [*sentences, say(f"Published: it took {{}} GB ({where}).", source)]
    return sentences


def _beside_another(table: Table, name: str) -> Sentence:
    """Quote a technique's published score beside the best of the other techniques in the table."""
    score = table.scored[name].score
    other = max((technique for technique in table.scored if technique != name), key=lambda t: table.scored[t].score)
    other_score = table.scored[other].score
    return say(
        f"Published, not measured here: {{}} {table.metric} against {{}} for {other} ({_escaped(table.setting)}; "
        f"{_escaped(table.cited)}).",
        Link("paper", table.id, f"{name}.score", score, f"{score:.3f}"),
        Link("paper", table.id, f"{other}.score", other_score, f"{other_score:.3f}"),
    )


def _escaped(text: str) -> str:
    """Double the braces of a text, so that `say` prints them."""
    return text.replace("{", "{{").replace("}", "}}")


def _planned(forecast: Forecast) -> list[Sentence]:
    """Quote the plan's memory and time."""
    name, plan = forecast.technique, forecast.plan
    if plan is None:
        return []
    sentences = []
    if plan.peak is not None:
        verdict = Link("plan", name, "verdict", plan.verdict, plan.verdict)
        settings = ", ".join(f"{setting} {value}" for setting, value in plan.changed.items())
        changed = f" ({_escaped(settings)})" if settings and plan.verdict == "fits with" else ""
        memory = Link("plan", name, "memory.peak", plan.peak, size(plan.peak))
        sentences.append(say("According to the plan it {}" + changed + " and takes {} of memory.", verdict, memory))
    if plan.train_seconds is not None:
        seconds = Link("plan", name, "time.seconds", plan.train_seconds, f"{plan.train_seconds:,.0f}")
        sentences.append(say("According to the plan its training takes {} s.", seconds))
    return sentences


def _cost(forecast: Forecast, tenants: int) -> Sentence:
    """Say how long requests are and how large the adaptation is."""
    name, tokens, disk = forecast.technique, forecast.prompt_tokens, forecast.artifact_bytes
    request = Link("forecast", name, "prompt_tokens", tokens, f"{tokens:.0f}")
    artifact = Link("forecast", name, "artifact_bytes", disk, size(disk))
    if tenants > 1:
        count = Link("request", "tenants", "", tenants, f"{tenants:,}")
        text = "A request is {} tokens long; an adaptation takes about {}, times {} tenants."
        return say(text, request, artifact, count)
    return say("A request is {} tokens long; the adaptation takes about {}.", request, artifact)


def changed(change: Change, now: Ranking, then: Ranking) -> Sentence:
    """Say what would be advised in another situation.

    Args:
        change: the other situation.
        now: the ranking for the unchanged situation.
        then: the ranking for the other one.
    """
    top, present = then.top, now.top
    if top is None:
        source = _source(then, present)
        return Sentence(f"With {change.words}, no technique meets the requirements.", (source,))
    same = present is not None and top.technique == present.technique
    links = [Link("change", change.name, "gain", top.gain, f"{top.gain:.2f}")]
    text = f"With {change.words} it would {'still be' if same else 'be'} {top.technique}, expected to reach {{}}"
    if present is not None and present.technique in then.refused:
        text += f"; {present.technique} is ruled out"
    elif present is not None and not same:
        gain = then.forecasts[present.technique].gain
        links.append(Link("change", change.name, "was", gain, f"{gain:.2f}"))
        text += f" ({present.technique}: {{}})"
    return say(text + ".", *links, _source(then, top))


def _source(ranking: Ranking, about: Forecast | None) -> Link:
    """Link to the nearest record behind a technique's forecast; to the technique itself if no record has it."""
    forecast = ranking.forecasts[about.technique] if about is not None else next(iter(ranking.forecasts.values()))
    name = forecast.technique
    if about is None or forecast.nearest is None:
        return Link("technique", name, "name", name, "")
    return Link("atlas", forecast.nearest.record.name, f"{name}.technique", name, "")
