"""Retrieval over a store: rankings, their fusion, floors, diversity."""

import numpy as np
import pytest

from tunewise.core.errors import SettingError
from tunewise.retrieval.passage import Hit, Passage
from tunewise.retrieval.search import RRF, Passages, Retriever, diverse, fused

TEXTS = (
    "the baker of Aldwick has a green door",
    "the smith of Aldwick has a red door",
    "the river near Borrin is deep",
    "bread costs four pence in Borrin",
)


def passages(texts=TEXTS):
    return [Passage(f"doc{n}", 0, len(text), text) for n, text in enumerate(texts)]


class OneHot:
    """Embeds a text as the first of four words that it holds."""

    def encode_queries(self, texts):
        rows = [[float(word in text) for word in ("baker", "smith", "river", "bread")] for text in texts]
        return np.asarray(rows, dtype=np.float32)


def names(hits):
    return [hit.passage.document for hit in hits]


def test_words_find_the_passage():
    hits = Retriever(Passages(passages())).find(["what colour is the smith's door", "price of bread"], 2)
    assert names(hits[0])[0] == "doc1" and names(hits[1])[0] == "doc3"


def test_nothing_is_found_where_nothing_fits():
    many = Passages(passages((*TEXTS, *(f"the page of a thing that has number {n}" for n in range(60)))))
    assert Retriever(many).find(["the quantum flux of a neutrino"], 3)[0]
    floored = Retriever(many, floor=0.15)
    assert floored.find(["the quantum flux of a neutrino"], 3)[0] == []
    assert names(floored.find(["tell me all that there is to know about the river, please"], 3)[0]) == ["doc2"]
    assert Retriever(Passages([])).find(["anything"], 3) == [[]]
    assert Retriever(many).find(["zzz"], 3) == [[]]


def test_embeddings_find_it_and_hybrid_takes_both():
    store = Passages(passages(), np.eye(4, dtype=np.float32))
    dense = Retriever(store, "dense", OneHot()).find(["who is the smith"], 1)
    assert names(dense[0]) == ["doc1"]
    both = Retriever(store, "hybrid", OneHot()).find(["bread in Borrin"], 4)[0]
    assert names(both)[0] == "doc3" and len(both) == 4
    with pytest.raises(SettingError, match="needs an embedder"):
        Retriever(store, "dense").find(["x"], 1)
    with pytest.raises(SettingError, match="no embeddings"):
        Passages(passages()).dense(np.eye(4), 1)


def test_reciprocal_ranks_add_up():
    a, b, c, _ = passages()
    hits = fused([[(a, 9.0), (b, 1.0)], [(b, 0.5), (c, 0.4)]])
    assert names(hits) == ["doc1", "doc0", "doc2"]
    assert hits[0].score == pytest.approx(1 / (RRF + 2) + 1 / (RRF + 1))


def test_diversity_passes_over_what_repeats():
    twice = passages(("red door of the smith", "red door of the smith again", "river"))
    hits = [Hit(passage, score) for passage, score in zip(twice, (1.0, 0.9, 0.5), strict=True)]
    assert names(diverse(hits, 0.0, 2)) == ["doc0", "doc1"]
    assert names(diverse(hits, 0.7, 2)) == ["doc0", "doc2"]
