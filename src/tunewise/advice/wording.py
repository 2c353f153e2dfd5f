"""Advice in sentences; each figure in them is linked to its source, see `evidence`."""

from __future__ import annotations

from tunewise.advice.atlas.published import Table
from tunewise.advice.changes import Change
from tunewise.advice.evidence import ALL, Evidence, Link, Sentence, say
from tunewise.advice.features import Features, distance
from tunewise.advice.forecast import Forecast
from tunewise.advice.ranking import ALIKE, Ranking
from tunewise.core.units import size

_APART = 4.0  # distance from which on a published table says nothing
_FAR = 0.2  # similarity below which a record is not spoken of
_CLOSE = 0.5  # similarity below which the nearest record is said to be far


def summary(ranking: Ranking) -> list[Sentence]:
    """Say what is advised and how sure that is, and what the task looks like."""
    return [*_advised(ranking), *_task(ranking.situation.features)]


def _advised(ranking: Ranking) -> list[Sentence]:
    top = ranking.top
    if top is None:
        needs = Link("request", "needs", "", list(ranking.situation.question.needs), "")
        return [say("No technique meets what was asked; each row says why.", needs)]
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
                "It is the best of these with a chance of {}; the surest way to know is tunewise compare --advised.",
                Link("forecast", name, "chance", chance, f"{chance:.0%}"),
            )
        )
    if (price := trade_off(ranking)) is not None:
        sentences.append(price)
    if top.nearest is not None and top.nearest.similarity < _CLOSE:
        record = top.nearest.record.name
        similarity = top.nearest.similarity
        sentences.append(
            say(
                "Nothing recorded is like this: the nearest comparison with it, {}, has a similarity of {}.",
                Link("atlas", record, f"{name}.technique", name, record),
                Link("atlas", record, "similarity", similarity, f"{similarity:.2f}"),
            )
        )
    return sentences


def trade_off(ranking: Ranking) -> Sentence | None:
    """Say which technique of a higher expected gain the user's own wishes leave out; None where they cost nothing."""
    top = ranking.top
    # A refusal that cites no wish of the user's comes from the plan or the model, and is no price to be paid.
    unwanted = [
        ranking.forecasts[name]
        for name, reason in ranking.refused.items()
        if any(link.kind == "request" for link in reason.links)
    ]
    if top is None or not unwanted:
        return None
    lost = max(unwanted, key=lambda forecast: forecast.gain)
    if lost.gain - top.gain < ALIKE:
        return None
    return say(
        "What was asked has its price: {} is out, and would be expected to reach {} against {}.",
        Link("forecast", lost.technique, "technique", lost.technique, lost.technique),
        Link("forecast", lost.technique, "gain.mean", lost.gain, f"{lost.gain:.2f}"),
        Link("forecast", top.technique, "gain.mean", top.gain, f"{top.gain:.2f}"),
    )


def _task(features: Features) -> list[Sentence]:
    """Describe the task by those of its features that stand out."""

    def fact(name: str, shown: str) -> Link:
        return Link("task", name, "", getattr(features, name), shown)

    kind = "answers are written" if features.generation else f"one of {features.labels:.0f} labels is chosen"
    sentences = [
        say(
            "The task: {} training examples, " + kind + ", prompts of {} tokens and answers of {}.",
            fact("train", f"{features.train:,.0f}"),
            fact("prompt_tokens", f"{features.prompt_tokens:.0f}"),
            fact("answer_tokens", f"{features.answer_tokens:.1f}"),
            fact("labels", ""),
            fact("generation", ""),
        )
    ]
    if features.base_loss is not None:
        loss = fact("base_loss", f"{features.base_loss:.2f}")
        sentences.append(say("The unadapted model's loss there is {} nats an answer token.", loss))
    if features.labels and features.balance < 0.8:
        balance = fact("balance", f"{features.balance:.2f}")
        sentences.append(say("The labels are uneven: their balance is {} (1 is even).", balance))
    if features.documents:
        share = fact("in_documents", f"{features.in_documents:.0%}")
        sentences.append(say("Documents are given; {} of the held-out answers stand in them word for word.", share))
    if features.unseen >= 0.1 and not features.documents:
        unseen = fact("unseen", f"{features.unseen:.0%}")
        sentences.append(say("{} of the held-out answers are none that training shows.", unseen))
    if features.copied >= 0.1:
        copied = fact("copied", f"{features.copied:.0%}")
        sentences.append(say("{} of the held-out answers stand in their own prompts.", copied))
    return sentences


def why(forecast: Forecast, refused: Sentence | None, evidence: Evidence, ranking: Ranking) -> list[Sentence]:
    """Say why a technique stands where it stands: the reason against it, or what its forecast is drawn from."""
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
    """The expected gain and its interval, each a figure of the advice's own row."""
    figures = {"mean": forecast.gain, "low": forecast.low, "high": forecast.high}
    name = forecast.technique
    return [Link("forecast", name, f"gain.{part}", value, f"{value:.2f}") for part, value in figures.items()]


def _recorded(forecast: Forecast, evidence: Evidence) -> list[Sentence]:
    """What the nearest record measured of it, or the mean over all records where none is near."""
    name, nearest = forecast.technique, forecast.nearest
    if nearest is None:
        return [say("No recorded comparison has it.", Link("technique", name, "name", name, ""))]
    record, row, similarity = nearest.record, nearest.row, nearest.similarity
    if similarity < _FAR:
        gains = [each.gain(name) for each in evidence.records.values() if name in each.scored]
        mean = sum(gains) / len(gains)
        shown = Link("atlas", ALL, f"{name}.gain", mean, f"{mean:.2f}")
        return [say(f"No recorded comparison is near; over all {len(gains)} its mean is {{}}.", shown)]
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
        shown = Link("atlas", record.name, f"{name}.forgetting.nll_rise", rise, f"{rise:+.2f}")
        sentences.append(say("There it changed the loss on text that the model knew by {} nats a token.", shown))
    return sentences


def _published(forecast: Forecast, evidence: Evidence, features: Features) -> list[Sentence]:
    """What published tables say of it that are nearer than any record: beside another technique, and of memory."""
    name, nearest = forecast.technique, forecast.nearest
    limit = _APART
    if nearest is not None:
        limit = min(_APART, distance(nearest.record.features.features(), features))
    tables = [table for table in evidence.tables.values() if name in table.scored]
    distances = {table.id: distance(table.features.features(), features) for table in tables}
    near = sorted((table for table in tables if distances[table.id] < limit), key=lambda table: distances[table.id])
    compared = next((table for table in near if len(table.rows) > 1), None)
    sentences = [_beside_another(compared, name)] if compared is not None else []
    for table in near:
        memory = table.scored[name].memory_gb
        if memory is not None:
            shown = Link("paper", table.id, f"{name}.memory_gb", memory, f"{memory:.3g}")
            where = _escaped(f"{table.setting}; {table.authors} {table.year}")
            return [*sentences, say(f"Published: it took {{}} GB ({where}).", shown)]
    return sentences


def _beside_another(table: Table, name: str) -> Sentence:
    """A technique's published score beside that of the best other one of the table."""
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
    """Text that `say` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def _planned(forecast: Forecast) -> list[Sentence]:
    """What the plan says of memory and time."""
    name, plan = forecast.technique, forecast.plan
    if plan is None:
        return []
    sentences = []
    if plan.peak is not None:
        verdict = Link("plan", name, "verdict", plan.verdict, plan.verdict)
        settings = ", ".join(f"{setting} {value}" for setting, value in plan.changed.items())
        changed = f" ({_escaped(settings)})" if settings and plan.verdict == "fits with" else ""
        memory = Link("plan", name, "memory.peak", plan.peak, size(plan.peak))
        sentences.append(say("By the plan it {}" + changed + " and takes {} of memory.", verdict, memory))
    if plan.train_seconds is not None:
        seconds = Link("plan", name, "time.seconds", plan.train_seconds, f"{plan.train_seconds:,.0f}")
        sentences.append(say("Its training takes {} s by the plan.", seconds))
    return sentences


def _cost(forecast: Forecast, tenants: int) -> Sentence:
    """What requests and storage take."""
    name, tokens, disk = forecast.technique, forecast.prompt_tokens, forecast.artifact_bytes
    request = Link("forecast", name, "prompt_tokens", tokens, f"{tokens:.0f}")
    artifact = Link("forecast", name, "artifact_bytes", disk, size(disk))
    if tenants > 1:
        count = Link("request", "tenants", "", tenants, f"{tenants:,}")
        text = "A request is {} tokens long; an adaptation takes about {}, times {} tenants."
        return say(text, request, artifact, count)
    return say("A request is {} tokens long; the adaptation takes about {}.", request, artifact)


def changed(change: Change, now: Ranking, then: Ranking) -> Sentence:
    """Say what would be advised in another situation: `now` is the answer as things are, `then` the one there."""
    top, present = then.top, now.top
    if top is None:
        source = _source(then, present)
        return Sentence(f"With {change.words}, no technique meets what was asked.", (source,))
    same = present is not None and top.technique == present.technique
    links = [Link("change", change.name, "gain", top.gain, f"{top.gain:.2f}")]
    text = f"With {change.words} it would {'still be' if same else 'be'} {top.technique}, expected to reach {{}}"
    if present is not None and present.technique in then.refused:
        text += f"; {present.technique} is out"
    elif present is not None and not same:
        was = then.forecasts[present.technique].gain
        links.append(Link("change", change.name, "was", was, f"{was:.2f}"))
        text += f" ({present.technique}: {{}})"
    return say(text + ".", *links, _source(then, top))


def _source(ranking: Ranking, about: Forecast | None) -> Link:
    """The nearest record behind a technique's forecast there; a class of technique where no record has it."""
    forecast = ranking.forecasts[about.technique] if about is not None else next(iter(ranking.forecasts.values()))
    name = forecast.technique
    if about is None or forecast.nearest is None:
        return Link("technique", name, "name", name, "")
    return Link("atlas", forecast.nearest.record.name, f"{name}.technique", name, "")
