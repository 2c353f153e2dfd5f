"""Times a training step where the frozen trunk is computed once, against computing it each time, and against full.

    python benchmarks/trunk.py [--repeats 5]

A random Llama of 10 million parameters, 64 rows, batches of 8, fp32, two threads. Seconds are medians over the steps
of the later epochs; recording the trunk is given apart. Every measurement is its own process.
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
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from tunewise.core.seeds import generator
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.model import Base
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base

SHAPE = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 5}
ROWS, BATCH, LENGTH, EPOCHS = 64, 8, 160, 3
METHODS = {"full": {}, "last_layers": {}, "lst": {"init": "magnitude"}}
RUNS = [("full", False), ("last_layers", False), ("last_layers", True), ("lst", False), ("lst", True)]


def measure(name: str, reuse: bool) -> dict[str, Any]:
    """Seconds of a step in the second and later epochs, of everything before the first step, and peak bytes."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    base = Base(LlamaForCausalLM(LlamaConfig(vocab_size=2048, **SHAPE)), tiny_base().tokenizer)
    source = generator(0, "rows")
    rows = []
    for _ in range(ROWS):
        size = int(torch.randint(LENGTH // 2, 3 * LENGTH // 2, (), generator=source))
        ids = torch.randint(2, 2048, (size,), generator=source).tolist()
        rows.append(TokenSequence(ids, [place >= size // 2 for place in range(size)], size // 2))
    attachment = attach(make(name, {name: METHODS[name]}), base)
    steps, clocks = EPOCHS * ROWS // BATCH, [time.perf_counter()]
    settings = TrainSettings(max_steps=steps, per_device_train_batch_size=BATCH)
    train(attachment, rows, settings, on_step=lambda *_: clocks.append(time.perf_counter()), reuse_trunk=reuse)
    durations = [after - before for before, after in itertools.pairwise(clocks)]
    replayed = statistics.median(durations[ROWS // BATCH :])
    return {"step": replayed, "before": durations[0] - replayed, "rss": psutil.Process().memory_info().rss}


def main() -> None:
    """Alternate the runs, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "REUSE"), help="one measurement, as a line of JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trunk.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.one[1] == "True")))
        return
    measurements: dict[tuple[str, bool], list[dict[str, Any]]] = {run: [] for run in RUNS}
    for _ in range(options.repeats):
        for name, reuse in RUNS:
            command = [sys.executable, __file__, "--one", name, str(reuse)]
            environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            measurements[name, reuse].append(json.loads(done.stdout.splitlines()[-1]))
    table = Table("technique", "trunk", "ms a step", "full's step over this", "recording, s", "resident MB")
    rows = []
    for (name, reuse), runs in measurements.items():
        ratios = [full["step"] / other["step"] for full, other in zip(measurements["full", False], runs, strict=True)]
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        row |= {
            "technique": name,
            "trunk": "once" if reuse else "each time",
            "full_over_this": statistics.median(ratios),
        }
        rows.append(row)
        cells = (
            f"{1000 * row['step']:.0f}",
            f"{row['full_over_this']:.2f}",
            f"{row['before']:.2f}",
            f"{row['rss'] / 1e6:.0f}",
        )
        table.add_row(name, row["trunk"], *cells)
    Console(width=120).print(table)
    options.out.write_text(json.dumps({"shape": SHAPE, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
