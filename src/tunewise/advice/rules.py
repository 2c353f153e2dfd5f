"""What is certain about a technique before anything runs: why it is out of the question, or that nothing forbids it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunewise.advice.evidence import Link, Sentence, say
from tunewise.advice.forecast import Advisor, artifact, prompt_tokens, reads_documents
from tunewise.advice.question import Situation
from tunewise.core.units import size
from tunewise.results.needs import Measured

_PROBE = "retain"


def refusal(advisor: Advisor, asked: Situation, name: str, rise: float) -> Sentence | None:
    """The first reason against a technique, or None; `rise` is what it is expected to forget, in nats a token."""
    return (
        _does_not_fit(asked, name)
        or _turned_down(advisor, name)
        or _forbidden(advisor, asked, name)
        or _unmet(advisor, asked, name, rise)
    )


def _does_not_fit(asked: Situation, name: str) -> Sentence | None:
    row = asked.plan.get(name)
    if row is None:
        return None
    verdict = Link("plan", name, "verdict", row["verdict"], str(row["verdict"]))
    if row["verdict"] in ("does not fit", "not possible"):
        return say("The plan says that it {}: " + _braced(str(row["reason"])) + ".", verdict, _reason(row, name))
    peak = (row.get("memory") or {}).get("peak")
    if asked.asked.memory is not None and peak is not None and peak > asked.asked.memory:
        needed = Link("plan", name, "memory.peak", peak, size(peak))
        limit = Link("request", "memory", "", asked.asked.memory, size(asked.asked.memory))
        return say("It needs {}, and there are {}.", needed, limit)
    seconds = (row.get("time") or {}).get("seconds")
    if asked.asked.time is not None and seconds is not None and seconds > asked.asked.time:
        needed = Link("plan", name, "time.seconds", seconds, f"{seconds:,.0f}")
        limit = Link("request", "time", "", asked.asked.time, f"{asked.asked.time:,.0f}")
        return say("Its training would take {} s, and there are {} s.", needed, limit)
    return None


def _braced(text: str) -> str:
    return text.rstrip(".").replace("{", "{{").replace("}", "}}")


def _reason(row: Any, name: str) -> Link:
    return Link("plan", name, "reason", row["reason"], str(row["reason"]).rstrip("."))


def _turned_down(advisor: Advisor, name: str) -> Sentence | None:
    if name not in advisor.refused:
        return None
    needs = advisor.techniques[name].needs
    fact = Link("technique", name, "needs" if needs else "summary", needs or advisor.techniques[name].summary, "")
    return Sentence(f"Not possible here: {advisor.refused[name].rstrip('.')}.", (fact,))


def _forbidden(advisor: Advisor, asked: Situation, name: str) -> Sentence | None:
    wanted = asked.asked
    if wanted.documents_change:
        if not reads_documents(advisor.techniques[name]):
            fact = Link("request", "documents_change", "", True, "")
            trains = Link("technique", name, "trains", advisor.techniques[name].trains, "")
            return say("The documents change, and what it knows of them stands still once it is made.", fact, trains)
        if not asked.features.documents:
            return say("It would read documents, and none are given.", Link("task", "documents", "", 0.0, ""))
    swappable, source = advisor.fact(name, "swappable")
    source = replace(source, shown="")
    if wanted.forget_nothing and not swappable:
        return say(
            "It changes the model's own weights, and the model must forget nothing.",
            source,
            Link("request", "forget_nothing", "", True, ""),
        )
    if wanted.tenants > 1 and not swappable:
        asked_for = Link("request", "tenants", "", wanted.tenants, f"{wanted.tenants:,}")
        return say(
            "{} tenants need adaptations that are swapped on one loaded model, and it changes the model's own weights.",
            asked_for,
            source,
        )
    return None


def _unmet(advisor: Advisor, asked: Situation, name: str, rise: float) -> Sentence | None:
    measured = expected(advisor, asked, name, rise)
    for place, need in enumerate(asked.asked.wanted):
        if not need.holds(measured):
            links = [Link("request", "needs", "", list(asked.asked.needs), asked.asked.needs[place])]
            if need.quantity in ("mergeable", "swappable"):
                return say("It is not {}, which is needed.", advisor.fact(name, need.quantity)[1], *links)
            if name in asked.plan:
                links.append(Link("plan", name, "verdict", asked.plan[name]["verdict"], ""))
            if need.quantity in ("forgot", _PROBE):
                links.append(Link("forecast", name, "nll_rise", rise, f"{rise:.2f}"))
                return Sentence(
                    f"It does not meet {need.text}: the loss on retention text is expected to rise by "
                    f"{rise:.2f} nats a token.",
                    tuple(links),
                )
            return say("It does not meet {}.", *links)
    return None


def expected(advisor: Advisor, asked: Situation, name: str, rise: float) -> Measured:
    """What a comparison would measure, as far as it is foreseen."""
    row = asked.plan.get(name) or {}
    return Measured(
        memory=(row.get("memory") or {}).get("peak"),
        artifact=artifact(advisor, asked, name),
        train=(row.get("time") or {}).get("seconds"),
        prompt=prompt_tokens(advisor, asked, name),
        parameters=(row.get("parameters") or {}).get("optimised"),
        forgot=rise,
        mergeable=advisor.techniques[name].mergeable,
        swappable=bool(advisor.fact(name, "swappable")[0]),
    )
