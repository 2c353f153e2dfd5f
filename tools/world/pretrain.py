"""Pretrains the world's model: `python -m tools.world.pretrain OUT`.

It writes a Hugging Face folder (bf16 safetensors, tokenizer) and `pretraining.json`, which holds the log of the run and
what the model can do. A stopped run continues where it was. `--steps 20` is a quick try.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.world import abilities
from tunewise.core import artifact_writer
from tunewise.core.seeds import derive, generator
from tunewise.data.task import Example, Task
from tunewise.data.world import corpus
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import Base, load_base
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make

VOCABULARY, WINDOW = 2048, 512  # tokens
SHAPE: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6}
LEARNING_RATE = 2e-3
_EOS, _BOS = "</s>", "<s>"


def make_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on 20,000 documents; every digit is a token of its own."""
    raw = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[_BOS, _EOS], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(corpus.documents(20_000, seed), trainer)
    raw.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=_BOS, eos_token=_EOS, model_max_length=WINDOW)


def make_model(seed: int = 0) -> LlamaForCausalLM:
    """Make a randomly initialised Llama of the shape of the world's model."""
    torch.manual_seed(derive(seed, "init"))
    fixed: dict[str, Any] = {
        "max_position_embeddings": WINDOW,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=None, **SHAPE, **fixed))


def pretrain(out: Path, steps: int, batch: int, seed: int = 0) -> dict[str, Any]:
    """Train, save and measure the model, and return what `pretraining.json` holds."""
    tokenizer = make_tokenizer(seed)
    base = Base(make_model(seed), tokenizer, "world")
    texts = tuple(Example((), text, (text,)) for text in corpus.documents(steps * batch, seed))
    task = Task("corpus", "text", "text", texts, (), (), (), "likelihood")
    sequences = Encoder(base, task).encode(texts)
    settings = TrainSettings(
        max_steps=steps,
        per_device_train_batch_size=batch,
        weight_decay=0.1,
        adam_beta2=0.98,
        warmup_ratio=0.02,
        save_steps=250,
        bf16=True,
    )
    attachment = make("full", {"full": {"learning_rate": LEARNING_RATE}}).attach(base, generator(seed, "pretrain"))
    log: list[dict[str, float]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as live:
        bar = live.add_task("pretraining", total=steps)

        def show_step(step: int, loss: float) -> None:
            live.update(bar, completed=step, description=f"loss {loss:.3f}")

        started = time.perf_counter()
        trained = train(attachment, sequences, settings, seed=seed, folder=out / "run", resume=True, on_step=show_step)
    for line in (out / "run" / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        if metrics["step"] % 50 == 0:
            log.append({"step": metrics["step"], "loss": round(metrics["loss"], 4)})
    save(base, out)
    saved = load_base(str(out))
    record = {
        "seed": seed,
        "parameters": saved.parameters,
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "fingerprint": saved.fingerprint,
        "documents": len(sequences),
        "tokens": trained.tokens,
        "steps": steps,
        "batch": batch,
        "learning_rate": LEARNING_RATE,
        "seconds": round(time.perf_counter() - started),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "abilities": {name: round(value, 4) for name, value in abilities.measure(saved).items()},
        "log": log,
    }
    artifact_writer.write_text(out / "pretraining.json", json.dumps(record, indent=1) + "\n")
    return record


def save(base: Base, out: Path) -> None:
    """Write a Hugging Face folder with bf16 weights."""
    base.model.to(torch.bfloat16)  # type: ignore[arg-type]
    base.model.save_pretrained(out)
    base.tokenizer.save_pretrained(out)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32, help="documents per step")
    options = parser.parse_args()
    record = pretrain(options.out, options.steps, options.batch)
    print(json.dumps({name: value for name, value in record.items() if name != "log"}, indent=1))


if __name__ == "__main__":
    main()
