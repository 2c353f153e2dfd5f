"""Trains as one of several ranks, or alone.

`python ranks_worker.py OUT` trains every technique and writes what came of it; `python ranks_worker.py OUT UNTIL` takes
the steps of one training up to step UNTIL, from where it was stopped.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunewise.core.errors import SettingError
from tunewise.engine.ranks import Ranks, joined_ranks
from tunewise.engine.tiny import tiny_base, tiny_task
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for, loss, score
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach

STEPS = 4
# Rows that do not divide evenly, and with them a micro-batch of a single row, which only one of two ranks computes.
SETTINGS = TrainSettings(max_steps=STEPS, per_device_train_batch_size=3, gradient_accumulation_steps=2)
GIVEN: dict[str, dict[str, Any]] = {
    "mpt": {"sources": ["world:letters/name", "world:letters/age"], "source_steps": 2},
    "qlora": {"lora_dropout": 0.0},  # which rows dropout falls on depends on how they are shared out
}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "full-adafactor": ("full", {"optimizer": "adafactor"}),
    "full-lomo": ("full", {"optimizer": "lomo"}),
    "lora-dora": ("lora", {"use_dora": True}),
}


def outcome(ranks: Ranks, technique: str, given: dict[str, Any]) -> dict[str, Any]:
    """Train a technique and score it; losses, validation loss, scores and answers."""
    base, task, generation = tiny_base("llama"), tiny_task(), tiny_task("generation")
    base.ranks = ranks
    recipe = make(technique, {technique: given})
    attachment = attach(recipe, base, task)
    losses: list[float] = []
    if recipe.trains:
        rows = encoder_for(attachment, task).encode([attachment.render(example) for example in task.train[:7]])
        settings = replace(SETTINGS, max_steps=max(STEPS, attachment.phases))
        if not attachment.accumulates:
            settings = replace(settings, gradient_accumulation_steps=1)
        try:
            train(attachment, rows, settings, on_step=lambda step, value: losses.append(value))
        except SettingError as error:
            return {"refused": str(error)}
    scores = score(attachment, task, task.test)
    return {
        "losses": losses,
        "validation": loss(attachment, task, task.validation),
        "nll": scores.nll,
        "predictions": scores.predictions,
        "answers": score(attachment, generation, generation.test[:3]).predictions,
    }


def go_on(ranks: Ranks, folder: Path, until: int) -> None:
    """Continue one training to a step; all of it has six."""
    base, task = tiny_base("llama"), tiny_task()
    base.ranks = ranks
    attachment = attach(make("lora"), base, task)
    rows = encoder_for(attachment, task).encode(list(task.train))
    train(attachment, rows, replace(SETTINGS, max_steps=6), folder=folder, resume=True, until=until)
    ranks.wait()


def main() -> None:
    """Do what the command line says; of all techniques, each result is a line of `OUT/<rank>.jsonl`."""
    if len(sys.argv) > 2:
        with joined_ranks() as ranks:
            go_on(ranks, Path(sys.argv[1]), int(sys.argv[2]))
        return
    runs = {name: (name, GIVEN.get(name, {})) for name in all_techniques()} | FORMS
    with joined_ranks() as ranks, (Path(sys.argv[1]) / f"{ranks.rank}.jsonl").open("w") as file:
        for name, (technique, given) in runs.items():
            file.write(json.dumps([name, outcome(ranks, technique, given)]) + "\n")


if __name__ == "__main__":
    main()
