"""Finds passages by words (BM25), by meaning (embeddings), or by both, merged by reciprocal rank fusion.

    rrf(p) = sum over rankings of 1 / (60 + rank of p)          (Cormack et al. 2009)
    mmr picks next argmax (1 - diversity) * relevance(p) - diversity * max similarity(p, picked)   (Carbonell 1998)

A floor keeps out passages that do not fit. A passage stays if the cosine of its embedding reaches the floor, or if its
BM25 score divided by ln(1 + number of passages) does; that divisor is about the score of one word that no other passage
has. A passage that shares only common words falls below the floor, so that nothing is found where nothing fits.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tunewise.core.errors import SettingError
from tunewise.core.extras import require
from tunewise.retrieval.passage import Hit, Passage

if TYPE_CHECKING:
    from tunewise.retrieval.embedder import Embedder

RRF = 60
POOL = 50  # passages per ranking that are merged, diversified and reranked
Scored = list[tuple[Passage, float]]  # best first


class Store(Protocol):
    """Describes what a place of passages must offer: `Passages` in memory or `tunewise.retrieval.index.Index`."""

    def count(self) -> int:
        """Return the number of passages."""

    def lexical(self, texts: Sequence[str], k: int) -> list[Scored]:
        """Return the k best passages for each text by BM25."""

    def dense(self, vectors: np.ndarray, k: int) -> list[Scored]:
        """Return the k passages whose embeddings are nearest by cosine to each of the vectors (n, size)."""


class Passages:
    """Holds passages in memory and searches them exactly; suitable for up to some ten thousand passages.

    `vectors` (n, size) are their normalised embeddings, or None.
    """

    def __init__(self, passages: Sequence[Passage], vectors: np.ndarray | None = None) -> None:
        self.passages, self.vectors = list(passages), vectors
        self._bm25: Any = None

    def count(self) -> int:
        """Return the number of passages."""
        return len(self.passages)

    def lexical(self, texts: Sequence[str], k: int) -> list[Scored]:
        """Search by BM25 as Lucene computes it, k1 = 1.5, b = 0.75; passages that share no word are left out."""
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # the library sets its logger to DEBUG
        if self._bm25 is None:
            self._bm25 = bm25s.BM25()
            self._bm25.index([words(passage.indexed) for passage in self.passages], show_progress=False)
        queries = [words(text) for text in texts]
        k = min(k, len(self.passages))
        # The default backend is JAX where that is installed, which reserves most of a GPU's memory.
        indices, scores = self._bm25.retrieve(queries, k=k, show_progress=False, backend_selection="numpy")
        return [
            [(self.passages[index], float(score)) for index, score in zip(row, row_scores, strict=True) if score > 0]
            for row, row_scores in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def dense(self, vectors: np.ndarray, k: int) -> list[Scored]:
        """Search by cosine with every passage; raises `SettingError` if there are no embeddings."""
        if self.vectors is None:
            raise SettingError("these passages have no embeddings; name an embedder")
        scores = vectors @ self.vectors.T  # (queries, size) @ (size, passages)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # (queries, k)
        return [[(self.passages[i], float(row[i])) for i in indices] for row, indices in zip(scores, best, strict=True)]


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, in order."""
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True)
class Retriever:
    """Searches a store in one way.

    Attributes:
        store: where the passages are.
        mode: "bm25", "dense" or "hybrid"; the last two need an embedder.
        embedder: turns questions into vectors.
        floor: in [0, 1]; passages below it are left out (see the module).
        diversity: in [0, 1]; how much a passage loses for being like a better one.
        reranker: the name of a cross-encoder that orders the passages found, or "".
    """

    store: Store
    mode: str = "bm25"
    embedder: Embedder | None = None
    floor: float = 0.0
    diversity: float = 0.0
    reranker: str = ""

    def find(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """Return the k best passages for each question, best first, or fewer where fewer fit.

        Raises:
            SettingError: the mode needs an embedder and there is none.
        """
        if not questions or not self.store.count():
            return [[] for _ in questions]
        pool = max(k, POOL)
        lexical = self.store.lexical(questions, pool) if self.mode != "dense" else [[] for _ in questions]
        vectors = self._embed(questions)
        dense = self.store.dense(vectors, pool) if vectors is not None else [[] for _ in questions]
        return [self._rank(*results, k) for results in zip(questions, lexical, dense, strict=True)]

    def _embed(self, questions: Sequence[str]) -> np.ndarray | None:
        """Return the vectors (n, size) of questions, or None where the mode needs none."""
        if self.mode == "bm25":
            return None
        if self.embedder is None:
            raise SettingError(f"{self.mode} retrieval needs an embedder: a sentence-transformers model id or folder")
        return self.embedder.encode_queries(list(questions))

    def _rank(self, question: str, lexical: Scored, dense: Scored, k: int) -> list[Hit]:
        """Merge the rankings of one question, apply floor, reranker and diversity, and return k hits."""
        if self.mode == "hybrid":
            hits = fused([lexical, dense])
        else:
            hits = [Hit(passage, score) for passage, score in lexical or dense]
        if self.floor:
            unit = math.log(1 + self.store.count())
            fitting = {passage.id for passage, score in lexical if score / unit >= self.floor}
            fitting |= {passage.id for passage, score in dense if score >= self.floor}
            hits = [hit for hit in hits if hit.passage.id in fitting]
        if self.reranker and hits:
            scores = self._cross_encoder.predict([(question, hit.passage.indexed) for hit in hits[:POOL]])
            hits = [replace(hit, score=float(score)) for hit, score in zip(hits, scores, strict=False)]
            hits.sort(key=lambda hit: -hit.score)
        return diverse(hits, self.diversity, k) if self.diversity else hits[:k]

    @cached_property
    def _cross_encoder(self) -> Any:
        """Return the reranker, loaded once."""
        require("a reranker", "sentence_transformers")
        from sentence_transformers import CrossEncoder

        return CrossEncoder(self.reranker, trust_remote_code=False, model_kwargs={"use_safetensors": True})


def fused(rankings: Sequence[Scored]) -> list[Hit]:
    """Merge rankings by reciprocal rank fusion."""
    scores: Counter[str] = Counter()
    passages: dict[str, Passage] = {}
    for ranking in rankings:
        for rank, (passage, _) in enumerate(ranking, 1):
            scores[passage.id] += 1 / (RRF + rank)  # type: ignore[assignment]  # a Counter of floats
            passages[passage.id] = passage
    return [Hit(passages[name], float(score)) for name, score in scores.most_common()]


def diverse(hits: Sequence[Hit], diversity: float, k: int) -> list[Hit]:
    """Pick at most k hits, each as relevant and as unlike the ones before it as possible (maximal marginal relevance).

    Relevance is the score divided by the best score, similarity the Jaccard index of the words.
    """
    best = max((hit.score for hit in hits), default=1.0) or 1.0
    bags = [set(words(hit.passage.text)) for hit in hits]
    similarity, left, picked = [0.0] * len(hits), list(range(len(hits))), list[int]()
    while left and len(picked) < k:
        chosen = max(left, key=lambda i: (1 - diversity) * hits[i].score / best - diversity * similarity[i])
        picked.append(chosen)
        left.remove(chosen)
        for i in left:
            jaccard = len(bags[i] & bags[chosen]) / max(len(bags[i] | bags[chosen]), 1)
            similarity[i] = max(similarity[i], jaccard)
    return [hits[i] for i in picked]
