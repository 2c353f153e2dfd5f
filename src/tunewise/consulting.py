"""From a model and a task to advice: the features of the two, and what the model turns down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tunewise.errors import RequestError
from tunewise.features import Features, loss_of, measure, texts_of
from tunewise.seeds import generator
from tunewise.technique import Technique

if TYPE_CHECKING:
    from tunewise.model import Base
    from tunewise.task import Task


def features_of(base: Base, task: Task, *, knowledge: str | None, examples: float, weights: bool = True) -> Features:
    """The features of a task for a model; the base's loss is taken where it has weights.

    Args:
        base: the model, bare.
        task: the data.
        knowledge: where documents are; default: the task's own.
        examples: training examples that a trial will see.
        weights: whether `base` has its weights.
    """
    where = knowledge or task.knowledge
    return measure(
        base,
        task,
        documents=texts_of(where),
        given=bool(where),
        examples=examples,
        base_loss=loss_of(base, task) if weights else None,
    )


def turned_down(
    base: Base, task: Task, recipes: Sequence[Technique], weights: bool = True
) -> tuple[dict[str, str], dict[str, dict[str, bool]]]:
    """Reasons of the recipes that cannot work on this model and task, and facts of those that can, by name."""
    refused, facts = dict[str, str](), dict[str, dict[str, bool]]()
    for recipe in recipes:
        lacking = recipe.lacks(base, task)
        if lacking:
            refused[recipe.name] = lacking
        elif weights:
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
