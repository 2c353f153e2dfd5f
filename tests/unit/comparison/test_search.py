"""The search: what it finds where the truth is known, what it spends, what it leaves alone."""

import math

import pytest

from tunewise.comparison.search import Outcome, Plan, find
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base


def start(name="lora", chosen=None):
    return make(name, {name: chosen or {}}).resolved(tiny_base())


def trained(best, spent, wave=0.0):
    """A training whose loss is lowest at a rate `best` and falls with the share of the steps."""

    def train(recipe, share):
        spent[recipe] = max(spent.get(recipe, 0), share)
        rate = recipe.learning_rate
        if rate > 9 * best:
            return Outcome(None, "diverged")
        far = abs(math.log(rate / best))
        return Outcome(1 + far * (1 - share / 2) - wave * math.log(getattr(recipe, "r", 1)), tokens=9)

    return train


@pytest.mark.parametrize("factor", [0.1, 1 / 3, 1, 3, 10])
def test_it_finds_the_best_rate(factor):
    recipe = start()
    best = float(f"{recipe.learning_rate * factor:.3g}")
    found, tried = find(recipe, 3, trained(best, {}))
    assert found.learning_rate == best
    assert [each.learning_rate for each in tried if each.won] == [best]


@pytest.mark.parametrize("allowance", [2, 3, 4, 6])
@pytest.mark.parametrize("wave", [0.0, 5.0])
def test_it_spends_no_more_than_its_allowance(allowance, wave):
    recipe, spent = start(), {}
    found, tried = find(recipe, allowance, trained(recipe.learning_rate, spent, wave))
    whole = sum(spent.values()) - spent[found] + 1
    assert (whole <= allowance and whole > allowance - 1.25) or len(tried) == 7  # seven: there is no more to try
    assert len(tried) == len(spent)


def test_an_allowance_of_one_searches_nothing():
    recipe = start()
    assert find(recipe, 1, lambda *_: pytest.fail("trained")) == (recipe, [])
    assert find(start("icl"), 4, lambda *_: pytest.fail("trained"))[1] == []


def test_settings_are_varied_at_the_best_rate_unless_they_were_chosen():
    recipe = start()
    found, tried = find(recipe, 3, trained(recipe.learning_rate, {}, wave=1.0))
    assert found.r == 64 and {"r": 64} in [each.settings for each in tried]
    found, tried = find(recipe, 3, trained(recipe.learning_rate, {}, wave=1.0), held=["lora.r"])
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
    assert Plan.within(1, 5) == Plan(1, 0)
    assert Plan.within(2, 5) == Plan(4, 0)
    assert Plan.within(3, 5) == Plan(5, 2)
    assert Plan.within(4, 5) == Plan(5, 6)


def test_every_value_that_is_searched_is_a_legal_one():
    from tunewise.techniques.registry import all_techniques

    for name in all_techniques():
        assert len(set(make(name, {}).varied())) == len(make(name, {}).varied())
