"""Trains on rows that ranks compute together, or as one process that computes whole ones.

`python context_worker.py CONTEXT OUT WHAT...` trains a tiny model and writes what came of each WHAT, a technique or a
name in `FORMS`, as a line of `OUT/<rank>.jsonl`. `... OUT --until N` takes the steps of one training up to step N, from
where it was stopped. `... OUT --row TOKENS` writes loss and gradients of one long row.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rank_training import Form, Outcome, go_on, trained, write
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, loss_sum, recomputing, require_division, why_not_packed
from tunewise.engine.memory import peak_memory
from tunewise.engine.ranks import Ranks, joined_ranks
from tunewise.engine.tiny import tiny_base, tiny_task
from tunewise.techniques.registry import make
from tunewise.testing import attach

_SINGLE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
# What a name stands for, where it is no technique.
FORMS = {
    "lora-recomputed": Form("lora", {}, {"gradient_checkpointing": True}),
    "lora-embeddings": Form("lora", {"target_modules": ["q", "embed_tokens", "lm_head"]}),
    "lora-rehearsed": Form("lora", {}, {"replay": 0.3, "kl_to_base": 0.1, "l2_sp": 0.01}),
    "lora-kept-best": Form("lora", {}, {"load_best_model_at_end": True, "eval_steps": 1}),
    **{  # in passes of one row, virtual tokens are on the first rank alone, and targets on the last
        f"{technique}-single": Form(technique, {}, _SINGLE)
        for technique in ("full", "prompt_tuning", "prefix_tuning", "p_tuning", "pasta", "lst")
    },
    "full-bf16": Form("full", {}, {"bf16": True}),
    **{
        f"full-{architecture}": Form("full", architecture=architecture)
        for architecture in ("llama-tied", "mistral", "qwen3", "gemma3_text", "phi3", "phi", "gpt2", "gpt_neox", "opt")
    },
}


def outcome(ranks: Ranks, name: str, out: Path) -> Outcome:
    """Train and score."""
    form = FORMS.get(name, Form(name))
    base = tiny_base(form.architecture)
    base.ranks = ranks
    if ranks.divides_rows:
        require_division(base)
    attachment = attach(form.recipe, base)
    return trained(attachment, form.settings_for(attachment), out / f"run-{name}")


def long_row(ranks: Ranks, out: Path, tokens: int, recomputes: bool) -> None:
    """Write loss, gradients and peak memory of one row of so many tokens, or of three with a shared beginning."""
    base = tiny_base("llama")
    base.model.config.max_position_embeddings = tokens
    base.ranks = ranks
    attachment = attach(make("full"), base, tiny_task())
    why_not_packed(base)
    ids = torch.randint(2, 320, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    labelled = [place % 7 < 2 and place > tokens // 16 for place in range(tokens)]
    cpu = torch.device("cpu")
    with peak_memory(cpu) as before:
        pass
    batch = batch_of(base, [TokenSequence(ids, labelled, 0)], divide=True)
    with peak_memory(cpu) as peak, layout(base, batch), recomputing(base, recomputes):
        value = loss_sum(base, batch)
        value.backward()
    total = ranks.total(value.item())[0]
    gradients = {name: p.grad for name, p in attachment.params().items() if p.grad is not None}
    ranks.sum(list(gradients.values()))
    if ranks.writes:
        save_file({name: gradient.contiguous() for name, gradient in gradients.items()}, out / "gradients.safetensors")
    facts = {"loss": total, "grown": peak[0] - before[0], "computed": batch.ids.shape[1]}
    (out / f"{ranks.rank}.jsonl").write_text(json.dumps(["row", facts]))
    ranks.wait()


def main() -> None:
    """Do what the command line says."""
    context, out, what = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    with joined_ranks(context=context) as ranks:
        if what[0] == "--until":
            base = tiny_base("llama")
            base.ranks = ranks
            go_on(base, Form("lora"), out, int(what[1]))
        elif what[0] == "--row":
            long_row(ranks, out, int(what[1]), "--recompute" in what)
        else:
            write(ranks, out, what, lambda name: outcome(ranks, name, out))


if __name__ == "__main__":
    main()
