"""From a model and a task to advice: which technique to choose, why, on what evidence, and what would change that.

A candidate passes through these steps: `check_candidates` attaches it to the model, `forecasts` predicts its gain and
cost, `refusal` checks whether anything certain rules it out, `rank` orders the rest, `why` puts the reasons into
sentences, and an `AdviceRow` holds the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunewise.advice import wording
from tunewise.advice.changes import Change, changes
from tunewise.advice.evidence import Evidence
from tunewise.advice.features import Features, measure, texts_of
from tunewise.advice.forecast import Forecast
from tunewise.advice.question import Planner, Question, Situation
from tunewise.advice.ranking import Ranking, rank
from tunewise.advice.sentences import Sentence, with_shared_sources
from tunewise.contract.technique import Technique
from tunewise.core.errors import RequestError
from tunewise.core.seeds import generator

if TYPE_CHECKING:
    from tunewise.data.task import Task
    from tunewise.engine.model import Base

SCHEMA = 1
WITH_DOCUMENTS = ("rag+lora",)  # compositions that are candidates where documents are given
SCORED = 32  # validation examples that the base's loss is measured on


def advise(
    base: Base,
    task: Task,
    *,
    recipes: Sequence[Technique] | None = None,
    question: Question | None = None,
    knowledge: str | None = None,
    examples: float = 800.0,
    planner: Planner | None = None,
) -> Advice:
    """Say which technique to choose, why, on what evidence, and what would change the answer; nothing is trained.

    Args:
        base: the bare model, or its outline (`tunewise.advice.plan.weightless.outline`).
        task: the data.
        recipes: the candidates; default: every technique.
        question: the user's needs beside a good score.
        knowledge: folder, file or address of the documents; default: the task's.
        examples: training examples that a technique may see, repeated ones counted again.
        planner: says what each candidate takes; default: a plan is made, without times.

    Raises:
        SettingError: something is asked for that cannot be predicted.
        ArtifactError: a file of the atlas is damaged.

    Examples:
        >>> base, task = load_base("world"), Task.read("world:reviews")
        >>> advice = advise(base, task, recipes=[make("base"), make("lora"), make("icl")])
        >>> advice.advised
        'lora'
    """
    from tunewise.techniques.registry import make

    if recipes is None:
        recipes = [make(name) for name in candidate_names(documents=bool(knowledge or task.knowledge))]
    if planner is None:
        from tunewise.advice.planning import planner_for

        planner = planner_for(base, task, recipes, examples)
    refused, swappable = check_candidates(base, task, recipes)
    features = features_of(base, task, knowledge=knowledge, examples=examples)
    candidates = {recipe.name: recipe for recipe in recipes}
    evidence = Evidence.collect(candidates, refused=refused, swappable=swappable, planner=planner)
    return advice_for(evidence, features, question or Question(), model=base.name, task=task.name)


def candidate_names(*, documents: bool) -> list[str]:
    """Return every technique, and with documents the composition of searching them and of what is trained on top."""
    from tunewise.techniques.registry import all_techniques

    return [*all_techniques(), *(WITH_DOCUMENTS if documents else ())]


def advice_for(
    evidence: Evidence, features: Features, question: Question, *, model: str = "", task: str = ""
) -> Advice:
    """Draw up the advice for a model and a task of which only the features are known.

    Args:
        evidence: what the advice is drawn from, including the candidates.
        features: of the model and the task.
        question: the user's needs beside a good score.
        model: what the model is called.
        task: what the task is called.

    Raises:
        SettingError: the question has limits that only a planner can check, and there is none.
    """
    situation = Situation.planned(features, question, evidence.planner)
    ranking = rank(evidence, situation)
    changed = [(change, rank(evidence, change.situation)) for change in changes(evidence, situation)]
    return Advice(
        model=model,
        task=task,
        situation=situation,
        evidence=evidence,
        summary=tuple(wording.summary(ranking, evidence, changed)),
        rows=tuple(AdviceRow.of(name, ranking, evidence) for name in (*ranking.order, *ranking.refused)),
        changes=tuple(ChangedAdvice.of(change, ranking, then) for change, then in changed),
    )


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """Says where one candidate stands, and why.

    Attributes:
        forecast: its expected gain and costs.
        verdict: whether it is advised, possible, or ruled out ("out").
        rank: its place, from 1; None where it is ruled out.
        chance: the probability that it is the best of those that can be chosen.
        reasons: sentences, the first of which says what is expected, or why it is ruled out.
    """

    forecast: Forecast
    verdict: Literal["advised", "possible", "out"]
    rank: int | None
    chance: float
    reasons: tuple[Sentence, ...]

    @classmethod
    def of(cls, technique: str, ranking: Ranking, evidence: Evidence) -> AdviceRow:
        """Make the row of a candidate from a ranking."""
        forecast, refused = ranking.forecasts[technique], ranking.refused.get(technique)
        place = ranking.order.index(technique) + 1 if refused is None else None
        return cls(
            forecast=forecast,
            verdict="out" if place is None else "advised" if place == 1 else "possible",
            rank=place,
            chance=ranking.chances.get(technique, 0.0),
            reasons=tuple(wording.why(forecast, refused, evidence, ranking)),
        )

    def to_json(self) -> dict[str, object]:
        """Return the row as `tunewise advise --json` prints it."""
        forecast = self.forecast
        return {
            "technique": forecast.technique,
            "family": forecast.candidate.family,
            "verdict": self.verdict,
            "rank": self.rank,
            "gain": {"mean": forecast.gain, "low": forecast.low, "high": forecast.high},
            "chance": self.chance,
            "nll_rise": forecast.rise,
            "month_tokens": forecast.month_tokens,
            "prompt_tokens": forecast.prompt_tokens,
            "artifact_bytes": forecast.artifact_bytes,
            "with": dict(forecast.plan.changed) if forecast.plan is not None else {},
            "why": [sentence.to_json() for sentence in self.reasons],
        }


@dataclass(frozen=True, kw_only=True)
class ChangedAdvice:
    """Says what would be advised in another situation.

    Attributes:
        change: the situation's name.
        advised: the technique that would be advised there; None where none could be chosen.
        gain: its expected gain there.
        was: the expected gain there of the technique that is advised for the unchanged situation.
        same: whether the advised technique stays the same.
        sentence: the same as a sentence.
    """

    change: str
    advised: str | None
    gain: float | None
    was: float | None
    same: bool
    sentence: Sentence

    @classmethod
    def of(cls, change: Change, now: Ranking, then: Ranking) -> ChangedAdvice:
        """Compare the ranking for the unchanged situation (`now`) with that for another one (`then`)."""
        advised, present = (ranking.top.technique if ranking.top is not None else None for ranking in (then, now))
        return cls(
            change=change.name,
            advised=advised,
            gain=then.forecasts[advised].gain if advised is not None else None,
            was=then.forecasts[present].gain if present is not None else None,
            same=advised == present,
            sentence=wording.changed(change, now, then),
        )

    def to_json(self) -> dict[str, object]:
        """Return it as `tunewise advise --json` prints it."""
        return {
            "change": self.change,
            "gain": self.gain,
            "was": self.was,
            "advised": self.advised,
            "same": self.same,
            "sentence": self.sentence.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Says which technique to choose, with every candidate's row and what would change the answer.

    Attributes:
        model: what the model is called.
        task: what the task is called.
        situation: the features, the question and the plan.
        evidence: what the advice is drawn from.
        summary: what is advised, how sure that is, and what the task looks like.
        rows: the techniques that can be chosen in their order, then those that are ruled out.
        changes: what would be advised in other situations.
    """

    model: str
    task: str
    situation: Situation
    evidence: Evidence
    summary: tuple[Sentence, ...]
    rows: tuple[AdviceRow, ...]
    changes: tuple[ChangedAdvice, ...]

    @property
    def advised(self) -> str | None:
        """Return the technique to choose; None if none can be chosen."""
        return next((row.forecast.technique for row in self.rows if row.verdict == "advised"), None)

    def reasons(self) -> tuple[list[str], list[str]]:
        """Return the reason of each row for a table, and the comparisons that they name by a number, such as [1]."""
        return with_shared_sources(row.reasons for row in self.rows)

    def to_json(self) -> dict[str, object]:
        """Return the advice as `tunewise advise --json` prints it."""
        features, recommender = self.situation.features, self.evidence.recommender
        reasons, sources = self.reasons()
        return {
            "schema": SCHEMA,
            "model": self.model,
            "task": self.task,
            "features": features.to_json(),
            "request": self.situation.question.to_json(),
            "atlas": {
                "records": len(self.evidence.records),
                "published": len(self.evidence.comparisons),
                "variances": recommender.variances.to_json(),
            },
            "similarity": {
                f"{gains.kind}:{gains.ref}": similarity
                for gains, similarity in recommender.neighbours(features.conditions)
            },
            "plan": [row.to_json() for row in self.situation.plan.values()],
            "advised": self.advised,
            "summary": [sentence.to_json() for sentence in self.summary],
            "rows": [{**row.to_json(), "reason": reason} for row, reason in zip(self.rows, reasons, strict=True)],
            "sources": sources,
            "changes": [change.to_json() for change in self.changes],
        }


def features_of(base: Base, task: Task, *, knowledge: str | None, examples: float, with_loss: bool = True) -> Features:
    """Measure the features of a task for a model.

    Args:
        base: the model, bare.
        task: the data.
        knowledge: folder, file or address of the documents; default: the task's.
        examples: training examples that one trial will see.
        with_loss: whether the base's loss is measured, if the model has weights.
    """
    where = knowledge or task.knowledge
    return measure(
        base,
        task,
        documents=texts_of(where),
        given=bool(where),
        examples=examples,
        base_loss=loss_of(base, task) if with_loss and _has_weights(base) else None,
    )


def check_candidates(base: Base, task: Task, recipes: Sequence[Technique]) -> tuple[dict[str, str], dict[str, bool]]:
    """Find the recipes that cannot work on this model and task, by attaching each of them if there are weights.

    Returns:
        Why recipes cannot work, and whether adaptations of the others are swappable, both by technique.
    """
    refused, swappable = dict[str, str](), dict[str, bool]()
    for recipe in recipes:
        reason = recipe.lacks(base, task)
        if reason:
            refused[recipe.name] = reason
        elif _has_weights(base):
            try:
                swappable[recipe.name] = recipe.attach(base, generator(0, "attach")).swappable
            except RequestError as error:
                refused[recipe.name] = str(error)
            finally:
                base.release()
    return refused, swappable


def _has_weights(base: Base) -> bool:
    return base.device.type != "meta"


def loss_of(base: Base, task: Task) -> float:
    """Return the unadapted model's loss on a few validation examples, in nats per answer token."""
    from tunewise.data.task import sample
    from tunewise.fitting.scoring import loss
    from tunewise.techniques.registry import make

    bare = make("base").attach(base, generator(0, "attach"))
    try:
        return loss(bare, task, sample(task.validation, SCORED))
    finally:
        base.release()
