"""Trains techniques at multiples of their default learning rate: what those defaults rest on.

    python benchmarks/learning_rates.py MODEL DATA... --techniques lora,full,bitfit --steps 60 300

Validation loss is in nats per answer token; the rise is what the model lost on text that it knew, in nats per token.
Each run is one line of the `--out` file. A run that is there is not made again, so that an interrupted sweep continues;
`--show` prints the tables of a file alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
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
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach

MULTIPLES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_TEXT = 8_000  # characters of the retention text, some 8 sequences
KEY = ("model", "dtype", "data", "technique", "given", "learning_rate", "steps", "batch_size", "seed")
Row = dict[str, Any]


def key(row: Row) -> str:
    """Return what tells one run from another."""
    return json.dumps([row[name] for name in KEY], sort_keys=True)


def read(path: Path) -> list[Row]:
    """Return the rows of a file, none where it is not there."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def try_rate(
    base: Base, task: Task, technique: Technique, settings: TrainSettings, seed: int, retention: Retention
) -> Row:
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
        base.release()
    return {**figures, "seconds": time.perf_counter() - started}


def runs(base: Base, task: Task, options: argparse.Namespace) -> Iterator[tuple[int, Technique, Row]]:
    """Yield what is to be tried on each task, the middle multiples first: steps, recipe, and the start of its row."""
    given = json.loads(options.settings)
    for steps in options.steps:
        for multiple in sorted(options.multiples, key=lambda multiple: abs(math.log(multiple))):
            for name in options.techniques.split(",") if options.techniques else all_techniques():
                technique = make(name, {name: given.get(name, {})}).resolved(base)
                rate = getattr(technique, "learning_rate", None)
                if not isinstance(rate, float) or technique.lacks(base, task):
                    continue
                variant: Any = replace(technique, learning_rate=float(f"{rate * multiple:.3g}"))
                row = {"technique": name, "given": given.get(name, {}), "multiple": multiple, "steps": steps}
                yield steps, variant, {**row, "learning_rate": variant.learning_rate}


def sweep(base: Base, data: str, options: argparse.Namespace) -> None:
    """Try everything on one task; append a line for each run that the file does not have."""
    model, done = Path(options.model).name, {key(row) for row in read(options.out)}
    head = {"model": model, "data": Path(data).name, "batch_size": options.batch_size, "seed": options.seed}
    head |= {"dtype": str(base.model.dtype).removeprefix("torch."), "bf16": options.bf16}
    task = Task.read(data)
    wanted = runs(base, task, options)
    missing = [(steps, recipe, row) for steps, recipe, row in wanted if key({**head, **row}) not in done]
    if not missing:
        return
    task = replace(task, validation=sample(task.validation, options.validation))
    texts = [options.text.read_text("utf-8")[:_TEXT]] if options.text else None
    retention = Retention.measure(base, texts)
    bare = attach(make("base"), base, task)
    head |= {"validation_loss_before": loss(bare, task, task.validation), "text": retention.source}
    bare.detach()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for steps, recipe, row in missing:
        settings = TrainSettings(max_steps=steps, per_device_train_batch_size=options.batch_size, bf16=options.bf16)
        figures = try_rate(base, task, recipe, settings, options.seed, retention)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**head, **row, **figures}) + "\n")


def show(rows: list[Row]) -> None:
    """Print a table for each model, task and number of steps; a star marks the default, bold the lowest loss."""
    console = Console(width=110)
    for model, data, steps in sorted({(row["model"], row["data"], row["steps"]) for row in rows}):
        table_rows = [row for row in rows if (row["model"], row["data"], row["steps"]) == (model, data, steps)]
        bare = f"bare model {table_rows[0]['validation_loss_before']:.4f}"
        table = Table(title=f"{model}, {data}, {steps} steps; {bare}", title_justify="left")
        for name in ("technique", "x default", "learning rate", "validation loss", "rise", "KL", "seconds"):
            table.add_column(name, justify="left" if name == "technique" else "right")
        for row in sorted(table_rows, key=lambda row: (row["technique"], str(row["given"]), row["learning_rate"])):
            alike = [r for r in table_rows if (r["technique"], r["given"]) == (row["technique"], row["given"])]
            losses = [other["validation_loss"] for other in alike if other["validation_loss"] is not None]
            best = bool(losses) and row["validation_loss"] == min(losses)
            figures = (row["validation_loss"], row["nll_rise"], row["kl"])
            cells = ["diverged" if value is None else f"{value:.4f}" for value in figures]
            given = "".join(f" {name}={value}" for name, value in row["given"].items() if not isinstance(value, list))
            mark = "*" if row["multiple"] == 1 else " "
            start = (row["technique"] + given, f"{row['multiple']:g}{mark}", f"{row['learning_rate']:.3g}")
            table.add_row(*start, *cells, f"{row['seconds']:.0f}", style="bold" if best else "")
        console.print(table)


def draw(rows: list[Row], path: Path) -> None:
    """Draw a panel for each model, task and number of steps with curves: the share of the bare model's loss that stays.

    A point that diverged or stays above the bare model is drawn at 1.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, int], dict[str, dict[float, float]]] = {}
    for row in rows:
        name = " ".join([row["technique"], *map(str, row["given"].values())])
        share = (row["validation_loss"] or math.inf) / row["validation_loss_before"]
        curves = panels.setdefault((row["model"], row["data"], row["steps"]), {})
        curves.setdefault(name, {})[row["multiple"]] = min(share, 1.0)
    panels = {head: {n: c for n, c in curves.items() if len(c) > 1} for head, curves in panels.items()}
    panels = {head: curves for head, curves in panels.items() if curves}
    across, names = 2, sorted({name for curves in panels.values() for name in curves})
    figure = Figure(figsize=(11, 3.6 * math.ceil(len(panels) / across) + 1.2), layout="constrained")
    axes = figure.subplots(math.ceil(len(panels) / across), across, squeeze=False).flatten()
    for axis, ((model, data, steps), curves) in zip(axes, sorted(panels.items()), strict=False):
        for name, curve in sorted(curves.items()):
            index = names.index(name)
            style = {"color": f"C{index % 10}", "linestyle": ("-", "--", ":")[index // 10 % 3], "marker": "."}
            axis.plot(*zip(*sorted(curve.items()), strict=True), label=name, **style)
        axis.axvline(1, color="grey", linewidth=0.5)
        axis.set(xscale="log", ylim=(0, 1.02), title=f"{model}, {data.split('#')[0]}, {steps} steps")
        axis.set(xlabel="multiple of the default learning rate", ylabel="share of the bare model's loss")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read the command line, train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("data", nargs="*", help="data as `tunewise compare` takes it")
    parser.add_argument("--techniques", help="names joined by commas; default: all with a learning rate")
    parser.add_argument("--settings", default="{}", help='settings by technique, as JSON: {"full": {"optimizer": ...}}')
    parser.add_argument("--multiples", type=float, nargs="+", default=MULTIPLES, help="of the default learning rate")
    parser.add_argument("--steps", type=int, nargs="+", default=[60])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--bf16", action="store_true", help="train in bf16 arithmetic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=int, default=64, help="examples that the loss is taken on")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--text", type=Path, help="text that the base knew; default: text sampled from it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learning_rates.jsonl")
    parser.add_argument("--show", action="store_true", help="only print the tables of the --out file")
    parser.add_argument("--draw", type=Path, help="only draw the curves of the --out file, of all models, as SVG")
    options = parser.parse_args()
    if options.draw:
        draw(read(options.out), options.draw)
        return
    if not options.show:
        base = load_base(options.model, max_length=options.max_length)
        for data in options.data:
            sweep(base, data, options)
    show([row for row in read(options.out) if row["model"] == Path(options.model).name])


if __name__ == "__main__":
    main()
