"""How many passages help and when they mislead: answers against the number of passages shown.

    python benchmarks/overload.py [--out docs/overload.svg]

`rag` on the shipped model and the town's 40 documents, cut into sentences so that up to 32 fit the window: the share of
right answers in the test, with no floor (every question gets k passages) and with the default floor (what does not fit
is left out), and the number that validation chooses. Figures go to results/overload.json, the plot to --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

from tunewise.data import world
from tunewise.engine.model import load_base
from tunewise.fitting.scoring import loss, score
from tunewise.techniques.registry import make
from tunewise.testing import attach

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SENTENCES = {"chunk_size": 16, "chunk_overlap": 0.0}


def measured(**settings: Any) -> dict[str, float]:
    """Score on the test, loss on validation, passages shown, and prompt tokens."""
    base, task = load_base("world"), world.task("town")
    attachment: Any = attach(make("rag", {"rag": {**SENTENCES, **settings}}), base, task)
    scores = score(attachment, task, task.test)
    passages = sum(len(attachment.passages(example)) for example in task.test) / len(task.test)
    return {
        "k": attachment.k,
        "score": scores.mean,
        "validation_loss": loss(attachment, task, task.validation),
        "shown": passages,
        "prompt_tokens": scores.prompt_tokens,
    }


def main() -> None:
    """Measure, print, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs") / "overload.svg")
    options = parser.parse_args()
    floors = {"no floor": 0.0, "floor 0.15": 0.15}
    result = {name: [measured(k=count, floor=floor) for count in COUNTS] for name, floor in floors.items()}
    chosen = measured()
    table = Table("floor", "k", "exact match", "validation loss", "shown", "prompt tokens")
    for name, rows in {**result, "chosen": [chosen]}.items():
        for row in rows:
            cells = (f"{row['score']:.3f}", f"{row['validation_loss']:.3f}", f"{row['shown']:.1f}")
            table.add_row(name, str(row["k"]), *cells, f"{row['prompt_tokens']:.0f}")
    Console(width=100).print(table)
    mpl.rcParams["svg.hashsalt"] = "overload"  # the same bytes for the same figures
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for name, rows in result.items():
        axes.plot([row["k"] for row in rows], [row["score"] for row in rows], marker="o", label=name)
    axes.plot([chosen["k"]], [chosen["score"]], "k*", markersize=14, label="chosen on validation")
    axes.set(xlabel="passages at most", ylabel="exact match", ylim=(0, 1.02), xscale="log")
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})
    results = Path(__file__).parent / "results" / "overload.json"
    results.write_text(json.dumps({**result, "chosen": chosen}, indent=2) + "\n")


if __name__ == "__main__":
    main()
