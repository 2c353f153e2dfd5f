"""Finds passages: by words (BM25), by meaning (embeddings), or by both, merged by reciprocal rank.

    rrf(p) = sum over rankings of 1 / (60 + rank of p)          (Cormack et al. 2009)
    mmr picks next argmax (1 - diversity) * relevance(p) - diversity * max similarity(p, picked)   (Carbonell 1998)

A floor keeps out what does not fit: a passage stays if its embedding's cosine reaches the floor, or if its BM25 score
does in units of ln(1 + passages), about what one word that no other passage has is worth. What shares common words
only falls below it, so that nothing is found where nothing fits.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tunewise.core.errors import SettingError
from tunewise.retrieval.passage import Hit, Passage

if TYPE_CHECKING:
    from tunewise.retrieval.embedder import Embedder

RRF = 60
POOL = 50  # passages of each ranking that are merged, diversified and reranked
Found = list[tuple[Passage, float]]


class Store(Protocol):
    """Where passages are: in memory (`Passages`) or in an index (`tunewise.retrieval.index`)."""

    def count(self) -> int:
        """The number of passages."""

    def lexical(self, texts: Sequence[str], k: int) -> list[Found]:
        """The k best passages of each text by BM25."""

    def dense(self, vectors: np.ndarray, k: int) -> list[Found]:
        """The k passages whose embeddings are nearest to each vector (n, size), by cosine."""


class Passages:
    """Passages in memory, searched exactly; right up to some ten thousand of them.

    `vectors` (n, size) are their normalised embeddings, None where there are none.
    """

    def __init__(self, passages: Sequence[Passage], vectors: np.ndarray | None = None) -> None:
        self.passages, self.vectors = list(passages), vectors
        self._bm25: Any = None

    def count(self) -> int:
        """The number of passages."""
        return len(self.passages)

    def lexical(self, texts: Sequence[str], k: int) -> list[Found]:
        """By BM25 as Lucene computes it, k1 = 1.5, b = 0.75; passages that share no word are left out."""
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to debug
        if self._bm25 is None:
            self._bm25 = bm25s.BM25()
            self._bm25.index([words(passage.indexed) for passage in self.passages], show_progress=False)
        asked = [words(text) for text in texts]
        # Left to itself it takes JAX where that is installed, which takes most of a GPU's memory for itself.
        k = min(k, len(self.passages))
        places, scores = self._bm25.retrieve(asked, k=k, show_progress=False, backend_selection="numpy")
        return [
            [(self.passages[place], float(score)) for place, score in zip(row, own, strict=True) if score > 0]
            for row, own in zip(places.tolist(), scores.tolist(), strict=True)
        ]

    def dense(self, vectors: np.ndarray, k: int) -> list[Found]:
        """By cosine with every passage."""
        if self.vectors is None:
            raise SettingError("these passages have no embeddings; name an embedder")
        scores = vectors @ self.vectors.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [[(self.passages[i], float(row[i])) for i in own] for row, own in zip(scores, best, strict=True)]


def words(text: str) -> list[str]:
    """Lower-case words, in order."""
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True)
class Retriever:
    """A way to search a store: `mode` is "bm25", "dense" or "hybrid"; the last two need an embedder.

    `floor` and `diversity` are in [0, 1]; a `reranker` is a cross-encoder's name, whose order replaces the others'.
    """

    store: Store
    mode: str = "bm25"
    embedder: Embedder | None = None
    floor: float = 0.0
    diversity: float = 0.0
    reranker: str = ""
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def find(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The best k passages of each question, best first; fewer where fewer fit.

        Raises:
            SettingError: the mode needs an embedder and there is none.
        """
        if not questions or not self.store.count():
            return [[] for _ in questions]
        pool = max(k, POOL)
        lexical = self.store.lexical(questions, pool) if self.mode != "dense" else [[] for _ in questions]
        vectors = self._embedded(questions)
        dense = self.store.dense(vectors, pool) if vectors is not None else [[] for _ in questions]
        return [self._ranked(*given, k) for given in zip(questions, lexical, dense, strict=True)]

    def _embedded(self, questions: Sequence[str]) -> np.ndarray | None:
        if self.mode == "bm25":
            return None
        if self.embedder is None:
            raise SettingError(f"{self.mode} retrieval needs an embedder: a sentence-transformers model id or folder")
        return self.embedder.encode_queries(list(questions))

    def _ranked(self, question: str, lexical: Found, dense: Found, k: int) -> list[Hit]:
        if self.mode == "hybrid":
            found = fused([lexical, dense])
        else:
            found = [Hit(passage, score) for passage, score in lexical or dense]
        if self.floor:
            unit = math.log(1 + self.store.count())
            fits = {passage.id for passage, score in lexical if score / unit >= self.floor}
            fits |= {passage.id for passage, score in dense if score >= self.floor}
            found = [hit for hit in found if hit.passage.id in fits]
        if self.reranker and found:
            scores = self._cross_encoder().predict([(question, hit.passage.indexed) for hit in found[:POOL]])
            found = [replace(hit, score=float(score)) for hit, score in zip(found, scores, strict=False)]
            found.sort(key=lambda hit: -hit.score)
        return diverse(found, self.diversity, k) if self.diversity else found[:k]

    def _cross_encoder(self) -> Any:
        if "cross" not in self._loaded:
            try:
                from sentence_transformers import CrossEncoder
            except ImportError as error:
                raise SettingError("a reranker needs sentence-transformers: pip install tunewise[rag]") from error
            self._loaded["cross"] = CrossEncoder(
                self.reranker, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        return self._loaded["cross"]


def fused(rankings: Sequence[Found]) -> list[Hit]:
    """Reciprocal rank fusion."""
    scores: Counter[str] = Counter()
    passages: dict[str, Passage] = {}
    for ranking in rankings:
        for rank, (passage, _) in enumerate(ranking, 1):
            scores[passage.id] += 1 / (RRF + rank)  # type: ignore[assignment]  # a counter of shares
            passages[passage.id] = passage
    return [Hit(passages[name], float(score)) for name, score in scores.most_common()]


def diverse(hits: Sequence[Hit], diversity: float, k: int) -> list[Hit]:
    """At most k of the hits, each as good as may be and as unlike those before it (maximal marginal relevance).

    Relevance is the score over the best one's, similarity the share of words in common (Jaccard).
    """
    best = max((hit.score for hit in hits), default=1.0) or 1.0
    held = [set(words(hit.passage.text)) for hit in hits]
    alike, left, picked = [0.0] * len(hits), list(range(len(hits))), list[int]()
    while left and len(picked) < k:
        chosen = max(left, key=lambda i: (1 - diversity) * hits[i].score / best - diversity * alike[i])
        picked.append(chosen)
        left.remove(chosen)
        for i in left:
            alike[i] = max(alike[i], len(held[i] & held[chosen]) / max(len(held[i] | held[chosen]), 1))
    return [hits[i] for i in picked]
