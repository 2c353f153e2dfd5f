"""What advice says: what to do, why, what would change it, and why each technique stands where it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunewise.advice.quotations import capacity, quotations
from tunewise.advice.ranking import deciding
from tunewise.advice.sentences import Link, Sentence, escaped, say
from tunewise.core.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunewise.advice.changes import Change
    from tunewise.advice.evidence import Evidence
    from tunewise.advice.features import Features
    from tunewise.advice.forecast import Forecast
    from tunewise.advice.ranking import Ranking

ALIKE = 0.02  # gains that differ by less are the same in words


def summary(ranking: Ranking, evidence: Evidence, changed: Sequence[tuple[Change, Ranking]]) -> list[Sentence]:
    """Say in three lines what to do, why, and what would change it; then what else counts, and what the task is.

    Args:
        ranking: for the situation that was asked about.
        evidence: what it is drawn from.
        changed: other situations with their rankings.
    """
    top = ranking.top
    if top is None:
        needs = Link("request", "needs", "", list(ranking.situation.question.needs), "")
        return [say("No technique meets the requirements; each row says why.", needs), *_task(ranking)]
    lines = [_do_this(top, ranking), _because(top, ranking, evidence), _if(top, changed)]
    price = trade_off(ranking)
    return [*lines, *([price] if price is not None else []), *_task(ranking)]


def _do_this(top: Forecast, ranking: Ranking) -> Sentence:
    name, chance = top.technique, ranking.chances[top.technique]
    return say(
        "Use {}: it is expected to reach {} of the best technique's gain ({} to {}), and is the best with a "
        "probability of {}; tunewise compare --advised measures it.",
        Link("forecast", name, "technique", name, name),
        *_gain_links(top),
        Link("forecast", name, "chance", chance, f"{chance:.0%}"),
    )


def _because(top: Forecast, ranking: Ranking, evidence: Evidence) -> Sentence:
    """Give the evidence; where it cannot order the first ones, say so, and that cost does."""
    quoted = quotations(top, evidence)
    others = [name for name in ranking.tied if name != top.technique]
    if not others:
        return Sentence(f"Because {_lower(quoted[0].text)}", quoted[0].links)
    rival = max(others, key=lambda name: ranking.forecasts[name].gain)
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    links = [Link("forecast", name, "technique", name, "") for name in others]
    other = ranking.forecasts[rival]
    rule, costs = deciding(top, other, ranking.situation), list[Link]()
    reason = f": {rule.words}"
    if rule.name == "size" and top.artifact_bytes is not None and other.artifact_bytes is not None:
        figures = {each.technique: each.artifact_bytes or 0.0 for each in (top, other)}
        costs = [Link("forecast", name, "artifact_bytes", value, size(value)) for name, value in figures.items()]
        reason = f" and it is smaller: {{}} to keep, and {{}} for {rival}"
    elif rule.name in ("tokens", "size"):
        figures = {each.technique: each.month_tokens for each in (top, other)}
        costs = [Link("forecast", name, "month_tokens", value, f"{value:,.0f}") for name, value in figures.items()]
        reason = f" and it costs no more: {{}} tokens through the model in training and a month, and {{}} for {rival}"
    text = f"Because the evidence cannot order it and {escaped(named)}{reason}. {escaped(quoted[0].text)}"
    return say(text, *costs, *links, *quoted[0].links)


def _if(top: Forecast, changed: Sequence[tuple[Change, Ranking]]) -> Sentence:
    """List the changes after which another technique would be advised."""
    words, links = list[str](), list[Link]()
    for change, then in changed:
        if then.top is not None and then.top.technique != top.technique:
            words.append(f"with {change.words} ({then.top.technique})")
            links.append(Link("change", change.name, "gain", then.top.gain, ""))
    if not words:
        links = [Link("forecast", top.technique, "technique", top.technique, "")]
        return Sentence("It would change with none of the situations below.", tuple(links))
    return Sentence(f"It would change {'; '.join(words)}.", tuple(links))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


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


def _task(ranking: Ranking) -> list[Sentence]:
    """Describe the task by its size and its unusual features."""
    features: Features = ranking.situation.features

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
    return [
        say("Expected to reach {} of the best technique's gain ({} to {}).", *_gain_links(forecast)).as_tabulated(),
        *quotations(forecast, evidence),
        *capacity(forecast),
        *_planned(forecast, limited=ranking.situation.question.memory is not None),
        *_cost(forecast, ranking.situation.question.tenants),
    ]


def _gain_links(forecast: Forecast) -> list[Link]:
    """Links of the expected gain and its interval to the row of the advice."""
    figures = {"mean": forecast.gain, "low": forecast.low, "high": forecast.high}
    name = forecast.technique
    return [Link("forecast", name, f"gain.{part}", value, f"{value:.2f}") for part, value in figures.items()]


def _planned(forecast: Forecast, *, limited: bool) -> list[Sentence]:
    """Quote the plan's memory and time, and whether it fits where there is a limit to fit into."""
    name, plan = forecast.technique, forecast.plan
    if plan is None:
        return []
    sentences = []
    if plan.peak is not None:
        verdict = Link("plan", name, "verdict", plan.verdict, plan.verdict)
        settings = ", ".join(f"{setting} {value}" for setting, value in plan.changed.items())
        changed = f" ({escaped(settings)})" if settings and plan.verdict == "fits with" else ""
        memory = Link("plan", name, "memory.peak", plan.peak, size(plan.peak))
        if limited or plan.verdict != "fits":
            sentences.append(say("According to the plan it {}" + changed + " and takes {} of memory.", verdict, memory))
        else:
            sentences.append(say("According to the plan it takes {} of memory.", memory).as_tabulated())
    if plan.train_seconds is not None:
        seconds = Link("plan", name, "time.seconds", plan.train_seconds, f"{plan.train_seconds:,.0f}")
        sentences.append(say("According to the plan its training takes {} s.", seconds).as_tabulated())
    return sentences


def _cost(forecast: Forecast, tenants: int) -> list[Sentence]:
    """Say how long requests are and how large the adaptation is."""
    name, tokens, disk = forecast.technique, forecast.prompt_tokens, forecast.artifact_bytes
    if tokens is None or disk is None:
        return []
    request = Link("forecast", name, "prompt_tokens", tokens, f"{tokens:.0f}")
    artifact = Link("forecast", name, "artifact_bytes", disk, size(disk))
    if tenants > 1:
        count = Link("request", "tenants", "", tenants, f"{tenants:,}")
        text = "A request is {} tokens long; an adaptation takes {}, times {} tenants."
        return [say(text, request, artifact, count).as_tabulated()]
    return [say("A request is {} tokens long; the adaptation takes {}.", request, artifact).as_tabulated()]


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
    """Link to the technique that a sentence is about; to the first candidate if it is about none."""
    name = about.technique if about is not None else next(iter(ranking.forecasts))
    return Link("technique", name, "name", name, "")
