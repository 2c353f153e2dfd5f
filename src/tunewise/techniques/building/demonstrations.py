"""Provides ways to choose worked examples for a question, and to order them.

A chooser maps a question to places in a pool of examples, best first. Some choose anew for each question, others show
every question the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from tunewise.data.task import Example
from tunewise.retrieval.passage import Hit, Passage
from tunewise.retrieval.search import Passages, diverse

Chooser = Callable[[str, int], list[int]]
Embed = Callable[[Sequence[str]], np.ndarray]  # texts to normalised rows (n, size)
_NEAR = 64  # nearest examples among which the diverse choosers choose
_DIVERSITY = 0.5


def same(order: Sequence[int]) -> Chooser:
    """Return a chooser that gives the same examples for every question."""
    return lambda question, count: list(order[:count])


def balanced(labels: Sequence[str]) -> list[int]:
    """Return the places of all examples, one of each label in turn, in their order."""
    by_label: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        by_label.setdefault(label, []).append(place)
    rounds = itertools.zip_longest(*by_label.values())
    return [place for turn in rounds for place in turn if place is not None]


def by_words(texts: Sequence[str], diversity: float = 0.0) -> Chooser:
    """Choose the nearest by BM25 (Liu et al. 2022); with diversity, by maximal marginal relevance among the nearest."""
    pool = Passages([Passage(str(place), 0, len(text), text) for place, text in enumerate(texts)])

    def choose(question: str, count: int) -> list[int]:
        scored = pool.lexical([question], max(count, _NEAR) if diversity else count)[0]
        hits = [Hit(passage, score) for passage, score in scored]
        hits = diverse(hits, diversity, count) if diversity else hits[:count]
        nearest = [int(hit.passage.document) for hit in hits]
        others = (
            place for place in range(len(texts)) if place not in set(nearest)
        )  # those that share no word come last
        return [*nearest, *itertools.islice(others, max(count - len(nearest), 0))]

    return choose


def by_embedding(vectors: np.ndarray, embed: Embed) -> Chooser:
    """Choose the nearest by the cosine of embeddings."""

    def choose(question: str, count: int) -> list[int]:
        order = np.argsort(-(vectors @ embed([question])[0]), kind="stable")
        return [int(place) for place in order[:count]]

    return choose


def by_volume(vectors: np.ndarray, embed: Embed) -> Chooser:
    """Choose near and diverse ones: the greedy mode of a determinantal point process (Ye et al. 2023, CEIL).

    Kernel exp(cos(q, i)) cos(i, j) exp(cos(q, j)); each step adds the example that enlarges its determinant most, by
    incremental Cholesky factors (Chen et al. 2018, algorithm 1).
    """

    def choose(question: str, count: int) -> list[int]:
        similarity = vectors @ embed([question])[0]
        places = np.argsort(-similarity, kind="stable")[: max(count, _NEAR)]
        quality = np.exp(similarity[places])
        kernel = quality[:, None] * (vectors[places] @ vectors[places].T) * quality[None]
        gains, factors = np.diag(kernel).copy(), np.zeros((0, len(places)))
        picked: list[int] = []
        while len(picked) < min(count, len(places)):
            best = int(np.argmax(gains))
            if gains[best] <= 1e-10:  # the others lie in the span of what is picked
                picked += [i for i in range(len(places)) if i not in picked][: count - len(picked)]
                break
            row = (kernel[best] - factors[:, best] @ factors) / np.sqrt(gains[best])
            factors, gains = np.vstack([factors, row]), gains - row**2
            picked.append(best)
            gains[picked] = -np.inf
        return [int(places[i]) for i in picked]

    return choose


def tfidf(texts: Sequence[str]) -> tuple[np.ndarray, Embed]:
    """Return TF-IDF embeddings of texts, and the function that makes them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+").fit(texts)
    embed: Embed = lambda queries: vectorizer.transform(queries).toarray()  # noqa: E731
    return embed(texts), embed


def arranged(chosen: Sequence[Example], order: str) -> list[Example]:
    """Order examples, given best first, as they are shown.

    "nearest_last", "nearest_first", or "interleaved": labels in turn, each label's best last.
    """
    if order == "nearest_first":
        return list(chosen)
    if order == "interleaved":
        order_by_label = balanced([example.answer for example in chosen])
        return [chosen[place] for place in order_by_label][::-1]
    return list(chosen)[::-1]
