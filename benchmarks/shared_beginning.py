"""Times what sharing a beginning saves: training after a long template, and scoring after worked examples.

    python benchmarks/shared_beginning.py [--repeats 5]

1. forward and backward of LoRA on rows that begin with the same 512 tokens: the beginning read once a batch, against
   packing alone, and against padded batches with the labels in Hugging Face's own loss
2. four labels scored for each question after eight worked examples of about 90 tokens, against `generate` row by row,
   `generate` in batches, and each label scored by a pass of its own

Ratios are medians of ratios within a repeat. fp32, two threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tunewise.core.seeds import generator
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import layout, loss_sum, nll
from tunewise.engine.model import Base
from tunewise.engine.packing import by_shared_prefix, packed_batch, padded_batch
from tunewise.engine.token_trie import TokenTrie
from tunewise.fitting.scoring import label_nll
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base

VOCABULARY, WIDTH, BLOCKS = 32_000, 288, 6
HEAD, TAIL, LABELLED, ROWS = 512, 94, 24, 16
SHOTS, SHOT, QUESTION, LABELS, QUESTIONS = 8, 90, 30, ((5,), (6, 7), (8,), (9, 10)), 32


def model() -> Base:
    """A random Llama of 15 million parameters."""
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 768, "num_hidden_layers": BLOCKS, "num_attention_heads": 6}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=True, **shape)
    return Base(LlamaForCausalLM(config), tiny_base().tokenizer)


def tokens(count: int, *name: object) -> list[int]:
    """Random ids."""
    return torch.randint(11, VOCABULARY, (count,), generator=generator(0, *name)).tolist()


def training(repeats: int) -> dict[str, Any]:
    """Seconds of a forward and backward pass of each way."""
    base = model()
    attach(make("lora", {"lora": {"r": 16}}), base)
    head, length = tokens(HEAD, "head"), HEAD + TAIL
    marks = [place >= length - LABELLED for place in range(length)]
    rows = [TokenSequence(head + tokens(TAIL, "tail", row), marks, length - LABELLED) for row in range(ROWS)]

    def ours(share: bool) -> float:
        started = time.perf_counter()
        batch = packed_batch(rows, base.device, share=share)
        with layout(base, batch):
            loss = loss_sum(base, batch)
            loss.backward()
        return _since(started, base)

    def padded() -> float:
        started = time.perf_counter()
        ids = torch.tensor([row.ids for row in rows])
        labels = torch.where(torch.tensor([row.labelled for row in rows]), ids, -100)
        model: Any = base.model
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        return _since(started, base)

    return compared({"shared": lambda: ours(True), "packed": lambda: ours(False), "padded": padded}, repeats)


def _since(started: float, base: Base) -> float:
    for parameter in base.model.parameters():
        parameter.grad = None
    return time.perf_counter() - started


def scoring(repeats: int) -> dict[str, Any]:
    """Seconds for all questions, each way."""
    base = model()
    head = tokens(SHOTS * SHOT, "shots")
    question_ids = [head + tokens(QUESTION, "question", index) for index in range(QUESTIONS)]
    prompts = [TokenSequence(ids, [False] * len(ids), len(ids)) for ids in question_ids]
    answers = [TokenTrie.of(LABELS)] * QUESTIONS
    config = GenerationConfig(max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)

    def ours() -> float:
        started = time.perf_counter()
        for group in by_shared_prefix(prompts, 4096):
            label_nll(base, [prompts[i] for i in group], [answers[i] for i in group])
        return time.perf_counter() - started

    def generated(rows: int) -> float:
        started = time.perf_counter()
        for start in range(0, QUESTIONS, rows):
            ids = torch.tensor(question_ids[start : start + rows])
            base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return time.perf_counter() - started

    def separately() -> float:
        started = time.perf_counter()
        for ids in question_ids:
            for label in LABELS:
                whole = ids + list(label)
                marks = [place >= len(ids) for place in range(len(whole))]
                nll(base, padded_batch([TokenSequence(whole, marks, len(ids))], base.device))
        return time.perf_counter() - started

    ways = {
        "shared": ours,
        "generate, row by row": lambda: generated(1),
        "generate, batches of 16": lambda: generated(16),
        "a pass for each label": separately,
    }
    return compared(ways, repeats)


def compared(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, Any]:
    """Medians in seconds, and of each way over the first."""
    for way in ways.values():
        way()
    runs = [{name: way() for name, way in ways.items()} for _ in range(repeats)]
    first = next(iter(ways))
    return {
        name: {
            "seconds": statistics.median(run[name] for run in runs),
            "ratio": statistics.median(run[name] / run[first] for run in runs),
        }
        for name in ways
    }


def main() -> None:
    """Measure, print tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "shared_beginning.json")
    options = parser.parse_args()
    torch.set_num_threads(2)
    result = {"torch": torch.__version__, "repeats": options.repeats}
    result |= {"training": training(options.repeats), "scoring": scoring(options.repeats)}
    for name in ("training", "scoring"):
        table = Table("way", "seconds", "times the first", title=name)
        for way, figures in result[name].items():
            table.add_row(way, f"{figures['seconds']:.2f}", f"{figures['ratio']:.2f}")
        Console(width=100).print(table)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
