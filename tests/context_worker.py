"""Trains on rows that ranks compute together, or as one process that computes whole ones.

`python context_worker.py CONTEXT OUT WHAT...` trains a tiny model and writes what came of each WHAT, a technique or a
name in `FORMS`, as a line of `OUT/<rank>.jsonl`. `... OUT --until N` takes the steps of one training up to step N, from
where it was stopped. `... OUT --row TOKENS` writes loss and gradients of one long row.
"""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, loss_sum, recomputing, require_division, why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.ranks import Ranks, joined_ranks
from tunewise.engine.tiny import tiny_base, tiny_task
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for, loss, score
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach

SETTINGS = TrainSettings(max_steps=4, per_device_train_batch_size=3, gradient_accumulation_steps=2)
_SINGLE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
# What a name stands for, where it is no technique: architecture, technique, its settings, and those of the training.
FORMS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "mpt": ("llama", "mpt", {"sources": ["world:letters/name", "world:letters/age"], "source_steps": 2}, {}),
    "qlora": ("llama", "qlora", {"lora_dropout": 0.0}, {}),  # which values dropout falls on depends on the ranks
    "lora-recomputed": ("llama", "lora", {}, {"gradient_checkpointing": True}),
    "lora-embeddings": ("llama", "lora", {"target_modules": ["q", "embed_tokens", "lm_head"]}, {}),
    "lora-rehearsed": ("llama", "lora", {}, {"replay": 0.3, "kl_to_base": 0.1, "l2_sp": 0.01}),
    "lora-kept-best": ("llama", "lora", {}, {"load_best_model_at_end": True, "eval_steps": 1}),
    **{  # in passes of one row, virtual tokens are on the first rank alone, and targets on the last
        f"{technique}-single": ("llama", technique, {}, _SINGLE)
        for technique in ("full", "prompt_tuning", "prefix_tuning", "p_tuning", "pasta", "lst")
    },
    "full-bf16": ("llama", "full", {}, {"bf16": True}),
    **{
        f"full-{architecture}": (architecture, "full", {}, {})
        for architecture in ("llama-tied", "mistral", "qwen3", "gemma3_text", "phi3", "phi", "gpt2", "gpt_neox", "opt")
    },
}


def outcome(ranks: Ranks, name: str, out: Path) -> dict[str, Any]:
    """Train and score; return losses, gradient norms, scores and answers."""
    architecture, technique, given, settings = FORMS.get(name, ("llama", name, {}, {}))
    base, task, generation = tiny_base(architecture), tiny_task(), tiny_task("generation")
    base.ranks = ranks
    if ranks.divides_rows:
        require_division(base)
    attachment = attach(make(technique, {technique: given}), base, task)
    losses: list[float] = []
    folder = out / f"run-{name}"
    if attachment.recipe.trains:
        rows = encoder_for(attachment, task).encode([attachment.render(example) for example in task.train[:7]])
        chosen = replace(SETTINGS, **{"max_steps": max(SETTINGS.max_steps, attachment.phases), **settings})
        train(
            attachment,
            rows,
            chosen,
            folder=folder,
            on_step=lambda step, value: losses.append(value),
            evaluate=(lambda: loss(attachment, task, task.validation)) if "eval_steps" in settings else None,
            rehearsal=_rehearsal(base) if chosen.rehearses else None,
        )
    ranks.wait()
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
    scores = score(attachment, task, task.test)
    return {
        "losses": losses,
        "norms": [line["grad_norm"] for line in lines if "grad_norm" in line],
        "validation": loss(attachment, task, task.validation),
        "nll": scores.nll,
        "predictions": scores.predictions,
        "answers": score(attachment, generation, generation.test[:3]).predictions,
    }


def _rehearsal(base: Base) -> Any:
    from tunewise.fitting.rehearsal import Rehearsal

    return Rehearsal.of(base, ["the cat sat on a mat", "small birds sing in old trees by day"])


def go_on(ranks: Ranks, folder: Path, until: int) -> None:
    """Continue one training to a step; all of it has six."""
    base, task = tiny_base("llama"), tiny_task()
    base.ranks = ranks
    attachment = attach(make("lora"), base, task)
    rows = encoder_for(attachment, task).encode(list(task.train))
    train(attachment, rows, replace(SETTINGS, max_steps=6), folder=folder, resume=True, until=until)
    ranks.wait()


def long_row(ranks: Ranks, out: Path, tokens: int, recomputes: bool) -> None:
    """Write loss, gradients and peak memory of one row of so many tokens, or of three with a shared beginning."""
    base = tiny_base("llama")
    base.model.config.max_position_embeddings = tokens
    base.ranks = ranks
    attachment = attach(make("full"), base, tiny_task())
    why_not_packed(base)
    ids = torch.randint(2, 320, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    labelled = [place % 7 < 2 and place > tokens // 16 for place in range(tokens)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = batch_of(base, [TokenSequence(ids, labelled, 0)], divide=True)
    with layout(base, batch), recomputing(base, recomputes):
        value = loss_sum(base, batch)
        value.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = ranks.total(float(value))[0]
    gradients = {name: p.grad for name, p in attachment.params().items() if p.grad is not None}
    ranks.sum(list(gradients.values()))
    if ranks.writes:
        save_file({name: gradient.contiguous() for name, gradient in gradients.items()}, out / "gradients.safetensors")
    facts = {"loss": total, "grown_kb": peak - before, "computed": batch.ids.shape[1]}
    (out / f"{ranks.rank}.jsonl").write_text(json.dumps(["row", facts]))
    ranks.wait()


def main() -> None:
    """Do what the command line says."""
    context, out, what = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    with joined_ranks(context=context) as ranks:
        if what[0] == "--until":
            go_on(ranks, out, int(what[1]))
            return
        if what[0] == "--row":
            long_row(ranks, out, int(what[1]), "--recompute" in what)
            return
        with (out / f"{ranks.rank}.jsonl").open("w") as file:
            for name in what:
                file.write(json.dumps([name, outcome(ranks, name, out)]) + "\n")
                file.flush()
        ranks.wait()


if __name__ == "__main__":
    main()
