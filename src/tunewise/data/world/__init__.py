"""A small world in plain English, a model pretrained on it, and tasks in it: everything works with no network.

    from tunewise import world
    base = world.model()             # three million parameters, shipped with the package; --model world
    task = world.task("reviews")     # one of world.TASKS; --data world:reviews

`words`, `facts`, `reviews` and `patterns` are what there is to tell, `corpus` the text for pretraining, `pretrain`
makes the model, `abilities` measures it, `tasks` are what it can be tuned to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunewise.data.world.tasks import TASKS, documents, memory, retention, sources, task

__all__ = ["TASKS", "documents", "memory", "model", "retention", "sources", "task"]

if TYPE_CHECKING:
    from tunewise.engine.model import Base


def model(device: str | None = None) -> Base:
    """The pretrained model, on the device that accelerate chooses unless one is given."""
    from tunewise.engine.model import load_base

    return load_base("world", device=device)
