"""What publications and records give as evidence: gains, errors, conditions, and what stands for what is not given."""

import math

import pytest

from tunewise.advice.atlas.records import shipped
from tunewise.advice.atlas.staleness import stale_rows
from tunewise.advice.observations import READING, observed_gains, observed_name, published_comparisons, recorded_gains


@pytest.fixture(scope="module")
def comparisons():
    return published_comparisons()


def test_every_published_comparison_has_two_gains_the_best_of_which_is_one(comparisons):
    assert len(comparisons) > 100
    for ref, comparison in comparisons.items():
        observed = comparison.observed()
        assert observed.ref == ref == comparison.ref and len(observed.gains) > 1
        assert max(observed.gains.values()) <= 1.0 and min(observed.gains.values()) >= -1.0
        assert not any("peft:" in name or name == "base" for name in observed.gains)
        assert comparison.conditions.train >= 1 and comparison.conditions.parameters > 1e6


def test_the_best_form_of_a_technique_counts(comparisons):
    table = comparisons["biderman-2024/code-pretraining/Llama 2 7B/20 billion tokens"]
    assert table.rows["lora"].score == 0.224  # of ranks 16, 64 and 256
    assert table.conditions.kind == "new text" and table.conditions.train == pytest.approx(20e9 / 4096, rel=0.01)


def test_gains_are_measured_from_the_base_or_from_half_of_the_best(comparisons):
    known = comparisons["ovadia-2024/current-events/Mistral 7B"]
    assert known.gain("full") == pytest.approx((0.588 - 0.481) / (0.875 - 0.481))
    assert known.observed().gains["rag" + READING] == 1.0 and known.conditions.kind == "answers in documents"
    unknown = comparisons["hu-2023/gsm8k/LLaMA 7B"]
    assert unknown.gain("prefix_tuning") == pytest.approx((24.4 - 37.5 / 2) / (37.5 / 2))
    assert unknown.observed().common_error > known.observed().common_error
    assert unknown.observed().errors["lora"] > known.observed().errors["full"]  # untuned, and partly tuned


def test_no_more_examples_fit_a_prompt_with_more_to_choose_from(comparisons):
    large = comparisons["bertsch-2024/trec/Llama 2 7B/16,384 examples"]
    assert large.rows["icl"].train == 2000 and large.train == 16384
    assert large.gain("lora") == 1.0 > large.gain("icl")


def test_names_are_those_of_parts_in_order():
    assert observed_name("full+rag", reading=True) == observed_name("rag+full", reading=True) == "full+rag" + READING
    assert observed_name("rag", reading=False) == "rag"


def test_recorded_gains_have_the_errors_of_their_scores():
    record = shipped()["world.town"]
    observed = recorded_gains(record)
    assert observed.gains["rag" + READING] == record.gain("rag") == 1.0 and "rag" not in observed.gains
    assert observed.gains["full"] == record.gain("full")
    assert all(error >= 0.03 for error in observed.errors.values())
    stale = stale_rows(record)
    fresh = [error for name, error in observed.errors.items() if name.removesuffix(READING) not in stale]
    assert min(error for name, error in observed.errors.items() if name in stale) >= math.hypot(0.03, 0.1) > min(fresh)


def test_records_in_which_nothing_is_better_than_the_base_say_nothing():
    nothing = shipped()["tinystories-656k.skill"]
    assert nothing.best[1] == nothing.base and observed_gains([nothing]) == ()
