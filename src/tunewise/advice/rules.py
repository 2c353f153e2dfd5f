"""Certain reasons against a technique, known before anything runs: it does not fit, cannot work, or breaks a need."""

from __future__ import annotations

from dataclasses import replace

from tunewise.advice.forecast import Forecast
from tunewise.advice.question import Question, Situation, reads_documents
from tunewise.advice.sentences import Link, Sentence, say
from tunewise.core.units import size
from tunewise.results.needs import Measured


def refusal(forecast: Forecast, situation: Situation) -> Sentence | None:
    """Return the first reason that rules a technique out, or None if it can be chosen."""
    question = situation.question
    return (
        _does_not_fit(forecast, question)
        or _not_possible(forecast)
        or _forbidden(forecast, situation)
        or _unmet_need(forecast, question)
    )


def _does_not_fit(forecast: Forecast, question: Question) -> Sentence | None:
    """Check the plan's verdict, then its figures against the available memory and time."""
    name, plan = forecast.technique, forecast.plan
    if plan is None:
        return None
    verdict = Link("plan", name, "verdict", plan.verdict, plan.verdict)
    if plan.verdict in ("does not fit", "not possible"):
        text = str(plan.reason).rstrip(".")
        verb, reason = "is " if plan.verdict == "not possible" else "", Link("plan", name, "reason", plan.reason, text)
        return say(f"The plan says that it {verb}{{}}: {{}}.", verdict, reason)
    peak, seconds = plan.peak, plan.train_seconds
    if question.memory is not None and peak is not None and peak > question.memory:
        needed = Link("plan", name, "memory.peak", peak, size(peak))
        limit = Link("request", "memory", "", question.memory, size(question.memory))
        return say("It needs {} of memory, and only {} are available.", needed, limit)
    if question.time is not None and seconds is not None and seconds > question.time:
        needed = Link("plan", name, "time.seconds", seconds, f"{seconds:,.0f}")
        limit = Link("request", "time", "", question.time, f"{question.time:,.0f}")
        return say("Its training would take {} s, and only {} s are available.", needed, limit)
    return None


def _not_possible(forecast: Forecast) -> Sentence | None:
    if forecast.turned_down is None:
        return None
    name, candidate = forecast.technique, forecast.candidate
    fact = Link("technique", name, "needs" if candidate.needs else "summary", candidate.needs or candidate.summary, "")
    return Sentence(f"Not possible here: {forecast.turned_down.rstrip('.')}.", (fact,))


def _forbidden(forecast: Forecast, situation: Situation) -> Sentence | None:
    """Check the requests about documents, forgetting and tenants."""
    question, name = situation.question, forecast.technique
    if question.documents_change and not reads_documents(forecast.candidate):
        fact = Link("request", "documents_change", "", True, "")
        trains = Link("technique", name, "trains", forecast.candidate.trains, "")
        return say("The documents change, and its knowledge of them is fixed once it is trained.", fact, trains)
    if question.documents_change and not situation.features.documents:
        return say("It searches documents, and none are given.", Link("task", "documents", "", 0.0, ""))
    if forecast.swappable.holds:
        return None
    source = replace(forecast.swappable.source, shown="")
    if question.forget_nothing:
        return say(
            "It changes the model's own weights, and the model must not forget anything.",
            source,
            Link("request", "forget_nothing", "", True, ""),
        )
    if question.tenants > 1:
        return say(
            "{} tenants need adaptations that can be swapped on one loaded model, and it changes the model's weights.",
            Link("request", "tenants", "", question.tenants, f"{question.tenants:,}"),
            source,
        )
    return None


def _unmet_need(forecast: Forecast, question: Question) -> Sentence | None:
    name, predicted = forecast.technique, _predicted(forecast)
    for need, text in zip(question.parsed_needs, question.needs, strict=True):
        if need.holds(predicted):
            continue
        request = Link("request", "needs", "", list(question.needs), text)
        if need.quantity in ("mergeable", "swappable"):
            fact = forecast.mergeable if need.quantity == "mergeable" else forecast.swappable
            return say(f"It is not {need.quantity}, which is needed.", fact.source, request)
        links = [request]
        if forecast.plan is not None:
            links.append(Link("plan", name, "verdict", forecast.plan.verdict, ""))
        if need.quantity in ("forgot", "retain"):
            links.append(Link("forecast", name, "nll_rise", forecast.rise, f"{forecast.rise:.2f}"))
            return Sentence(
                f"It does not meet {need.text}: the loss on retention text is expected to rise by "
                f"{forecast.rise:.2f} nats per token.",
                tuple(links),
            )
        return say("It does not meet {}.", *links)
    return None


def _predicted(forecast: Forecast) -> Measured:
    """Return the prediction of what a comparison would measure; None is what cannot be predicted here."""
    plan = forecast.plan
    return Measured(
        memory=plan.peak if plan is not None else None,
        artifact=forecast.artifact_bytes,
        train=plan.train_seconds if plan is not None else None,
        prompt=forecast.prompt_tokens,
        parameters=plan.optimised_parameters if plan is not None else None,
        forgot=forecast.rise,
        mergeable=forecast.mergeable.holds,
        swappable=forecast.swappable.holds,
    )
