"""Advice in sentences; each figure in them is linked to its source, see `cited`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunewise.advice.atlas.published import Table
from tunewise.advice.evidence import ALL, Link, Sentence, say
from tunewise.advice.features import distance
from tunewise.advice.forecast import Advisor, artifact, prompt_tokens
from tunewise.advice.ranking import ALIKE, Ranking
from tunewise.core.units import size

_APART = 4.0  # distance from which on a published table says nothing
_FAR = 0.2  # similarity below which a record is not spoken of
_CLOSE = 0.5  # similarity below which the nearest record is said to be far


def summary(advisor: Advisor, ranked: Ranking, chances: Mapping[str, float]) -> list[Sentence]:
    """What is advised and how sure that is, and what the task looks like."""
    return [*_head(advisor, ranked, chances), *_task(ranked)]


def _head(advisor: Advisor, ranked: Ranking, chances: Mapping[str, float]) -> list[Sentence]:
    top = ranked.top
    if top is None:
        asked = Link("request", "needs", "", list(ranked.situation.asked.needs), "")
        return [say("No technique meets what was asked; each row says why.", asked)]
    said = [
        say(
            "{} is advised: it is expected to reach {} of the best technique's gain ({} to {}).",
            Link("forecast", top, "technique", top, top),
            *_interval(ranked, top),
        )
    ]
    if len(ranked.order) > 1:
        said.append(
            say(
                "It is the best of these with a chance of {}; the surest way to know is tunewise compare --advised.",
                Link("forecast", top, "chance", chances[top], f"{chances[top]:.0%}"),
            )
        )
    if (lost := trade_off(ranked)) is not None:
        said.append(lost)
    near = advisor.nearest(top, ranked.situation.features)
    if near is not None and near[2] < _CLOSE:
        said.append(
            say(
                "Nothing recorded is like this: the nearest comparison with it, {}, has a similarity of {}.",
                Link("atlas", near[0].name, f"{top}.technique", top, near[0].name),
                Link("atlas", near[0].name, "similarity", near[2], f"{near[2]:.2f}"),
            )
        )
    return said


def trade_off(ranked: Ranking) -> Sentence | None:
    """What is given up by what was asked: the technique of the highest expected gain among those that it forbids."""
    top = ranked.top
    if top is None or not ranked.refused:
        return None
    names = [name for name in ranked.refused if name not in _impossible(ranked)]
    if not names:
        return None
    lost = max(names, key=lambda name: ranked.belief.interval(name)[0])
    more, less = ranked.belief.interval(lost)[0], ranked.belief.interval(top)[0]
    if more - less < ALIKE:
        return None
    return say(
        "What was asked has its price: {} is out, and would be expected to reach {} against {}.",
        Link("forecast", lost, "technique", lost, lost),
        Link("forecast", lost, "gain.mean", more, f"{more:.2f}"),
        Link("forecast", top, "gain.mean", less, f"{less:.2f}"),
    )


def _impossible(ranked: Ranking) -> set[str]:
    """Those that the plan or the model turned down: no wish of the user's."""
    return {
        name for name, sentence in ranked.refused.items() if not any(link.kind == "request" for link in sentence.links)
    }


def _task(ranked: Ranking) -> list[Sentence]:
    features = ranked.situation.features
    fact = lambda name, shown: Link("task", name, "", getattr(features, name), shown)  # noqa: E731
    kind = "answers are written" if features.generation else f"one of {features.labels:.0f} labels is chosen"
    said = [
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
        said.append(say("The unadapted model's loss there is {} nats an answer token.", loss))
    if features.labels and features.balance < 0.8:
        said.append(
            say("The labels are uneven: their balance is {} (1 is even).", fact("balance", f"{features.balance:.2f}"))
        )
    if features.documents:
        shown = fact("in_documents", f"{features.in_documents:.0%}")
        said.append(say("Documents are given; {} of the held-out answers stand in them word for word.", shown))
    if features.unseen >= 0.1 and not features.documents:
        unseen = fact("unseen", f"{features.unseen:.0%}")
        said.append(say("{} of the held-out answers are none that training shows.", unseen))
    if features.copied >= 0.1:
        said.append(
            say("{} of the held-out answers stand in their own prompts.", fact("copied", f"{features.copied:.0%}"))
        )
    return said


def why(advisor: Advisor, ranked: Ranking, name: str) -> list[Sentence]:
    """Why a technique stands where it stands."""
    if name in ranked.refused:
        return [ranked.refused[name]]
    said = [say("Expected to reach {} of the best technique's gain ({} to {}).", *_interval(ranked, name))]
    said += [*_recorded(advisor, ranked, name), *_published(advisor, ranked, name), *_planned(ranked, name)]
    return said + _cost(advisor, ranked, name)


def _interval(ranked: Ranking, name: str) -> list[Link]:
    mean, low, high = ranked.belief.interval(name)
    parts = {"mean": mean, "low": low, "high": high}
    return [Link("forecast", name, f"gain.{part}", value, f"{value:.2f}") for part, value in parts.items()]


def _mean(row: Any) -> float:
    return float(row.score.mean)


def _recorded(advisor: Advisor, ranked: Ranking, name: str) -> list[Sentence]:
    near = advisor.nearest(name, ranked.situation.features)
    if near is None:
        return [say("No recorded comparison has it.", Link("technique", name, "name", name, ""))]
    record, row, similarity = near
    if similarity < _FAR:
        gains = [each.gain(name) for each in advisor.records.values() if name in each.scored]
        mean = sum(gains) / len(gains)
        shown = Link("atlas", ALL, f"{name}.gain", mean, f"{mean:.2f}")
        return [say(f"No recorded comparison is near; over all {len(gains)} its mean is {{}}.", shown)]
    gain = record.gain(name)
    said = [
        say(
            f"On {record.task.name} with {record.model.name.rpartition('/')[2]} (" + "{}, similarity {}) it scored {}, "
            "{} of the best gain there.",
            Link("atlas", record.name, f"{name}.technique", name, record.name),
            Link("atlas", record.name, "similarity", similarity, f"{similarity:.2f}"),
            Link("atlas", record.name, f"{name}.score.mean", _mean(row), f"{_mean(row):.3f}"),
            Link("atlas", record.name, f"{name}.gain", gain, f"{gain:.2f}"),
        )
    ]
    if row.forgetting is not None:
        rise = row.forgetting.nll_rise
        shown = Link("atlas", record.name, f"{name}.forgetting.nll_rise", rise, f"{rise:+.2f}")
        said.append(say("There it changed the loss on text that the model knew by {} nats a token.", shown))
    return said


def _published(advisor: Advisor, ranked: Ranking, name: str) -> list[Sentence]:
    """The nearest published table that has the technique, where no record is nearer, with what it is beside there."""
    features, near = ranked.situation.features, advisor.nearest(name, ranked.situation.features)
    found = [table for table in advisor.tables.values() if name in table.scored]
    away = {table.id: distance(table.features.features(), features) for table in found}
    limit = min(_APART, distance(near[0].features.features(), features) if near is not None else _APART)
    found = sorted((table for table in found if away[table.id] < limit), key=lambda table: away[table.id])
    beside = next((table for table in found if len(table.rows) > 1), None)
    said = [_beside(beside, name)] if beside is not None else []
    for table in found:
        held = table.scored[name].memory_gb
        if held is not None:
            shown = Link("paper", table.id, f"{name}.memory_gb", held, f"{held:.3g}")
            where = _escaped(f"{table.setting}; {table.authors} {table.year}")
            return [*said, say(f"Published: it took {{}} GB ({where}).", shown)]
    return said


def _beside(table: Table, name: str) -> Sentence:
    own = table.scored[name].score
    other = max((each for each in table.scored if each != name), key=lambda each: table.scored[each].score)
    theirs = table.scored[other].score
    return say(
        f"Published, not measured here: {{}} {table.metric} against {{}} for {other} ({_escaped(table.setting)}; "
        f"{_escaped(table.cited)}).",
        Link("paper", table.id, f"{name}.score", own, f"{own:.3f}"),
        Link("paper", table.id, f"{other}.score", theirs, f"{theirs:.3f}"),
    )


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _planned(ranked: Ranking, name: str) -> list[Sentence]:
    row = ranked.situation.plan.get(name)
    if row is None:
        return []
    said = []
    peak, seconds = (row.get("memory") or {}).get("peak"), (row.get("time") or {}).get("seconds")
    if peak is not None:
        shown = Link("plan", name, "memory.peak", peak, size(peak))
        verdict = Link("plan", name, "verdict", row["verdict"], str(row["verdict"]))
        parts = ", ".join(f"{key} {value}" for key, value in (row.get("with") or {}).items())
        chosen = f" ({_escaped(parts)})" if parts and row["verdict"] == "fits with" else ""
        said.append(say("By the plan it {}" + chosen + " and takes {} of memory.", verdict, shown))
    if seconds is not None:
        said.append(
            say("Its training takes {} s by the plan.", Link("plan", name, "time.seconds", seconds, f"{seconds:,.0f}"))
        )
    return said


def _cost(advisor: Advisor, ranked: Ranking, name: str) -> list[Sentence]:
    tokens, disk = prompt_tokens(advisor, ranked.situation, name), artifact(advisor, ranked.situation, name)
    request = Link("forecast", name, "prompt_tokens", tokens, f"{tokens:.0f}")
    bytes_ = Link("forecast", name, "artifact_bytes", disk, size(disk))
    tenants = ranked.situation.asked.tenants
    if tenants > 1:
        asked = Link("request", "tenants", "", tenants, f"{tenants:,}")
        return [
            say("A request is {} tokens long; an adaptation takes about {}, times {} tenants.", request, bytes_, asked)
        ]
    return [say("A request is {} tokens long; the adaptation takes about {}.", request, bytes_)]


def changed(advisor: Advisor, name: str, words: str, now: Ranking, other: Ranking) -> Sentence:
    """What would be advised in another situation, which `words` describe and `name` names."""
    top, mine = other.top, now.top
    source = _source(advisor, other, top or mine)
    if top is None:
        return Sentence(f"With {words}, no technique meets what was asked.", (source,))
    mean = other.belief.interval(top)[0]
    links = [Link("change", name, "gain", mean, f"{mean:.2f}")]
    still = "still be" if top == mine else "be"
    said = f"With {words} it would {still} {top}, expected to reach {{}}"
    if mine is not None and mine in other.refused:
        said += f"; {mine} is out"
    elif mine is not None and mine != top:
        less = other.belief.interval(mine)[0]
        links.append(Link("change", name, "was", less, f"{less:.2f}"))
        said += f" ({mine}: {{}})"
    return say(said + ".", *links, source)


def _source(advisor: Advisor, ranked: Ranking, name: str | None) -> Link:
    """The nearest record behind a forecast; a technique's own class where no record has it."""
    near = advisor.nearest(name, ranked.situation.features) if name is not None else None
    if name is None or near is None:
        shown = name or next(iter(advisor.techniques))
        return Link("technique", shown, "name", shown, "")
    return Link("atlas", near[0].name, f"{name}.technique", name, "")
