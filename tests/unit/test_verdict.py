"""The verdict: which row is taken, and the words for it."""

import numpy as np
import pytest

from tunewise.verdict import interval, verdict

RIGHT = np.array([1.0] * 19 + [0.0])


def row(name, mean=0.95, disk=1000, prompt=20, **forgetting):
    score = {"metric": "accuracy", "mean": mean, "low": mean, "high": mean}
    cost = {"artifact_bytes": disk, "prompt_tokens": prompt}
    return {"technique": name, "score": score, "cost": cost, "forgetting": {"nll_rise": 0.1, "kl": 0.1} | forgetting}


def taken(*rows):
    return verdict(rows, {each["technique"]: RIGHT for each in rows})


def test_the_smallest_of_what_is_tied_is_taken():
    found = taken(row("full", disk=9000), row("lora", disk=500))
    assert found["best"] == "full" and found["ties"] == ["lora"] and found["recommended"] == "lora"
    assert "lora is the smallest on disk: 500 B (full: 9 kB), 20 prompt tokens (full: 20)" in " ".join(found["reasons"])


def test_a_long_prompt_costs_more_than_a_large_artifact():
    assert taken(row("icl", disk=10, prompt=300), row("full", disk=10**7))["recommended"] == "full"


def test_what_loses_the_bases_abilities_is_not_recommended():
    found = taken(row("p_tuning", disk=10, probe=0.0), row("lora", probe=0.99))
    assert found["best"] == "p_tuning" and found["recommended"] == "lora"
    said = " ".join(found["reasons"])
    assert "Less than 90% of what the base could do is kept by p_tuning: not recommended." in said
    assert "lora changed the loss on what the base knew by +0.100 nats a token, and it keeps 99.0%" in said


def test_where_all_lose_them_the_smallest_is_taken_and_its_loss_said():
    found = taken(row("p_tuning", disk=10, probe=0.0), row("lora", probe=0.5))
    assert found["recommended"] == "p_tuning" and "keeps 0.0% of what the base could do" in found["reasons"][-1]


def test_a_worse_row_is_no_tie():
    wrong = np.zeros(20)
    found = verdict([row("full"), row("base", mean=0.0)], {"full": RIGHT, "base": wrong})
    assert found["ties"] == [] and found["recommended"] == "full"


def test_nothing_finished():
    assert verdict([{"technique": "full"}], {})["recommended"] is None


@pytest.mark.parametrize("values", [[0.5], [0.25] * 9])
def test_an_interval_of_values_that_agree_is_a_point(values):
    assert interval(np.array(values)) == (values[0], values[0])
