"""How well plans predict memory and time: every technique on four shapes of models and three of batches.

    python benchmarks/plan.py [--techniques lora,full] [--shapes "gpt2;llama, deep"] [--batches short] [--turns]
    python benchmarks/plan.py --device cuda --turns

For each, a process of its own trains for six steps of the same rows and says what it took at most beyond what its
libraries took before, and how long a step was; then what the plan foresees, and what three real steps say as a probe.
Random models, two threads, fp32. On a GPU the models are larger and under bf16 autocast, and one process trains them
all; `--trained FILE` stops after that and writes what it saw, and a file that is there is read instead, so that the
plans can be drawn on a machine without a GPU. `--turns` gives each technique each shape, with one of the batches in
turn. Written to results/plan.json, or results/plan_cuda.json.

    python benchmarks/plan.py --whole MODEL DATA TECHNIQUE [-- --budget-steps 8 --test-examples 64]

This compares one technique in a process of its own and prints estimated beside measured seconds and peak memory, by
which the constants of `tunewise.advice.plan.whole_run` are set.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from tunewise.advice.plan.machine_rates import Rates
from tunewise.advice.plan.planner import measure
from tunewise.advice.plan.probe import probe
from tunewise.advice.plan.weightless import Sketch
from tunewise.core.seeds import generator
from tunewise.data.task import Example, Message, Task
from tunewise.engine.forward import why_not_packed
from tunewise.engine.memory import peak_memory, release_unused_memory
from tunewise.engine.model import DTYPES, Base
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import study
from tunewise.fitting.settings import TrainSettings
from tunewise.results.schema import Comparison
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import tiny_base

Cell = tuple[str, str, str]  # shape, batch, technique
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
LARGE: dict[str, dict[str, Any]] = {  # what a GPU's differ in
    "llama, wide": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "llama, deep": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "qwen3, large vocabulary": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 152000,
        "max_position_embeddings": 4096,
    },
    "gpt2": {"n_embd": 1280, "n_layer": 16, "n_head": 20, "vocab_size": 50257, "n_positions": 4096},
}
BATCHES = {  # rows of a pass, tokens of a row at most
    "cpu": {"short": (8, 64), "middle": (4, 256), "long": (2, 700)},
    "cuda": {"short": (16, 256), "middle": (8, 1024), "long": (2, 4000)},
}
STEPS = 6
NEEDED = {"mpt"}  # learns from other tasks, which random models have none of


def settings(batch: str, device: str) -> TrainSettings:
    """Six steps of one pass."""
    size = BATCHES[device][batch][0]
    return TrainSettings(max_steps=STEPS, per_device_train_batch_size=size, bf16=device == "cuda")


def task(batch: str, device: str) -> Task:
    """Rows of letters, whose lengths lie between a half of the longest and it."""
    rows, longest = BATCHES[device][batch]
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


def config(shape: str, device: str) -> Any:
    """The configuration of a shape."""
    kind, own = SHAPES[shape]
    own = {**own, **(LARGE[shape] if device == "cuda" else {})}
    return AutoConfig.for_model(kind, **own, bos_token_id=0, eos_token_id=1, pad_token_id=None)


def real(shape: str, device: str) -> Base:
    """A random base."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config(shape, device), dtype=torch.float32)
    return Base(model.to(device), tiny_base().tokenizer, shape)


def drawn(shape: str, device: str) -> Sketch:
    """Its sketch."""
    return Sketch(
        shape,
        config(shape, device),
        tiny_base().tokenizer,
        DTYPES["float32"],
        None,
        why_not_packed(tiny_base(SHAPES[shape][0])),
    )


def trained(shape: str, batch: str, name: str, device: str = "cpu", base: Base | None = None) -> dict[str, float]:
    """What six real steps take: bytes at most, and seconds of a step after the first."""
    from tunewise.fitting.scoring import encoder_for

    ends: list[float] = []
    with peak_memory(torch.device(device)) as memory:
        base, data = base or real(shape, device), task(batch, device)
        attachment = make(name, {}).resolved(base).attach(base, generator(0, "attach"))
        attachment.prepare_shapes(study(attachment, data, data.validation, 0))
        rows = encoder_for(attachment, data).encode([attachment.render(example) for example in data.train])
        train_settings = replace(settings(batch, device), max_steps=STEPS * attachment.phases)
        train(attachment, rows, train_settings, on_step=lambda *_: ends.append(time.perf_counter()), reuse_trunk=False)
    base.release()
    passed = [after - before for before, after in itertools.pairwise(ends[:STEPS])]
    return {"peak": memory[0], "step": statistics.median(passed)}


def trained_there(cells: list[Cell]) -> list[dict[str, Any]]:
    """The same on a GPU, and a probe, in this process."""
    rows, bases = list[dict[str, Any]](), dict[str, Base]()
    rates = asdict(Rates.measured(torch.bfloat16, "cuda"))
    for shape, batch, name in cells:
        if shape not in bases:
            bases.clear()
            release_unused_memory()
            bases[shape] = real(shape, "cuda")
        base = bases[shape]
        row: dict[str, Any] = {"shape": shape, "batch": batch, "technique": name, "rates": rates}
        try:
            measured = trained(shape, batch, name, "cuda", base)
            release_unused_memory()
            probed = probe(base, task(batch, "cuda"), make(name, {}), settings(batch, "cuda"))
            row |= {f"real_{key}": value for key, value in measured.items()}
            row |= {"probed_peak": probed.peak, "probed_step": probed.step}
        except Exception as error:  # the others go on; a row without figures is shown as such
            row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            base.release()
        release_unused_memory()
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def predicted(shape: str, batch: str, name: str, device: str, rates: Rates) -> dict[str, float]:
    """What the plan says for a device of these rates."""
    train_settings = settings(batch, device)
    need = measure(drawn(shape, device), task(batch, device), make(name, {}), train_settings, device, rates)
    return {"peak": need.peak, "step": need.step or 0.0}


def all_of_it(shape: str, batch: str, name: str) -> dict[str, float]:
    """Training on a processor, then the plan, then a probe: only the first has an unused process to itself."""
    figures = {f"real_{key}": value for key, value in trained(shape, batch, name).items()}
    figures |= predicted(shape, batch, name, "cpu", Rates.measured())
    probed = probe(real(shape, "cpu"), task(batch, "cpu"), make(name, {}), settings(batch, "cpu"))
    return figures | {"probed_peak": probed.peak, "probed_step": probed.step}


def whole(model: str, data: str, name: str, words: list[str]) -> None:
    """Print what a comparison of one technique was expected to take and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tunewise.cli", "compare", "--model", model, "--data", data]
        command += ["-t", name, "--yes", "--json", "--out", folder, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = Comparison.from_json(json.loads(done.stdout))
    row, cost, spent = result.estimate.rows[0], result.rows[0].cost, result.rows[0].spent
    scored = cost.seconds_per_example * result.task.test
    table = Table("", "estimated", "measured")
    table.add_row("preparing and training, s", f"{row.preparing + row.training:.1f}", f"{cost.train_seconds:.1f}")
    rest = f"{spent.seconds - cost.train_seconds:.1f} (test split {scored:.1f})"
    table.add_row("scoring and forgetting, s", f"{row.scoring + row.forgetting:.1f}", rest)
    table.add_row("start, s", f"{result.estimate.startup:.1f}", f"{result.seconds - spent.seconds:.1f} without loading")
    peaks = result.estimate.peak_memory_bytes, result.process_peak_bytes
    table.add_row("peak of the process, GB", *(f"{peak / 1e9:.2f}" for peak in peaks))
    Console(width=100).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--techniques", default=",".join(n for n in all_techniques() if make(n, {}).trains and n not in NEEDED)
    )
    parser.add_argument("--shapes", default=";".join(SHAPES), help="joined by semicolons")
    parser.add_argument("--batches", default="short,middle,long")
    parser.add_argument("--turns", action="store_true", help="one of the batches for each technique and shape")
    parser.add_argument("--device", choices=tuple(BATCHES), default="cpu")
    parser.add_argument("--trained", type=Path, help="what training took on a GPU, written or read")
    parser.add_argument("--one", nargs=3, metavar=("SHAPE", "BATCH", "TECHNIQUE"), help="one, as a line of JSON")
    parser.add_argument("--rates", help="with --one: the plan alone, for a GPU that is so fast, as JSON")
    parser.add_argument("--whole", nargs=3, metavar=("MODEL", "DATA", "TECHNIQUE"), help="one whole comparison")
    parser.add_argument("--out", type=Path)
    parser.add_argument("words", nargs="*", help="with --whole: further options of tunewise compare, after --")
    options = parser.parse_args()
    if options.whole:
        whole(*options.whole, options.words)
        return
    if options.one:
        one = (
            predicted(*options.one, options.device, Rates(**json.loads(options.rates)))
            if options.rates
            else all_of_it(*options.one)
        )
        print(json.dumps(one))
        return
    batches = options.batches.split(",")
    cells = [
        (shape, batch, name)
        for shape_index, shape in enumerate(options.shapes.split(";"))
        for batch_index, batch in enumerate(batches)
        for technique_index, name in enumerate(options.techniques.split(","))
        if not options.turns or (technique_index + shape_index + batch_index) % len(batches) == 0
    ]
    if options.device == "cpu":
        rows = list(_rows(cells))
    elif options.trained and not options.trained.exists():
        options.trained.write_text(json.dumps(trained_there(cells), indent=1) + "\n")
        return
    else:
        trained_rows = json.loads(options.trained.read_text()) if options.trained else trained_there(cells)
        rows = list(_with_plans([row for row in trained_rows if "failed" not in row]))
    summary = {
        name: {
            "median": statistics.median(errors),
            "worst": max(errors),
            "within 20 %": sum(x <= 0.2 for x in errors) / len(errors),
        }
        for name, errors in {
            "memory": [abs(row["peak"] / row["real_peak"] - 1) for row in rows],
            "memory, probed": [abs(row["probed_peak"] / row["real_peak"] - 1) for row in rows],
            "time": [abs(row["step"] / row["real_step"] - 1) for row in rows],
            "time, probed": [abs(row["probed_step"] / row["real_step"] - 1) for row in rows],
        }.items()
    }
    name = "plan.json" if options.device == "cpu" else "plan_cuda.json"
    out = options.out or Path(__file__).parent / "results" / name
    out.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")
    table = Table("", "median", "worst", "within 20 %")
    for name, figures in summary.items():
        table.add_row(name, *(f"{100 * value:.1f} %" for value in figures.values()))
    Console(width=100).print(table)


def _rows(cells: list[Cell]) -> Iterator[dict[str, Any]]:
    for shape, batch, name in cells:
        row = {"shape": shape, "batch": batch, "technique": name, **_in_own_process(shape, batch, name)}
        print(json.dumps(row), file=sys.stderr, flush=True)
        yield row


def _with_plans(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        cell, rates = (row["shape"], row["batch"], row["technique"]), json.dumps(row["rates"])
        planned = row | _in_own_process(*cell, "--device", "cuda", "--rates", rates)
        print(json.dumps(planned), file=sys.stderr, flush=True)
        yield planned


def _in_own_process(*words: str) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--one", *words]
    done = subprocess.run(
        command, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
