"""Measures the index on disk at growing sizes: building, bytes, memory, time of a search, and what it misses.

    python benchmarks/retrieval.py [--sizes 10000 100000 1000000]

Vectors of 384 numbers lie around 1000 centres: a centre of length 1 plus noise of length 0.7, normalised. Questions are
drawn in the same way. A passage carries 12 words, ten passages make a document. Each size is built in one process and
searched in a fresh one that is held to one core: 1000 questions for the ten nearest, one by one, after 200 others, and
then the same 1000 again.

- build s: writing all passages, each batch of 10,000 acknowledged, and building the graph, on all cores
- disk MB: bytes that the folder takes
- memory MB: resident after all questions; of it, what is mapped from files and can be dropped when memory is short
- first p50: of the first time, when the system fetches the embeddings that a question is compared with from the disk
- p50, p95: of the second time, when they are in memory
- recall: of the ten nearest by exact search, the share that was found
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from tunewise.retrieval import engines
from tunewise.retrieval import index as indexes
from tunewise.retrieval.index import Index
from tunewise.retrieval.passage import Passage

SIZE, CENTRES, NOISE, BLOCK = 384, 1000, 0.7, 10_000
QUESTIONS, WARM_UP, NEAREST, WORDS = 1000, 200, 10, 12
COLUMNS = ["passages", "build s", "disk MB", "memory MB", "files MB", "open s", "first p50 ms", "p50 ms", "p95 ms"]


def drawn(count: int, *seed: int) -> np.ndarray:
    """So many vectors around the centres."""
    centres = np.random.default_rng(0).normal(size=(CENTRES, SIZE)) / SIZE**0.5
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, SIZE)) * (NOISE / SIZE**0.5)
    vectors = (centres[rng.integers(0, CENTRES, count)] + noise).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def blocks(size: int) -> Iterator[tuple[int, np.ndarray]]:
    """All vectors, a block at a time, with the number of its first."""
    for start in range(0, size, BLOCK):
        yield start, drawn(min(BLOCK, size - start), 1, start)


def build(folder: Path, size: int) -> dict[str, float]:
    """Write the index; seconds and bytes."""
    rng, seconds = np.random.default_rng(2), 0.0
    with Index.create(folder, "drawn", "drawn", SIZE) as index:
        for start, vectors in blocks(size):
            words = (rng.zipf(1.2, (len(vectors), WORDS)) % 50_000).tolist()
            passages = [
                Passage(
                    f"{(start + n) // 10}.md", start + n, start + n + 1, " ".join(f"word{word}" for word in numbers)
                )
                for n, numbers in enumerate(words)
            ]
            started = time.perf_counter()
            index.add(passages, vectors, {passage.document: "1" for passage in passages})
            seconds += time.perf_counter() - started
        written, started = seconds, time.perf_counter()
        index.optimize()
        seconds += time.perf_counter() - started
    disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    return {"build_seconds": seconds, "of_it_writing": written, "disk_bytes": disk}


def search(folder: Path, size: int) -> dict[str, float]:
    """Open the index, search it question by question, then by brute force."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    questions = drawn(WARM_UP + QUESTIONS, 3)
    started = time.perf_counter()
    with Index.open(folder) as index:
        open_seconds = time.perf_counter() - started
        time_questions(index, questions[:WARM_UP])
        first, _ = time_questions(index, questions[WARM_UP:])
        times, answers = time_questions(index, questions[WARM_UP:])
        memory = psutil.Process().memory_info()
    p50, p95 = np.percentile(times, [50, 95]).tolist()
    nearest = exact(questions[WARM_UP:], size).tolist()
    recalls = [len(answer & set(true)) / NEAREST for answer, true in zip(answers, nearest, strict=True)]
    return {
        "open_seconds": open_seconds,
        "first_p50_ms": float(np.median(first)),
        "p50_ms": p50,
        "p95_ms": p95,
        "recall": float(np.mean(recalls)),
        "resident_bytes": memory.rss,
        "of_it_files": memory.shared,
    }


def time_questions(index: Index, questions: np.ndarray) -> tuple[list[float], list[set[int]]]:
    """Milliseconds of each question, and the numbers of the passages found."""
    times, answers = [], []
    for question in questions:
        started = time.perf_counter()
        hits = index.dense(question[None], NEAREST)[0]
        times.append(1000 * (time.perf_counter() - started))
        answers.append({passage.start for passage, _ in hits})
    return times, answers


def exact(questions: np.ndarray, size: int) -> np.ndarray:
    """The numbers of the nearest vectors, block by block."""
    scores = np.full((len(questions), NEAREST), -np.inf, dtype=np.float32)
    numbers = np.zeros((len(questions), NEAREST), dtype=np.int64)
    for start, vectors in blocks(size):
        all_scores = np.hstack([scores, questions @ vectors.T])
        candidates = np.hstack(
            [numbers, np.broadcast_to(np.arange(start, start + len(vectors)), all_scores[:, NEAREST:].shape)]
        )
        best = np.argpartition(-all_scores, NEAREST - 1, axis=1)[:, :NEAREST]
        scores, numbers = np.take_along_axis(all_scores, best, axis=1), np.take_along_axis(candidates, best, axis=1)
    return numbers


def measured(size: int, scratch: Path | None) -> dict[str, Any]:
    """One size: a process that builds, a process that searches."""
    figures: dict[str, Any] = {"passages": size}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for stage in ("build", "search"):
            command = [sys.executable, __file__, "--stage", stage, "--folder", f"{folder}/index", "--sizes", str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures |= json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure; default: that of the system")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "retrieval.json")
    parser.add_argument("--stage", choices=["build", "search"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps({"build": build, "search": search}[options.stage](options.folder, options.sizes[0])))
        return
    graph = {"m": engines.M, "ef_construct": engines.EF_CONSTRUCT, "ef": indexes.EF}
    result = {"settings": graph | {"oversampling": indexes.OVERSAMPLING}, "cores": os.cpu_count()}
    result["sizes"] = [measured(size, options.scratch) for size in options.sizes]
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(*COLUMNS, "recall@10", title="the index on disk")
    for row in result["sizes"]:
        megabytes = [f"{row[key] / 1e6:.0f}" for key in ("disk_bytes", "resident_bytes", "of_it_files")]
        clocks = [f"{row[key]:.2f}" for key in ("open_seconds", "first_p50_ms", "p50_ms", "p95_ms")]
        cells = [f"{row['passages']:,}", f"{row['build_seconds']:.0f}", *megabytes, *clocks]
        table.add_row(*cells, f"{row['recall']:.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
