"""When a comparison that follows advice goes on and when it stops."""

import doctest

import numpy as np
import pytest

from tunewise.advice import stopping
from tunewise.advice.gains import Belief
from tunewise.advice.stopping import Seen, likely_moves, move

NAMES = ("a", "b", "c", "d", "e", "f")
COSTS = dict.fromkeys(NAMES, 1.0)


def belief(means=(0.9, 0.8, 0.6, 0.4, 0.3, 0.2), deviation=0.25, together=0.4):
    shared = together * np.ones((6, 6)) + (1 - together) * np.eye(6)
    return Belief(NAMES, np.array(means), deviation**2 * shared)


def seen(mean, half=0.05):
    return Seen(mean, mean - half, mean + half)


def test_the_most_promising_is_first_and_cost_counts():
    start = {"base": seen(0.2)}
    assert move(belief(), COSTS, start, NAMES).next == "a"
    assert move(belief(), {**COSTS, "a": 10.0}, start, NAMES).next == "b"


def test_nothing_beats_a_leader_at_the_ceiling():
    step = move(belief(), COSTS, {"base": seen(0.2), "a": Seen(1.0, 0.97, 1.0)}, NAMES[1:])
    assert step.next is None and step.chance == 0.0


def test_it_goes_on_while_others_may_be_better():
    step = move(belief(), COSTS, {"base": seen(0.2), "f": seen(0.3)}, NAMES[:5])
    assert step.next == "a" and step.chance > 0.5
    assert step.chances["a"] > step.chances["e"]


def test_a_surprise_makes_the_rest_less_certain():
    """The favourite is no better than the base: others may still be."""
    step = move(belief(together=0.1), COSTS, {"base": seen(0.2), "a": seen(0.15)}, NAMES[1:])
    assert step.next is not None and step.chance > 0.2


def test_those_that_surprise_alike_are_believed_alike():
    start = {"base": seen(0.2, 0.02), "a": seen(0.6, 0.02)}
    good = move(belief(together=0.9), COSTS, {**start, "c": seen(0.58, 0.02)}, ("b",)).chance
    poor = move(belief(together=0.9), COSTS, {**start, "c": seen(0.25, 0.02)}, ("b",)).chance
    assert good > poor


def test_nothing_left_is_the_end():
    assert move(belief(), COSTS, {"base": seen(0.2)}, ()).next is None


def test_it_is_the_same_each_time():
    start = {"base": seen(0.2), "b": seen(0.4)}
    assert move(belief(), COSTS, start, ("a", "c")) == move(belief(), COSTS, start, ("a", "c"))


@pytest.mark.parametrize("half", [0.02, 0.06])
def test_leaders_that_it_stops_at_are_rarely_beaten(half):
    """Tasks drawn from the belief itself: at most about 5 in 100 have a technique left that beats the leader."""
    random, prior, missed, spent = np.random.default_rng(1), belief(), 0, 0
    for _ in range(60):
        gains = np.minimum(random.multivariate_normal(prior.mean, prior.covariance), 1.0)
        base, reach = 0.2, random.uniform(0.2, 0.8)
        truth = dict(zip(NAMES, base + reach * gains / max(gains.max(), 0.1), strict=True))
        rows = {"base": seen(base, half)}
        while (step := move(prior, COSTS, rows, [n for n in NAMES if n not in rows])).next is not None:
            rows[step.next] = seen(truth[step.next] + random.normal() * half / 1.96, half)
        leader = max(rows, key=lambda name: rows[name].mean)
        missed += any(truth[name] > rows[leader].mean + half for name in NAMES if name not in rows)
        spent += len(rows) - 1
    assert missed <= 6
    assert spent < 60 * 5


def test_the_example_of_the_module_is_what_the_code_does():
    results = doctest.testmod(stopping)
    assert results.attempted == 3 and results.failed == 0


def test_what_is_likely_next_is_what_comes_next_if_scores_are_as_expected():
    start = {"base": seen(0.2)}
    likely = likely_moves(belief(), COSTS, start, "a", NAMES[1:], 2)
    assert likely == ["b", "c"], "the means say so"
    assert likely_moves(belief(), {**COSTS, "b": 50.0}, start, "a", NAMES[1:], 1) == ["c"], "and the costs"
    assert likely_moves(belief(), COSTS, start, "a", [], 3) == []


def test_nothing_is_likely_behind_a_row_that_is_expected_to_settle_it():
    sure = belief(means=(0.99, 0.1, 0.1, 0.1, 0.1, 0.1), deviation=0.01)
    assert likely_moves(sure, COSTS, {"base": seen(0.2, 0.02), "b": seen(0.9, 0.02)}, "a", NAMES[2:], 3) == []
