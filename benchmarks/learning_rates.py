"""Trains techniques at multiples of their default learning rate: what those defaults rest on.

    python benchmarks/learning_rates.py MODEL DATA lora,full,bitfit --steps 200

Validation loss is in nats per answer token; the rise is what the model lost on text that it knew, in nats per token.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunewise.contract.technique import Technique
from tunewise.core.errors import DivergedError
from tunewise.data.task import Task, sample
from tunewise.engine.model import Base, load_base
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for, loss
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach

MULTIPLES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def try_rate(
    base: Base, task: Task, technique: Technique, settings: TrainSettings, seed: int, retention: Retention
) -> dict[str, Any]:
    """Train once and measure; a run that diverges has no figures."""
    started = time.perf_counter()
    attachment = attach(technique, base, task, seed)
    try:
        sequences = encoder_for(attachment, task).encode([attachment.render(example) for example in task.train])
        done = train(attachment, sequences, settings, seed=seed)
        figures = {"training_loss": done.final_loss, "validation_loss": loss(attachment, task, task.validation)}
        figures |= retention.compare(attachment)
    except DivergedError:
        figures = dict.fromkeys(("training_loss", "validation_loss", "nll_rise", "kl"))
    finally:
        attachment.detach()
    return {**figures, "seconds": time.perf_counter() - started}


def show(head: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """One table; a star marks the default, bold each technique's lowest validation loss."""
    bare = f"bare model {head['validation_loss_before']:.4f}"
    table = Table(title=f"{head['model']}, {head['data']}, {head['steps']} steps; {bare}", title_justify="left")
    for name in ("technique", "x default", "learning rate", "validation loss", "rise", "KL", "seconds"):
        table.add_column(name, justify="left" if name == "technique" else "right")
    for row in rows:
        losses = [other["validation_loss"] for other in rows if other["technique"] == row["technique"]]
        best = row["validation_loss"] == min((value for value in losses if value is not None), default=math.nan)
        figures = (row["validation_loss"], row["nll_rise"], row["kl"])
        cells = ["diverged" if value is None else f"{value:.4f}" for value in figures]
        mark = "*" if row["multiple"] == 1 else " "
        start = (row["technique"], f"{row['multiple']:g}{mark}", f"{row['learning_rate']:.3g}")
        table.add_row(*start, *cells, f"{row['seconds']:.0f}", style="bold" if best else "")
    Console(width=150).print(table)


def main() -> None:
    """Read the command line, train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("data", help="data as `tunewise compare` takes it")
    parser.add_argument("techniques", help="names joined by commas")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=int, default=128, help="examples that the loss is taken on")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--text", type=Path, help="text that the base knew; default: text sampled from it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learning_rates.json")
    options = parser.parse_args()

    base = load_base(options.model, max_length=options.max_length)
    techniques = [make(name).resolved(base) for name in options.techniques.split(",")]
    for technique in techniques:
        if not isinstance(getattr(technique, "learning_rate", None), float):
            parser.error(f"{technique.name} has no learning rate of its own")
    task = Task.read(options.data)
    task = replace(task, validation=sample(task.validation, options.validation))
    settings = TrainSettings(max_steps=options.steps, per_device_train_batch_size=options.batch_size)
    texts = options.text.read_text("utf-8").splitlines() if options.text else None
    retention = Retention.measure(base, texts)
    bare = attach(make("base"), base, task)
    head = {"model": options.model, "fingerprint": base.fingerprint, "data": options.data, "text": retention.source}
    head |= {"steps": options.steps, "batch_size": options.batch_size, "seed": options.seed}
    head |= {"validation_loss_before": loss(bare, task, task.validation)}
    bare.detach()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for technique in techniques:
        rate: float = technique.learning_rate  # type: ignore[attr-defined]
        for multiple in MULTIPLES:
            variant: Any = replace(technique, learning_rate=float(f"{rate * multiple:.3g}"))
            figures = try_rate(base, task, variant, settings, options.seed, retention)
            row = {"technique": technique.name, "multiple": multiple, "learning_rate": variant.learning_rate}
            rows.append({**row, "settings": variant.to_json()["settings"], **figures})
            options.out.write_text(json.dumps({**head, "rows": rows}, indent=2) + "\n")  # kept if interrupted
    show(head, rows)


if __name__ == "__main__":
    main()
