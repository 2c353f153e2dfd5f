"""How well plans foresee memory and time: every technique on four shapes of models and three of batches.

    python benchmarks/plan.py [--techniques lora,full] [--shapes wide,deep] [--batches short] [--repeats 1]

For each, a process of its own trains for six steps of the same rows and says what it took at most beyond what its
libraries took before, and how long a step was; another says what the plan foresees, with and without three real steps
as a probe. Random models, two threads, fp32. Written to results/plan.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from tunewise.forward import why_not_packed
from tunewise.meter import peak_memory
from tunewise.model import DTYPES, Base
from tunewise.plan import measure
from tunewise.probe import probe
from tunewise.rates import Rates
from tunewise.registry import all_techniques, make
from tunewise.seeds import generator
from tunewise.sketch import Sketch
from tunewise.task import Example, Message, Task
from tunewise.technique import Study
from tunewise.testing import tiny_base
from tunewise.train import TrainSettings, train

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, wide": (
        "llama",
        {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 12,
            "vocab_size": 8000,
        },
    ),
    "llama, deep": (
        "llama",
        {
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 6,
            "vocab_size": 4000,
        },
    ),
    "qwen3, large vocabulary": (
        "qwen3",
        {
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 48000,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 16000, "n_positions": 1024}),
}
BATCHES = {"short": (8, 64), "middle": (4, 256), "long": (2, 700)}  # rows of a pass, tokens of a row at most
STEPS = 6
NEEDED = {"mpt"}  # learns from other tasks, which random models have none of


def settings(batch: str) -> TrainSettings:
    """Six steps of one pass."""
    return TrainSettings(max_steps=STEPS, per_device_train_batch_size=BATCHES[batch][0])


def task(batch: str) -> Task:
    """Rows of letters, whose lengths lie between a half of the longest and it."""
    rows, longest = BATCHES[batch]
    source = generator(0, "rows")
    examples = []
    for _ in range(STEPS * rows + 8):
        size = int(torch.randint(longest // 2, longest - 24, (), generator=source))
        examples.append(Example((Message("user", "cat " * (size // 5)),), "dog " * max(size // 20, 1)))
    return Task(
        "rows",
        "generation",
        "prompt-completion",
        tuple(examples[8:]),
        tuple(examples[:4]),
        tuple(examples[:4]),
        (),
        "rouge_l",
    )


def config(shape: str) -> Any:
    """The configuration of a shape."""
    kind, own = SHAPES[shape]
    return AutoConfig.for_model(kind, **own, bos_token_id=0, eos_token_id=1, pad_token_id=None)


def real(shape: str) -> Base:
    """A random base."""
    torch.manual_seed(0)
    return Base(AutoModelForCausalLM.from_config(config(shape), dtype=torch.float32), tiny_base().tokenizer, shape)


def drawn(shape: str) -> Sketch:
    """Its sketch."""
    return Sketch(
        shape,
        config(shape),
        tiny_base().tokenizer,
        DTYPES["float32"],
        None,
        why_not_packed(tiny_base(SHAPES[shape][0])),
    )


def trained(shape: str, batch: str, name: str) -> dict[str, float]:
    """What six real steps take: bytes at most, and seconds of a step after the first."""
    from tunewise.evaluate import encoder_for

    ends: list[float] = []
    with peak_memory(torch.device("cpu")) as memory:
        base, data = real(shape), task(batch)
        attachment = make(name, {}).resolved(base).attach(base, generator(0, "attach"))
        attachment.rehearse(Study(data, 0, lambda: 1.0))
        rows = encoder_for(attachment, data).encode([attachment.render(example) for example in data.train])
        given = replace(settings(batch), max_steps=STEPS * attachment.phases)
        train(attachment, rows, given, on_step=lambda *_: ends.append(time.perf_counter()), reuse_trunk=False)
    passed = [after - before for before, after in itertools.pairwise(ends[:STEPS])]
    return {"peak": memory[0], "step": statistics.median(passed)}


def foreseen(shape: str, batch: str, name: str) -> dict[str, float]:
    """What the plan says, without and with a probe."""
    given = settings(batch)
    need = measure(drawn(shape), task(batch), make(name, {}), given, "cpu", Rates.measured())
    tried = probe(real(shape), task(batch), make(name, {}), given)
    return {"peak": need.peak, "step": need.step or 0.0, "probed_peak": tried["peak"], "probed_step": tried["step"]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--techniques", default=",".join(n for n in all_techniques() if make(n, {}).trains and n not in NEEDED)
    )
    parser.add_argument("--shapes", default=";".join(SHAPES), help="joined by semicolons")
    parser.add_argument("--batches", default=",".join(BATCHES))
    parser.add_argument("--one", nargs=4, metavar=("WHAT", "SHAPE", "BATCH", "TECHNIQUE"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan.json")
    options = parser.parse_args()
    if options.one:
        what, *which = options.one
        print(json.dumps((trained if what == "trained" else foreseen)(*which)))
        return
    rows = list(_rows(options.shapes.split(";"), options.batches.split(","), options.techniques.split(",")))
    summary = {
        name: {
            "median": statistics.median(off),
            "worst": max(off),
            "within 20 %": sum(x <= 0.2 for x in off) / len(off),
        }
        for name, off in {
            "memory": [abs(row["peak"] / row["real_peak"] - 1) for row in rows],
            "memory, probed": [abs(row["probed_peak"] / row["real_peak"] - 1) for row in rows],
            "time": [abs(row["step"] / row["real_step"] - 1) for row in rows],
            "time, probed": [abs(row["probed_step"] / row["real_step"] - 1) for row in rows],
        }.items()
    }
    options.out.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")
    table = Table("", "median", "worst", "within 20 %")
    for name, found in summary.items():
        table.add_row(name, *(f"{100 * value:.1f} %" for value in found.values()))
    Console(width=100).print(table)


def _rows(shapes: list[str], batches: list[str], names: list[str]) -> Iterator[dict[str, Any]]:
    for shape in shapes:
        for batch in batches:
            for name in names:
                plan, found = (_apart(what, shape, batch, name) for what in ("foreseen", "trained"))
                row = {"shape": shape, "batch": batch, "technique": name, **plan}
                row |= {f"real_{key}": value for key, value in found.items()}
                print(json.dumps(row), file=sys.stderr, flush=True)
                yield row


def _apart(what: str, shape: str, batch: str, name: str) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--one", what, shape, batch, name]
    done = subprocess.run(
        command, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
