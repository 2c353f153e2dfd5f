"""Times classification by the likelihood of each label: CPU seconds a prompt at 2, 6, 20 and 77 labels.

    python benchmarks/labels.py MODEL [--as NAME] [--prompts 12] [--repeats 3] [--steps 30]

The task is a bank's customers' questions (`bank_questions.py`), with and without the list of labels in the prompt; the
model is scored as it is and after a few steps of LoRA. Preparing is rendering and tokenizing, without any forward pass.
One thread. What is measured is written under NAME beside what the file holds under other names, so that two versions
of the code can be compared.
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
from bank_questions import bank_task
from rich.console import Console
from rich.table import Table

from tunewise.contract.attachment import Attachment
from tunewise.data.task import Example, Task
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base, load_base
from tunewise.fitting import scoring
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach

COUNTS = (2, 6, 20, 77)
Row = dict[str, Any]


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median over repeats, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:])


def prepare(attachment: Attachment, task: Task, examples: tuple[Example, ...]) -> None:
    """Render prompts and tokenize them and the labels that follow them."""
    rendered = [attachment.render(example) for example in examples]
    attachment.base.label_tokens.prompts(scoring.encoder_for(attachment, task), rendered)


def measured(attachment: Attachment, task: Task, examples: tuple[Example, ...], repeats: int) -> Row:
    """Score a task's examples; figures are for each prompt."""
    preparing = cpu_seconds(lambda: prepare(attachment, task, examples), repeats)
    seconds = cpu_seconds(lambda: scoring.score(attachment, task, examples), repeats)
    scores = scoring.score(attachment, task, examples)
    encoder = scoring.encoder_for(attachment, task)
    answers = encoder.answers(examples[0], task.labels)
    nodes = {tuple(ids[:size]) for ids in answers for size in range(1, len(ids))}
    return {
        "labels": len(task.labels),
        "list": task.label_list,
        "cpu_seconds": seconds / len(examples),
        "preparing_seconds": preparing / len(examples),
        "prompt_tokens": scores.prompt_tokens,
        "label_tokens": sum(map(len, answers)) - len(answers),
        "label_tokens_shared": len(nodes),
        "accuracy": scores.mean,
        "nll": scores.nll,
    }


def rows(base: Base, options: argparse.Namespace) -> list[Row]:
    """Measure all numbers of labels, with and without their list, before and after training."""
    why_not_packed(base)
    found = list[Row]()
    for label_list in (False, True):
        for count in COUNTS:
            task = bank_task(count, label_list=label_list)
            rows_of_both = task.test + task.validation + task.train
            examples = rows_of_both[: options.prompts]
            for name in ("base", "lora"):
                attachment = attach(make(name), base, task)
                if attachment.recipe.trains:
                    settings = TrainSettings(max_steps=options.steps, per_device_train_batch_size=16)
                    train(attachment, scoring.encoder_for(attachment, task).encode(task.train), settings)
                found.append({"technique": name, **measured(attachment, task, examples, options.repeats)})
                print(json.dumps(found[-1]), flush=True)
                attachment.detach()
    return found


def show(runs: dict[str, list[Row]]) -> None:
    """Print CPU milliseconds a prompt of every run."""
    table = Table("technique", "list", "labels", *(f"{name}: ms (preparing)" for name in runs))
    for place, row in enumerate(next(iter(runs.values()))):
        cells = [run[place] for run in runs.values()]
        figures = [f"{1e3 * cell['cpu_seconds']:.0f} ({1e3 * cell['preparing_seconds']:.1f})" for cell in cells]
        table.add_row(row["technique"], "yes" if row["list"] else "no", str(row["labels"]), *figures)
    Console(width=100).print(table)


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--as", dest="name", default="now")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "labels.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {"runs": {}}
    result |= {"model": Path(options.model).name, "torch": torch.__version__, "prompts": options.prompts}
    result["runs"][options.name] = rows(load_base(options.model), options)
    show(result["runs"])
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
