"""Trains on a base whose weights are shared out over the ranks, or as one process that holds all of them.

`python shards_worker.py HELD MODEL OUT WHAT...` loads the model in folder MODEL, HELD `sharded` or `whole`, and writes
what came of each WHAT, a technique or a name in `FORMS`, as a line of `OUT/<rank>.jsonl`. `... OUT --until N` takes the
steps of one training of every weight up to step N, from where it was stopped.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rank_training import Form, go_on, trained, write
from tunewise.adaptation import artifact
from tunewise.engine import loss as engine_loss
from tunewise.engine.model import Base, load_base
from tunewise.engine.ranks import joined_ranks
from tunewise.engine.shards import local, whole
from tunewise.engine.tiny import tiny_task
from tunewise.fitting.scoring import loss
from tunewise.techniques.registry import make
from tunewise.testing import attach

_KEPT_BEST = {"load_best_model_at_end": True, "eval_steps": 1}
FORMS = {
    "lora-recomputed": Form("lora", {}, {"gradient_checkpointing": True}),
    "lora-head": Form("lora", {"target_modules": ["q", "lm_head"]}),
    "lora-held-back": Form("lora", {}, {"l2_sp": 0.01}),
    "full-lisa": Form("full", {"lisa_layers": 1, "lisa_interval": 2}),
    "full-single": Form("full", {}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}),
    "full-kept-best": Form("full", {}, _KEPT_BEST),
}


def outcome(base: Base, name: str, out: Path) -> dict[str, Any]:
    """Train and score, and write the adaptation; also what a merged model scores, and whether the base is restored."""
    form, task = FORMS.get(name, Form(name)), tiny_task()
    attachment = attach(form.recipe, base)
    result = asdict(trained(attachment, form.settings_for(attachment), out / f"run-{name}"))
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


def main() -> None:
    """Do what the command line says."""
    held, model, out, what = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    engine_loss._CHUNK_ELEMENTS = 1 << 12  # so that ranks have different numbers of parts of the logits
    with joined_ranks(shard=held == "sharded") as ranks:
        base = load_base(model, ranks=ranks)
        if what[0] == "--until":
            go_on(base, Form("full", {"learning_rate": 1e-4}, _KEPT_BEST), out, int(what[1]))
        else:
            names = ("facts", *what)
            write(ranks, out, names, lambda name: facts(base) if name == "facts" else outcome(base, name, out))


if __name__ == "__main__":
    main()
