"""Intervals, ties and ranks against simulated comparisons whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from tiers import in_full
from tunewise.results.statistics import against, holm, interval, needed_examples, p_value, ranks, seed_variance, spread

TRIALS = 1000


def simulated(rng, mean, seeds, examples, of_seeds=0.03, difficulty=None):
    """Right and wrong answers (seeds, examples): some questions are harder for everyone, some seeds luckier."""
    difficulty = rng.normal(size=examples) if difficulty is None else difficulty
    luck = rng.normal(0, of_seeds, size=(seeds, 1))
    chance = np.clip(mean + luck + 0.1 * difficulty, 0, 1)
    return (rng.random((seeds, examples)) < chance).astype(float)


PARTS = ("mean", "seeds", "examples", "of_seeds")
CASES = [(0.7, 3, 200, 0.03), (0.7, 3, 500, 0.06), (0.5, 5, 200, 0.05), (0.6, 2, 200, 0.02), (0.6, 2, 500, 0.06)]


def covered(cases, others):
    """How often the interval holds the truth; `others` techniques are beside it."""
    mean, seeds, examples, of_seeds = cases
    rng, held = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        tables = {str(i): simulated(rng, mean, seeds, examples, of_seeds) for i in range(1 + others)}
        low, high = interval(tables["0"], seed_variance(tables))
        held += low <= mean <= high
    return held / TRIALS


@pytest.mark.parametrize(PARTS, [CASES[0], *in_full(*CASES[1:], (0.7, 3, 500, 0.0))])
def test_intervals_hold_the_truth_in_95_of_100(mean, seeds, examples, of_seeds):
    """In a comparison of eight techniques."""
    assert 0.93 <= covered((mean, seeds, examples, of_seeds), 7) <= 0.985


@pytest.mark.parametrize(PARTS, [CASES[0], *in_full(*CASES[1:], (0.7, 1, 200, 0.0))])
def test_alone_they_are_never_too_short(mean, seeds, examples, of_seeds):
    assert covered((mean, seeds, examples, of_seeds), 0) >= 0.93


def test_a_technique_that_depends_on_its_seed_lends_nothing_to_one_that_does_not():
    rng = np.random.default_rng(9)
    steady = {name: np.ones((2, 200)) for name in ("a", "b", "c")}
    shaky = {"d": np.repeat([[0.5], [0.9]], 200, axis=1), "e": simulated(rng, 0.7, 2, 200, 0.0)}
    low, _ = interval(steady["a"], seed_variance({**steady, **shaky}))
    assert low > 0.9


def test_what_never_leaves_the_base_does_not_set_what_is_usual():
    """Three techniques that answer as the base does, whatever the seed, among ten that do not."""
    rng, told = np.random.default_rng(0), 0
    for _ in range(50):
        difficulty = rng.normal(size=200)
        tables = {str(i): simulated(rng, 0.4, 3, 200, 0.05, difficulty) for i in range(9)}
        tables["best"] = simulated(rng, 0.75, 3, 200, 0.05, difficulty)
        still = simulated(rng, 0.15, 1, 200, 0.0, difficulty)
        tables |= {name: np.tile(still, (3, 1)) for name in ("a", "b", "c")}
        values = against("best", tables)
        told += sum(values[str(i)] < 0.05 for i in range(9))
    assert told / 50 / 9 > 0.75


@pytest.mark.parametrize("truth", [0.985, 0.02])
def test_intervals_at_the_edge_hold_it_too(truth):
    rng, held = np.random.default_rng(1), 0
    for _ in range(TRIALS):
        low, high = interval((rng.random((1, 161)) < truth).astype(float))
        held += low <= truth <= high
        assert 0 <= low <= high <= 1
    assert held / TRIALS >= 0.93


def test_all_right_is_not_surely_all_right():
    low, high = interval(np.ones((3, 100)))
    assert high == 1 and 0.9 < low < 0.99
    assert interval(np.zeros(50))[0] == 0


def test_scores_that_are_no_shares_are_left_as_they_are():
    values = np.full((2, 10), 37.5)
    assert interval(values) == (37.5, 37.5)


def test_the_best_and_its_ties_hold_the_truly_best():
    """Three techniques are truly best, one is worse by little, one by much."""
    rng, kept, caught = np.random.default_rng(2), 0, 0
    truth = {"a": 0.8, "b": 0.8, "c": 0.8, "d": 0.77, "e": 0.6}
    for _ in range(400):
        difficulty = rng.normal(size=300)
        tables = {name: simulated(rng, mean, 3, 300, 0.02, difficulty) for name, mean in truth.items()}
        best = max(tables, key=lambda name: tables[name].mean())
        ties = {name for name, p in against(best, tables).items() if p > 0.05} | {best}
        kept += "a" in ties
        caught += "e" not in ties
    assert kept / 400 >= 0.95
    assert caught / 400 >= 0.9


def test_equal_techniques_are_seldom_told_apart():
    rng, false = np.random.default_rng(3), 0
    for _ in range(TRIALS):
        difficulty = rng.normal(size=200)
        one, other = (simulated(rng, 0.7, 3, 200, 0.03, difficulty) for _ in range(2))
        false += p_value(one, other) <= 0.05
    assert false / TRIALS <= 0.07


def test_pairing_takes_the_difficulty_of_questions_out():
    rng = np.random.default_rng(4)
    hard = (rng.random(400) < 0.5).astype(float)
    one, other = hard.copy(), hard.copy()
    other[:12] = 0
    one[:12] = 1
    assert p_value(one[None], other[None]) < 0.01
    assert p_value(one[None], rng.permutation(other)[None]) > 0.1


def test_a_technique_without_chance_is_compared_with_every_seed():
    rng = np.random.default_rng(5)
    several, alone = simulated(rng, 0.9, 3, 100), simulated(rng, 0.4, 1, 100)
    assert p_value(several, alone) < 1e-2 and p_value(alone, several) == pytest.approx(p_value(several, alone))
    assert p_value(alone, alone.copy()) == 1


def test_ranks_hold_the_true_rank():
    rng, held = np.random.default_rng(6), 0
    truth = [0.9, 0.8, 0.7, 0.6]
    for _ in range(200):
        difficulty = rng.normal(size=200)
        tables = {str(i): simulated(rng, mean, 3, 200, 0.03, difficulty) for i, mean in enumerate(truth)}
        held += sum(low <= i + 1 <= high for i, (low, high) in enumerate(ranks(tables).values()))
    assert held / 800 >= 0.95
    same = {"a": np.ones((1, 9)), "b": np.ones((1, 9)), "c": np.zeros((1, 9))}
    assert ranks(same) == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}


def test_so_many_examples_do_find_the_difference():
    """With the number that is said to be needed, it is found in 8 of 10."""
    rng = np.random.default_rng(7)
    pilot = [(rng.random((1, 4000)) < mean).astype(float) for mean in (0.80, 0.75)]
    wanted = needed_examples(*pilot)
    assert wanted is not None and 700 < wanted < 1700
    gap, n = float(pilot[0].mean() - pilot[1].mean()), wanted
    found = sum(
        p_value((rng.random((1, n)) < 0.75 + gap).astype(float), (rng.random((1, n)) < 0.75).astype(float)) <= 0.05
        for _ in range(400)
    )
    assert 0.74 <= found / 400 <= 0.86


def test_no_number_of_examples_finds_what_seeds_hide():
    table = np.tile([[0.0], [1.0], [0.0]], (1, 50))
    assert needed_examples(table, np.full((3, 50), 0.3)) is None
    assert needed_examples(table, table) is None


def test_spread_says_where_the_variance_is():
    rng = np.random.default_rng(8)
    seeds = spread(np.tile([[0.2], [0.5], [0.8]], (1, 100)) + rng.normal(0, 0.01, (3, 100)))
    examples = spread(np.tile(rng.normal(size=100), (3, 1)) + rng.normal(0, 0.01, (3, 100)))
    assert seeds.of_seeds > 100 * seeds.of_examples and seeds.seeds == 2
    assert examples.of_examples > 100 * examples.of_seeds and examples.examples == 99


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


# The interval of one seed speaks of that seed alone, so the simulations of one seed have no luck in it.


def overlaps(rng, seeds, examples, of_seeds):
    """ROUGE-like scores: many zeros, the rest between 0 and 1; their true mean is 0.6 * 2 / 7."""
    answered = rng.beta(2, 5, size=examples) * (rng.random(examples) < 0.6)
    luck = rng.normal(0, of_seeds, size=(seeds, 1))
    return answered + luck + rng.normal(0, 0.05, size=(seeds, examples)) * (answered > 0)


def heavy_tailed(rng, seeds, examples, of_seeds):
    """Scores of a user's own scale, a few of them ten times as high as most; their true mean is exp(1 / 2)."""
    luck = rng.normal(0, 4 * of_seeds, size=(seeds, 1))
    return 0.7 * rng.lognormal(size=examples) + 0.3 * rng.lognormal(size=(seeds, examples)) + luck


@pytest.mark.parametrize("seeds", [1, 3, *in_full(2, 5)])
@pytest.mark.parametrize(("draw", "truth"), [(overlaps, 0.6 * 2 / 7), *in_full((heavy_tailed, np.exp(0.5)))])
def test_intervals_of_other_metrics_hold_the_truth_in_95_of_100(draw, truth, seeds):
    rng, held = np.random.default_rng(10), 0
    for _ in range(TRIALS):
        tables = {str(i): draw(rng, seeds, 400, 0.02 * (seeds > 1)) for i in range(8)}
        low, high = interval(tables["0"], seed_variance(tables))
        held += low <= truth <= high
    assert 0.93 <= held / TRIALS <= 0.97


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("draw", [overlaps, *in_full(heavy_tailed)])
def test_equal_techniques_are_seldom_told_apart_by_other_metrics(draw, seeds):
    rng, told_apart = np.random.default_rng(11), 0
    for _ in range(TRIALS):
        tables = {str(i): draw(rng, seeds, 200, 0.02 * (seeds > 1)) for i in range(8)}
        told_apart += p_value(tables["0"], tables["1"], seed_variance(tables)) <= 0.05
    assert told_apart / TRIALS <= 0.07


def test_a_small_difference_on_a_scale_of_small_scores_is_found():
    """0.056 against 0.034 on 150 examples: four scores of 0 and 1 more would make a tie of it."""
    rng = np.random.default_rng(12)
    base = np.clip(rng.normal(0.034, 0.03, size=150), 0, 1)
    full = np.clip(base + rng.normal(0.022, 0.04, size=150), 0, 1)
    expected = stats.ttest_rel(full, base)
    assert p_value(full[None], base[None]) == pytest.approx(expected.pvalue, rel=1e-6) and expected.pvalue < 1e-6
    assert interval(full) == pytest.approx(tuple(stats.ttest_1samp(full, 0).confidence_interval()), rel=1e-6)


def test_scores_that_are_all_0_are_not_surely_0():
    low, high = interval(np.zeros((1, 100)))
    assert low == 0 and 0 < high < 0.06
