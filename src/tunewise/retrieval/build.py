"""Builds, updates and searches an index by name; this is what `tunewise index` and `tunewise search` call."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from tunewise.core.progress import Progress
from tunewise.retrieval import chunks
from tunewise.retrieval.embedder import loaded
from tunewise.retrieval.index import FACTS, Index, sync
from tunewise.retrieval.passage import Hit
from tunewise.retrieval.search import Retriever
from tunewise.retrieval.sources import gather


class BuiltIndex(TypedDict):
    """What an index holds after it was built or updated.

    `documents` counts the documents "added", "removed" and "unchanged". `skipped` are pairs of a file and the reason
    why it was not read.
    """

    index: str
    documents: dict[str, int]
    passages: int
    skipped: list[list[str]]


def build(
    source: str, place: str, embedder_name: str, dtype: str, chunk_size: int, chunk_overlap: int, report: Progress
) -> BuiltIndex:
    """Make the index at `place` hold exactly the documents of `source`, and return counts of what was done.

    Args:
        source: a folder, a file, or `world:TASK`.
        place: a folder, or `qdrant://host:port/collection`.
        embedder_name: a sentence-transformers folder or Hub id; its tokens measure the passages.
        dtype: the type that the embedder computes in.
        chunk_size: tokens per passage.
        chunk_overlap: tokens that a passage repeats from the one before.
        report: receives progress.

    Raises:
        RequestError: the documents, the embedder or the index cannot be used, or it was built in another way.
    """
    reading, embedder = gather(source), loaded(embedder_name, dtype)
    settings = {"size": chunk_size, "overlap": chunk_overlap}
    exists = place.startswith("qdrant://") or (Path(place) / FACTS).is_file()
    index = (
        Index.open(place, embedder.fingerprint, settings)
        if exists
        else Index.create(place, embedder.name, embedder.fingerprint, embedder.size, settings)
    )
    with index:
        counts = sync(
            index,
            reading.documents,
            lambda document: chunks.split(document, embedder.tokenizer, chunk_size, chunk_overlap),
            embedder,
            report,
        )
        passages = index.count()
    return {
        "index": place,
        "documents": {name: counts[name] for name in ("added", "removed", "unchanged")},
        "passages": passages,
        "skipped": [list(pair) for pair in reading.skipped],
    }


def find(place: str, question: str, k: int, mode: str, floor: float, embedder_name: str | None = None) -> list[Hit]:
    """Return the k passages of an index that fit a question best, best first.

    Raises:
        RequestError: there is no index, or its embedder is needed and is not the one that is given.
    """
    with Index.open(place) as index:
        embedder = None
        if mode != "bm25":
            if not embedder_name:
                raise index.needs_embedder("--mode bm25")
            embedder = loaded(embedder_name)
            index.check_embedder(embedder.fingerprint)
        return Retriever(index, mode, embedder, floor).find([question], k)[0]
