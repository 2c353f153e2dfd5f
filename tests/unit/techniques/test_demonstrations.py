"""Choosing and ordering worked examples."""

import itertools

import numpy as np
import pytest

from tunewise.data.task import Example, Message
from tunewise.techniques.building import demonstrations as chosen

TEXTS = ["a red door", "a red door too", "a deep river", "cheap bread", "a door and a river"]


def test_nearest_by_words_and_the_rest_after_them():
    choose = chosen.by_words(TEXTS)
    assert choose("red door", 2) == [0, 1] and set(choose("red door", 5)) == set(range(5))


def test_diverse_by_words():
    assert chosen.by_words(TEXTS, 0.9)("red door", 2)[1] != 1


def test_labels_in_turn():
    assert chosen.balanced(["a", "a", "b", "a", "c"]) == [0, 2, 4, 1, 3]


def test_nearest_by_embedding():
    vectors, embed = chosen.tfidf(TEXTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert chosen.by_embedding(vectors, embed)("cheap bread", 1) == [3]


def test_the_greedy_mode_of_the_point_process_is_greedy_in_determinants():
    """Each pick has the largest determinant of the kernel with those before it, computed the long way."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(12, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    question = vectors[:1] * 0.6 + 0.1
    picked = chosen.by_volume(vectors, lambda texts: question)("q", 5)
    quality = np.exp(vectors @ question[0])
    kernel = quality[:, None] * (vectors @ vectors.T) * quality[None]
    for count in range(1, 6):
        sets = [[*picked[: count - 1], other] for other in range(12) if other not in picked[: count - 1]]
        best = max(sets, key=lambda rows: np.linalg.det(kernel[np.ix_(rows, rows)]))
        assert best == picked[:count]


def test_more_than_there_are_dimensions():
    vectors = np.eye(3)[[0, 0, 1, 1, 2]]
    found = chosen.by_volume(vectors, lambda texts: np.ones((1, 3)) / 3**0.5)("q", 5)
    assert sorted(found) == list(range(5)) and len({tuple(vectors[i]) for i in found[:3]}) == 3


@pytest.mark.parametrize("order", ["nearest_last", "nearest_first", "interleaved"])
def test_orders_are_permutations(order):
    pool = [Example((Message("user", str(n)),), label) for n, label in enumerate("aabba")]
    shown = chosen.arranged(pool, order)
    assert sorted(e.prompt for e in shown) == [e.prompt for e in pool]
    if order == "nearest_last":
        assert shown[-1] is pool[0]
    if order == "interleaved":
        assert all(a.answer != b.answer for a, b in itertools.pairwise(shown[1:]))
        assert shown[-1] is pool[0]
