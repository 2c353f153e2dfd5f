"""What is recorded of answers beside their score: confused labels and lengths."""

import pytest

from tunewise.results.diagnostics import (
    AnswerLengths,
    Confusion,
    class_scores,
    never_ended_sentence,
    one_class_sentence,
)


def test_pairs_are_counted_and_added():
    one = Confusion.of(["a", "a", "b"], ["a", "b", "b"])
    assert one.counts == {"a": {"a": 1, "b": 1}, "b": {"b": 1}}
    total = Confusion.total([one, Confusion.of(["a"], ["b"])])
    assert total.pairs() == [("a", "b", 2), ("a", "a", 1), ("b", "b", 1)] and total.mistakes() == [("a", "b", 2)]
    assert one.counts["a"] == {"a": 1, "b": 1}  # the parts stay as they are


def test_class_scores_are_those_of_the_definition():
    confusion = Confusion(counts={"a": {"a": 3, "b": 1}, "b": {"a": 2, "b": 4}})
    first, second = class_scores(confusion, ["a", "b", "absent"])
    assert (first.precision, first.recall, first.f1, first.examples) == pytest.approx((3 / 5, 3 / 4, 2 / 3, 4))
    assert (second.precision, second.recall, second.examples) == pytest.approx((4 / 5, 4 / 6, 6))
    assert class_scores(Confusion(counts={}), ["a"]) == []


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": {"a": 5}, "b": {"a": 5}}, ("a", 1.0)),
        ({"a": {"a": 50}, "b": {"a": 46, "b": 4}}, ("a", 0.96)),
        ({"a": {"a": 50}, "b": {"a": 44, "b": 6}}, None),
        ({"a": {"a": 95}, "b": {"a": 1, "b": 4}}, None),  # 95 % of the examples have this label
        ({"a": {"a": 96}, "b": {"a": 4}}, ("a", 1.0)),  # but not all
        ({"a": {"a": 5}}, None),
        ({}, None),
    ],
)
def test_one_class(counts, expected):
    assert Confusion(counts=counts).one_class() == expected


def test_one_class_is_said_with_its_seeds():
    collapsed, mixed = Confusion.of("ab", "aa"), Confusion.of("ab", "ab")
    nearly = Confusion(counts={"a": {"a": 50}, "b": {"a": 46, "b": 4}})
    assert one_class_sentence([collapsed]) == 'predicts "a" for all test examples'
    assert one_class_sentence([nearly]) == 'predicts "a" for 96% of the test examples'
    assert one_class_sentence([mixed, collapsed]) == 'predicts "a" for all test examples (in 1 of 2 seeds)'
    assert one_class_sentence([mixed]) is None


def test_lengths_of_seeds_are_added():
    one = AnswerLengths(answers=10, mean=4.0, longest=8, reference_mean=3.0, never_ended=1, limit=8)
    two = AnswerLengths(answers=30, mean=8.0, longest=9, reference_mean=3.0, never_ended=0, limit=9)
    total = AnswerLengths.total([one, two])
    assert (total.answers, total.mean, total.longest, total.never_ended) == (40, 7.0, 9, 1)
    assert never_ended_sentence(total) == "1 of 40 answers never ended (cut at 9 tokens)"
    assert never_ended_sentence(two) is None
