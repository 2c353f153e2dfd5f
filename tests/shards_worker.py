"""Trains on a base whose weights are shared out over the ranks, or as one process that holds all of them.

`python shards_worker.py MODEL OUT WHAT...` loads the model in folder MODEL, and writes what came of each WHAT, a
technique or a name in `FORMS`, as a line of `OUT/<rank>.jsonl`. `... OUT --until N` takes the steps of one training of
every weight up to step N, from where it was stopped.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunewise.adaptation import artifact
from tunewise.engine import loss as engine_loss
from tunewise.engine.model import Base, load_base
from tunewise.engine.ranks import joined_ranks
from tunewise.engine.shards import local, whole
from tunewise.engine.tiny import tiny_task
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for, loss, score
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach

# Rows that do not divide evenly, and a micro-batch of a single row, for which one of two ranks has nothing to compute.
SETTINGS = TrainSettings(max_steps=4, per_device_train_batch_size=3, gradient_accumulation_steps=2)
FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora-recomputed": ("lora", {}, {"gradient_checkpointing": True}),
    "lora-head": ("lora", {"target_modules": ["q", "lm_head"]}, {}),
    "lora-held-back": ("lora", {}, {"l2_sp": 0.01}),
    "full-lisa": ("full", {"lisa_layers": 1, "lisa_interval": 2}, {}),
    "full-single": ("full", {}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}),
    "full-kept-best": ("full", {}, {"load_best_model_at_end": True, "eval_steps": 1}),
}


def outcome(base: Base, name: str, out: Path) -> dict[str, Any]:
    """Train and score; return losses, norms, scores and answers, and write the adaptation."""
    technique, given, settings = FORMS.get(name, (name, {}, {}))
    task, generation = tiny_task(), tiny_task("generation")
    attachment = attach(make(technique, {technique: given}), base, task)
    losses: list[float] = []
    rows = encoder_for(attachment, task).encode([attachment.render(example) for example in task.train[:7]])
    folder = out / f"run-{name}"
    if attachment.recipe.trains:
        train(
            attachment,
            rows,
            replace(SETTINGS, **settings),
            folder=folder,
            on_step=lambda step, value: losses.append(value),
            evaluate=(lambda: loss(attachment, task, task.validation)) if "eval_steps" in settings else None,
        )
    base.ranks.wait()
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
    scores = score(attachment, task, task.test)
    result = {
        "losses": losses,
        "norms": [line["grad_norm"] for line in lines if "grad_norm" in line],
        "validation": loss(attachment, task, task.validation),
        "nll": scores.nll,
        "predictions": scores.predictions,
        "answers": score(attachment, generation, generation.test[:3]).predictions,
    }
    artifact.save(attachment, task, out / name, {})
    if attachment.recipe.mergeable:
        attachment.merge()
        result["merged"] = loss(attach(make("base"), base, task), task, task.validation)
        base.release()
    attachment.detach()
    result["restored"] = Base(base.model, base.tokenizer).fingerprint == base.fingerprint
    return result


def facts(base: Base) -> dict[str, Any]:
    """Return what a process holds of a base."""
    tensors = dict(base.model.named_parameters())
    return {
        "fingerprint": base.fingerprint,
        "parameters": base.parameters,
        "bytes": sum(local(tensor).nbytes for tensor in tensors.values()),
        "shapes": {name: list(whole(tensor).shape) for name, tensor in tensors.items()},
    }


def go_on(base: Base, folder: Path, until: int) -> None:
    """Continue one training of all weights to a step; all of it has six."""
    task = tiny_task()
    attachment = attach(make("full", {"full": {"learning_rate": 1e-4}}), base, task)
    rows = encoder_for(attachment, task).encode(list(task.train))
    settings = replace(SETTINGS, max_steps=6, load_best_model_at_end=True, eval_steps=1)
    evaluate = lambda: loss(attachment, task, task.validation)  # noqa: E731
    train(attachment, rows, settings, folder=folder, resume=True, until=until, evaluate=evaluate)


def main() -> None:
    """Do what the command line says."""
    model, out, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    engine_loss._CHUNK_ELEMENTS = 1 << 12  # so that ranks have different numbers of parts of the logits
    with joined_ranks(shard=os.environ.get("WORLD_SIZE", "1") != "1") as ranks:
        base = load_base(model, ranks=ranks)
        if what[0] == "--until":
            go_on(base, out, int(what[1]))
            ranks.wait()
            return
        with (out / f"{ranks.rank}.jsonl").open("w") as file:
            for name in ("facts", *what):
                result = facts(base) if name == "facts" else outcome(base, name, out)
                file.write(json.dumps([name, result]) + "\n")
                file.flush()
        ranks.wait()


if __name__ == "__main__":
    main()
