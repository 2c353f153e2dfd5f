"""What comes before the work: seconds until commands answer, a fit takes its first step, a plan or advice stands.

    python benchmarks/starting.py --model FOLDER --data DATA [--repeats 3]

FOLDER is an instruct model, and DATA a classification task of thousands of rows. Plans and advice are those of all
techniques, for FOLDER and for a model of Llama 2 7B's shape without weights, which has FOLDER's tokenizer. Each command
is a process of its own; wall and CPU seconds are medians. Written to results/starting.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

SEVEN_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
_TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "*.jinja", "vocab.json", "merges.txt")


@dataclass
class Seconds:
    """Holds what a command took in each repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, wall: float, cpu: float) -> None:
        """Add a repeat."""
        self.wall.append(round(wall, 2))
        self.cpu.append(round(cpu, 2))

    def medians(self) -> tuple[float, float]:
        """Return the median of wall and of CPU seconds."""
        return statistics.median(self.wall), statistics.median(self.cpu)

    def to_json(self) -> dict[str, object]:
        """Return what is written."""
        wall, cpu = self.medians()
        return {**asdict(self), "median wall": wall, "median cpu": cpu}


def shape_of_7b(model: Path, folder: Path) -> Path:
    """Write the configuration of a 7B with a model's tokenizer, and no weights."""
    folder.mkdir()
    for pattern in _TOKENIZER_FILES:
        for file in model.glob(pattern):
            shutil.copy(file, folder)
    config = json.loads((model / "config.json").read_text("utf-8")) | SEVEN_BILLION
    config.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def measured(words: list[str], first: Path | None = None) -> tuple[float, float]:
    """Run a command, and return its wall seconds, until a file was written if one is given, and its CPU seconds."""
    started, before = time.time(), os.times()
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()[-400:]}")
    ended = first.stat().st_mtime if first is not None else time.time()
    after = os.times()
    return ended - started, after.children_user + after.children_system - before.children_user - before.children_system


def commands(model: Path, seven: Path, data: str, folder: Path) -> dict[str, tuple[list[str], Path | None]]:
    """List what is timed: its words, and the file whose writing ends it."""
    run, all_ = [sys.executable, "-m", "tunewise"], ["--techniques", "all"]
    fit = [*run, "fit", "lora", "--data", data, "--max-steps", "1", "--model"]
    return {
        "import torch": ([sys.executable, "-c", "import torch"], None),
        "techniques": ([*run, "techniques"], None),
        "check": ([*run, "check", "--data", data], None),
        "check --model": ([*run, "check", "--data", data, "--model", str(model)], None),
        "fit, the shipped model, to its first step": (
            [*fit, "world", "--out", str(folder / "world")],
            folder / "world" / "metrics.jsonl",
        ),
        "fit, the given model, to its first step": (
            [*fit, str(model), "--out", str(folder / "given")],
            folder / "given" / "metrics.jsonl",
        ),
        "plan, the given model": ([*run, "plan", "--model", str(model), "--data", data, *all_], None),
        "plan, 7B": ([*run, "plan", "--model", str(seven), "--data", data, *all_, "--device", "24GB"], None),
        "advise, the given model": ([*run, "advise", "--model", str(model), "--data", data], None),
        "advise, 7B": ([*run, "advise", "--model", str(seven), "--data", data], None),
        "advise --memory 24GB, 7B": ([*run, "advise", "--model", str(seven), "--data", data, "--memory", "24GB"], None),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "starting.json")
    options = parser.parse_args()
    rows = defaultdict[str, Seconds](Seconds)
    with tempfile.TemporaryDirectory() as temporary:
        seven = shape_of_7b(options.model, Path(temporary) / "llama-7b-shape")
        for repeat in range(options.repeats):
            work = Path(temporary) / str(repeat)
            for name, (words, first) in commands(options.model, seven, options.data, work).items():
                rows[name].add(*measured(words, first))
                print(name, rows[name], file=sys.stderr, flush=True)
    table = Table("", "wall, s", "CPU, s")
    for name, row in rows.items():
        table.add_row(name, *(f"{seconds:.1f}" for seconds in row.medians()))
    Console(width=100).print(table)
    machine = {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    written = {"machine": machine, "rows": {name: row.to_json() for name, row in rows.items()}}
    options.out.write_text(json.dumps(written, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
