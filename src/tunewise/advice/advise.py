"""From a model and a task to advice: the features of the two, what the model turns down, and the question itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunewise.advice.features import Features, measure, texts_of
from tunewise.contract.technique import Technique
from tunewise.core.errors import RequestError
from tunewise.core.seeds import generator

if TYPE_CHECKING:
    from tunewise.advice.question import Asked, Planner
    from tunewise.data.task import Task
    from tunewise.engine.model import Base


def advise(
    base: Base,
    task: Task,
    *,
    recipes: Sequence[Technique] | None = None,
    asked: Asked | None = None,
    knowledge: str | None = None,
    examples: float = 800.0,
    planner: Planner | None = None,
) -> dict[str, Any]:
    """Say which technique to choose, why, on what evidence, and what would change the answer; nothing is trained.

    Args:
        base: the bare model, or its outline (`tunewise.advice.plan.outline`).
        task: the data.
        recipes: the candidates; default: every technique.
        asked: what is needed beside a good score.
        knowledge: where documents are; default: the task's own.
        examples: training examples that a technique may see, repeated ones counted again.
        planner: says what fits; without one, nothing can be asked of memory or time.

    Raises:
        SettingError: something is asked for that cannot be foreseen.
        ArtifactError: a file of the atlas is damaged.
    """
    from tunewise.advice import reply
    from tunewise.advice.forecast import Advisor
    from tunewise.advice.question import Asked
    from tunewise.techniques.registry import all_techniques, make

    recipes = [make(name) for name in all_techniques()] if recipes is None else recipes
    refused, facts = turned_down(base, task, recipes)
    features = features_of(base, task, knowledge=knowledge, examples=examples)
    advisor = Advisor.open(candidates(recipes), refused=refused, facts=facts, planner=planner)
    return reply.advise(advisor, features, asked or Asked(), model=base.name, task=task.name)


def features_of(base: Base, task: Task, *, knowledge: str | None, examples: float) -> Features:
    """The features of a task for a model; the base's loss is taken where it has weights.

    Args:
        base: the model, bare.
        task: the data.
        knowledge: where documents are; default: the task's own.
        examples: training examples that a trial will see.
    """
    where = knowledge or task.knowledge
    return measure(
        base,
        task,
        documents=texts_of(where),
        given=bool(where),
        examples=examples,
        base_loss=loss_of(base, task) if _has_weights(base) else None,
    )


def turned_down(
    base: Base, task: Task, recipes: Sequence[Technique]
) -> tuple[dict[str, str], dict[str, dict[str, bool]]]:
    """Reasons of the recipes that cannot work on this model and task, and facts of those that can, by name."""
    refused, facts = dict[str, str](), dict[str, dict[str, bool]]()
    for recipe in recipes:
        lacking = recipe.lacks(base, task)
        if lacking:
            refused[recipe.name] = lacking
        elif _has_weights(base):
            try:
                facts[recipe.name] = {"swappable": recipe.attach(base, generator(0, "attach")).swappable}
            except RequestError as error:
                refused[recipe.name] = str(error)
            finally:
                base.release()
    return refused, facts


def candidates(recipes: Sequence[Technique]) -> Mapping[str, Technique]:
    """These recipes by name."""
    return {recipe.name: recipe for recipe in recipes}


def _has_weights(base: Base) -> bool:
    return base.device.type != "meta"


SCORED = 32  # validation examples that the base's loss is taken on


def loss_of(base: Base, task: Task) -> float:
    """Nats per answer token of the unadapted model on a few validation examples."""
    from tunewise.core.seeds import generator
    from tunewise.data.task import sample
    from tunewise.fitting.scoring import loss
    from tunewise.techniques.registry import make

    bare = make("base").attach(base, generator(0, "attach"))
    try:
        return loss(bare, task, sample(task.validation, SCORED))
    finally:
        base.release()
