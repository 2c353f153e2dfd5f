"""Greedy answers of a real model: tunewise beside `transformers`' generate, in batches, with the same weights.

    python benchmarks/generation.py MODEL DATA... --rows 64 --new-tokens 64

The prompts are a task's, as tunewise renders them. `transformers` gets them in batches of 32 in the same order of
length, padded on the left. Both stop at the same tokens; how many answers are the same to the token is printed: in
float32 all, but for ties that the order of a sum decides. The two take turns; figures are medians. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig

from tunewise.data.task import Task
from tunewise.engine.encoding import Encoder
from tunewise.engine.generation import generate
from tunewise.engine.model import Base, load_base

BATCH, THREADS = 32, 2


def library(base: Base, encoder: Encoder, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Answer with transformers' own loop; return the ids of each answer without what ended it."""
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=sorted(encoder.ends.stops), pad_token_id=0
    )
    answers: list[list[int]] = [[] for _ in prompts]
    places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(places), BATCH):
        group = places[start : start + BATCH]
        width = max(len(prompts[place]) for place in group)
        ids = torch.tensor([[0] * (width - len(prompts[place])) + prompts[place] for place in group])
        mask = torch.tensor([[0] * (width - len(prompts[p])) + [1] * len(prompts[p]) for p in group])
        output = base.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for place, row in zip(group, output[:, width:].tolist(), strict=True):
            answers[place] = row[: encoder.until_stop(row)]
    return answers


def timed(run: Any) -> tuple[Any, float, float]:
    """Return what a function returns, and its seconds of CPU and of the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return result, time.process_time() - cpu, time.perf_counter() - wall


@dataclass(frozen=True)
class Measured:
    """What both took for the same prompts; seconds are medians, `times_faster` the median of the CPU times' ratios."""

    data: str
    dtype: str
    rows: int
    prompt_tokens: int
    answer_tokens: int
    same_answers: int
    cpu_seconds: float
    wall_seconds: float
    library_cpu_seconds: float
    library_wall_seconds: float
    times_faster: float


def measure(base: Base, data: str, rows: int, new_tokens: int, repeats: int) -> Measured:
    """Let both answer the first test prompts of a task, in turn."""
    task = Task.read(data)
    encoder, examples = Encoder(base, task), list(task.test[:rows])
    prompts = [prompt.ids for prompt in encoder.prompts(examples, new_tokens)]
    ours, theirs = list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(repeats):
        generated, *seconds = timed(lambda: generate(base, encoder, examples, new_tokens))
        ours.append((seconds[0], seconds[1]))
        answers, *seconds = timed(lambda: library(base, encoder, prompts, new_tokens))
        theirs.append((seconds[0], seconds[1]))
    return Measured(
        data=Path(data).name,
        dtype=str(base.model.dtype).removeprefix("torch."),
        rows=len(prompts),
        prompt_tokens=sum(map(len, prompts)),
        answer_tokens=sum(generated.tokens),
        same_answers=sum(encoder.decode(answer) == text for answer, text in zip(answers, generated.texts, strict=True)),
        cpu_seconds=statistics.median(cpu for cpu, _ in ours),
        wall_seconds=statistics.median(wall for _, wall in ours),
        library_cpu_seconds=statistics.median(cpu for cpu, _ in theirs),
        library_wall_seconds=statistics.median(wall for _, wall in theirs),
        times_faster=statistics.median(their[0] / our[0] for our, their in zip(ours, theirs, strict=True)),
    )


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "generation.json")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    results = list[Measured]()
    for dtype in options.dtypes:
        base = load_base(options.model, dtype=dtype, device="cpu")
        results += [measure(base, data, options.rows, options.new_tokens, options.repeats) for data in options.data]
    table = Table(
        "task", "dtype", "prompt tokens", "answer tokens", "CPU s", "transformers' CPU s", "x", "same answers"
    )
    for row in results:
        numbers = (row.cpu_seconds, row.library_cpu_seconds, row.times_faster)
        counts = (str(row.prompt_tokens), str(row.answer_tokens))
        same = f"{row.same_answers} of {row.rows}"
        table.add_row(row.data, row.dtype, *counts, *(f"{number:.2f}" for number in numbers), same)
    Console(width=120).print(table)
    written = {"model": Path(options.model).name, "results": [asdict(row) for row in results]}
    options.out.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
