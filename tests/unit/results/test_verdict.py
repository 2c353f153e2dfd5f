"""The verdict: which row is taken, and the words for it."""

import numpy as np
import pytest

from tunewise.core.errors import SettingError
from tunewise.results.needs import Measured, Need
from tunewise.results.reference import MajorityScores
from tunewise.results.schema import Cost, Forgetting, Score, ScoredRow
from tunewise.results.verdict import verdict

RIGHT = np.array([[1.0] * 19 + [0.0]])


def row(name, mean=0.95, disk=1000, prompt=20, merges=False, seconds=60.0, **forgetting):
    return ScoredRow(
        technique=name,
        family="full",
        label=name,
        status="ok",
        reason=None,
        learning_rate=None,
        settings={},
        seeds=(0,),
        score=Score(metric="accuracy", mean=mean, low=mean, high=mean, per_seed=(mean,)),
        nll=1.0,
        forgetting=Forgetting(**{"nll_rise": 0.1, "kl": 0.1} | forgetting),
        cost=Cost(
            artifact_bytes=disk,
            prompt_tokens=prompt,
            optimised_parameters=0 if name in ("base", "icl") else 9,
            stored_parameters=9,
            train_seconds=seconds,
            seconds_per_example=prompt / 1000,
            peak_memory_bytes=disk,
            merges=merges,
        ),
    )


def taken(*rows):
    return verdict(rows, {each.technique: RIGHT for each in rows})


def test_the_smallest_of_what_is_tied_is_taken():
    conclusion = taken(row("full", disk=9000), row("lora", disk=500))
    assert conclusion.best == "full" and conclusion.ties == ("lora",) and conclusion.recommended == "lora"
    assert "lora is the smallest on disk: 500 B (full: 9 kB), 20 prompt tokens (full: 20)" in " ".join(
        conclusion.reasons
    )


def test_a_long_prompt_costs_more_than_a_large_artifact():
    assert taken(row("icl", disk=10, prompt=300), row("full", disk=10**7)).recommended == "full"


def test_what_loses_the_bases_abilities_is_not_recommended():
    conclusion = taken(row("p_tuning", disk=10, probe=0.0), row("lora", probe=0.99))
    assert conclusion.best == "p_tuning" and conclusion.recommended == "lora"
    said = " ".join(conclusion.reasons)
    assert "Not recommended, because less than 90% of what the base could do is kept: p_tuning." in said
    assert "lora changed the loss on retention text by +0.100 nats per token, and it keeps 99.0%" in said


def test_where_all_lose_them_the_smallest_is_taken_and_its_loss_said():
    conclusion = taken(row("p_tuning", disk=10, probe=0.0), row("lora", probe=0.5))
    assert conclusion.recommended == "p_tuning" and "keeps 0.0% of what the base could do" in conclusion.reasons[-1]


def test_a_worse_row_is_no_tie():
    wrong = np.zeros((1, 20))
    conclusion = verdict([row("full"), row("base", mean=0.0)], {"full": RIGHT, "base": wrong})
    assert conclusion.ties == () and conclusion.recommended == "full"


def test_nothing_finished():
    assert verdict([], {}).recommended is None


def test_needs_narrow_the_choice_and_are_said():
    rows = [row("full", disk=9 * 10**6), row("lora", mean=0.9, disk=500, merges=True)]
    tables = {"full": RIGHT, "lora": RIGHT}
    conclusion = verdict(rows, tables, [Need.read("artifact<1kB"), Need.read("mergeable")])
    assert conclusion.recommended == "lora" and conclusion.needs == ("artifact<1kB", "mergeable")
    assert "lora meets artifact<1kB, mergeable." in conclusion.reasons


def test_what_is_worse_is_taken_where_a_need_asks_for_it():
    rows = [row("full", disk=9 * 10**6), row("lora", mean=0.2, disk=500)]
    worse = np.zeros((1, 20))
    conclusion = verdict(rows, {"full": RIGHT, "lora": worse}, [Need.read("artifact < 1MB")])
    assert conclusion.best == "full" and conclusion.recommended == "lora"
    assert "Without these needs, the best row is full." in conclusion.reasons
    assert conclusion.summary.startswith("Use lora: it is the best that meets artifact < 1MB.")


def test_where_nothing_meets_the_needs_nothing_is_taken():
    conclusion = verdict([row("full"), row("icl")], {"full": RIGHT, "icl": RIGHT}, [Need.read("mergeable")])
    assert conclusion.recommended is None and "No row meets mergeable; full comes closest" in conclusion.reasons[-1]


@pytest.mark.parametrize("text", ["", "size<3", "memory<3lightyears", "memory<", "memory<1.2.3", "fast", "memory=3"])
def test_needs_that_are_none(text):
    with pytest.raises(SettingError, match="--need"):
        Need.read(text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [("latency<21ms", True), ("latency<=0.01s", False), ("train>=1m", True), ("prompt>0.1k", False), ("kept>0", False)],
)
def test_units(text, holds):
    assert Need.read(text).holds(Measured.of(row("lora"))) is holds


def test_training_pays_after_so_many_requests():
    rows = [row("icl", prompt=200, seconds=6.0), row("lora", prompt=20)]
    conclusion = verdict(rows, {"icl": RIGHT, "lora": RIGHT})
    assert conclusion.break_even == ("Training lora saves time over icl after 300 requests.",)


def test_one_row_is_not_enough_evidence():
    assert any("not enough evidence" in said for said in taken(row("lora")).reasons)


def test_more_examples_are_asked_for_where_they_would_tell():
    rng = np.random.default_rng(0)
    tables = {"a": (rng.random((1, 100)) < 0.8).astype(float), "b": (rng.random((1, 100)) < 0.72).astype(float)}
    rows = [row(name, mean=float(table.mean())) for name, table in tables.items()]
    conclusion = verdict(rows, tables)
    assert conclusion.needed_examples > 100
    assert any("would separate a from b" in said for said in conclusion.reasons)


def test_the_summary_says_in_what_the_recommended_row_costs_less():
    def head(*rows, needs=()):
        tables = {each.technique: RIGHT for each in rows}
        return verdict(rows, tables, [Need.read(need) for need in needs]).summary

    assert head(row("full", disk=540_000_000), row("lora", disk=20_000)).startswith(
        "Use lora: it is statistically tied with the best, full, and its adaptation is 20 kB instead of 540 MB. full"
    )
    assert head(row("icl", disk=10, prompt=612), row("lora", disk=9000, prompt=45)).startswith(
        "Use lora: it is statistically tied with the best, icl, and its prompts are 45 tokens instead of 612. icl"
    )
    assert head(row("lora", disk=9000), row("base", disk=900)).startswith(
        "Use base: it is statistically tied with the best, lora, and needs no adaptation (lora: 9 kB). lora"
    )
    assert head(row("p_tuning", disk=10, probe=0.0), row("lora", probe=0.99)).startswith(
        "Use lora: it is statistically tied with the best, p_tuning, and keeps more of what the base could do. p_tuning"
    )
    assert head(row("icl", disk=10), row("lora", disk=9000, merges=True), needs=["mergeable"]).startswith(
        "Use lora: it is statistically tied with the best, icl, and meets mergeable, which icl does not. icl"
    )
    assert head(row("full", disk=1001), row("lora", disk=1000)).startswith(
        "Use lora: it is statistically tied with the best, full. full"
    )


def majority_of(*per_example):
    return MajorityScores.of("joy", 0.4, per_example)


def test_no_technique_better_than_the_majority_is_said_first():
    conclusion = verdict([row("lora")], {"lora": RIGHT}, majority=majority_of(*[1.0] * 18, 0.0, 1.0))
    warning = 'No technique was shown to be better than always answering "joy" (0.950).'
    assert conclusion.summary.startswith(f"{warning} Use lora") and conclusion.reasons[0] == warning
    assert conclusion.best == conclusion.recommended == "lora"
    nothing = verdict([row("lora")], {"lora": RIGHT}, [Need.read("mergeable")], majority_of(*[1.0] * 20))
    assert nothing.summary.startswith('No technique was shown to be better than always answering "joy" (1.000). lora')
    assert nothing.recommended is None and "No row meets mergeable" in nothing.summary


def test_a_recommended_row_no_better_than_the_majority_is_said():
    tables = {"full": np.ones((1, 40)), "lora": np.zeros((1, 40))}
    rows = [row("full", disk=9 * 10**6), row("lora", mean=0.0, disk=500)]
    majority = majority_of(*[0.0, 1.0] * 20)
    conclusion = verdict(rows, tables, [Need.read("artifact<1MB")], majority)
    assert conclusion.recommended == "lora"
    assert conclusion.summary.startswith(
        'lora was not shown to be better than always answering "joy" (0.500). Use lora'
    )
    assert verdict(rows, tables, (), majority).summary.startswith("Use full, which is also the best. full")


def test_the_majority_is_compared_in_pairs_and_adjusted_for_the_number_of_techniques():
    rng = np.random.default_rng(0)
    majority = majority_of(*(rng.random(200) < 0.4).astype(float))
    chance = {f"t{number}": (rng.random((1, 200)) < 0.4).astype(float) for number in range(20)}
    assert majority.better(chance) == set()
    assert majority.better({**chance, "good": np.ones((1, 200)), "bad": np.zeros((1, 200))}) == {"good"}
