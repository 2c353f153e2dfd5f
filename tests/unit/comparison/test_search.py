"""The search: what it finds where the truth is known, what it spends, what it leaves alone."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewise.comparison.search import Outcome, Plan, find, preparations
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base


def start(name="lora", chosen=None):
    return make(name, {name: chosen or {}}).resolved(tiny_base())


def trained(best, spent, wave=0.0):
    """A training whose loss is lowest at a rate `best` and falls with the share of the steps."""

    def train(recipe, share):
        spent.append((recipe, share))
        rate = recipe.learning_rate
        if rate > 9 * best:
            return Outcome(None, "diverged")
        far = abs(math.log(rate / best))
        loss = 1 + far * (1 - share / 2) - wave * math.log(getattr(recipe, "r", 1))
        return Outcome(
            loss, tokens=9, steps=int(100 * share), seconds=1.0, preparing_tokens=7 if share == 0.25 else None
        )

    return train


@pytest.mark.parametrize("factor", [0.1, 1 / 3, 1, 3, 10])
def test_it_finds_the_best_rate(factor):
    recipe = start()
    best = float(f"{recipe.learning_rate * factor:.3g}")
    found, tried = find(recipe, 3, trained(best, []))
    assert found.learning_rate == best
    assert [each.learning_rate for each in tried if each.won] == [best]


@pytest.mark.parametrize("allowance", [2, 3, 4, 6])
@pytest.mark.parametrize("wave", [0.0, 5.0])
def test_it_spends_no_more_than_its_allowance(allowance, wave):
    recipe, spent = start(), []
    _, tried = find(recipe, allowance, trained(recipe.learning_rate, spent, wave))
    whole = sum(share for _, share in spent) + 1  # the winner begins at the start, like every training before it
    assert (whole <= allowance and whole > allowance - 1.25) or len(tried) == 7  # seven: there is no more to try
    assert {recipe for recipe, _ in spent} == set(recipes_of(tried, recipe))
    assert sum(each.total_steps or 0 for each in tried) <= 100 * (allowance - 1)


def recipes_of(tried, recipe):
    """The recipes of a search's trials."""
    for each in tried:
        yield replace(recipe, learning_rate=each.learning_rate, **each.settings)


def test_the_two_best_train_again_for_half_of_the_steps_and_all_of_it_is_counted():
    recipe, spent = start(), []
    _, tried = find(recipe, 4, trained(recipe.learning_rate, spent, wave=1.0))
    assert [share for _, share in spent] == [0.25] * 7 + [0.5] * 2
    finalists = [each for each in tried if each.steps == 50]
    assert len(finalists) == 2 and any(each.won for each in finalists)
    for each in finalists:
        assert (each.total_steps, each.tokens, each.seconds, each.preparing_tokens) == (75, 18, 2.0, 7)
    assert all(each.total_steps == each.steps == 25 for each in tried if each.reason is None and each.steps != 50)


def test_a_finalist_that_fails_keeps_what_was_known_of_it():
    recipe = start()

    def train(candidate, share):
        if share == 0.5 and candidate == recipe:
            return Outcome(None, "diverged")
        return Outcome(abs(math.log(candidate.learning_rate / recipe.learning_rate)), steps=int(100 * share), tokens=9)

    found, tried = find(recipe, 4, train)
    mine = next(each for each in tried if each.learning_rate == recipe.learning_rate and not each.settings)
    assert found != recipe and (mine.validation_loss, mine.steps, mine.reason) == (0.0, 25, None)


@pytest.mark.parametrize(
    ("name", "allowance", "count"),
    [("lora", 3, 3), ("fish_mask", 3, 1), ("mpt", 3, 6), ("icl+lora", 3, 3), ("lora", 1, 1), ("icl", 3, 1)],
)
def test_candidates_share_what_is_read_unless_a_setting_matters_to_it(name, allowance, count):
    """Of two further values of r each is prepared anew; learning rates and densities do not matter to what is read."""
    assert preparations(make(name, {}).resolved(tiny_base()), allowance) == count


def test_an_allowance_of_one_searches_nothing():
    recipe = start()
    assert find(recipe, 1, lambda *_: pytest.fail("trained")) == (recipe, [])
    assert find(start("icl"), 4, lambda *_: pytest.fail("trained"))[1] == []


def test_settings_are_varied_at_the_best_rate_unless_they_were_chosen():
    recipe = start()
    found, tried = find(recipe, 3, trained(recipe.learning_rate, [], wave=1.0))
    assert found.r == 64 and {"r": 64} in [each.settings for each in tried]
    found, tried = find(recipe, 3, trained(recipe.learning_rate, [], wave=1.0), held=["lora.r"])
    assert found.r == 16 and all(not each.settings for each in tried)


def test_parts_of_a_composition_are_varied_too():
    recipe = make("icl+lora", {}).resolved(tiny_base())
    assert [[part.name for part in varied.parts] for varied in recipe.varied()] == [["icl", "lora"]] * 2
    assert {varied.parts[1].r for varied in recipe.varied()} == {4, 64}
    assert not recipe.varied(["lora.r"])
    _, tried = find(recipe, 3, lambda recipe, share: Outcome(1.0))
    assert {"lora.r": 4} in [each.settings for each in tried]


def test_where_all_fail_the_default_is_kept():
    recipe = start()
    found, tried = find(recipe, 3, lambda recipe, share: Outcome(math.nan, "diverged"))
    assert found == recipe and len(tried) == 7


def test_plans():
    assert Plan.within(1, 5, 2) == Plan(1)
    assert Plan.within(2, 5, 2) == Plan(4)
    assert Plan.within(3, 5, 2) == Plan(5, 2)
    assert Plan.within(3, 5, 9) == Plan(5, 3)
    assert Plan.within(3, 3, 0) == Plan(3, 0, 2)
    assert Plan.within(4, 5, 2) == Plan(5, 2, 2)
    assert Plan.within(4, 5, 9) == Plan(5, 7)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 9))
def test_no_plan_costs_more_than_its_allowance(allowance, grid, variations):
    plan = Plan.within(allowance, grid, variations)
    assert plan.rates == 1 or plan.rates + plan.variations + 2 * plan.finalists + 4 <= 4 * allowance
    assert 1 <= plan.rates <= grid and 0 <= plan.variations <= variations and plan.finalists in (0, 2)


def test_every_value_that_is_searched_is_a_legal_one():
    from tunewise.techniques.registry import all_techniques

    for name in all_techniques():
        assert len(set(make(name, {}).varied())) == len(make(name, {}).varied())
