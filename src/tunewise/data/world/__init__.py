"""Ships a small world in plain English, a model pretrained on it, and tasks in it, so that all works with no network.

    from tunewise import load_base, world
    base = load_base("world")        # three million parameters, shipped with the package; --model world
    task = world.task("reviews")     # one of world.TASKS; --data world:reviews

`words`, `facts`, `reviews` and `patterns` make up the content of the world. `corpus` writes the text for pretraining,
`tasks` the data for fine-tuning. `tools/world` has the scripts that pretrained the model and measured what it can do.
"""

from __future__ import annotations

from pathlib import Path

from tunewise.data.world.tasks import TASKS, documents, memory, retention, sources, task

__all__ = ["MODEL", "TASKS", "documents", "memory", "retention", "sources", "task"]

MODEL = Path(__file__).parent / "weights"
