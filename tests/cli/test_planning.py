"""`tunewise plan`: what it prints, as a table and as JSON, and what it refuses."""

import pytest


@pytest.fixture
def plan_words(model, labels):
    return ["plan", "--model", str(model), "--data", str(labels)]


def test_a_plan_says_what_fits(run, plan_words):
    result = run(*plan_words, "-t", "base,full,lora,mpt", "--device", "24GB", "--json")
    assert result.code == 0, result.err
    rows = {row["technique"]: row for row in result.json()["rows"]}
    assert rows["full"]["verdict"] == rows["lora"]["verdict"] == "fits"
    assert rows["full"]["parameters"]["optimised"] > rows["lora"]["parameters"]["optimised"] > 0
    assert rows["mpt"]["verdict"] == "not possible" and "source" in rows["mpt"]["reason"]
    assert rows["lora"]["time"]["seconds"] is None  # of a GPU's speed nothing is known


def test_a_probe_puts_measurements_beside_predictions(run, plan_words):
    (row,) = run(*plan_words, "-t", "lora", "--probe", "--json").json()["rows"]
    assert row["memory"]["peak"] == row["probe"]["peak"] != row["probe"]["foreseen_peak"] > 0
    assert row["time"]["seconds"] > 0 < row["probe"]["foreseen_time"]["seconds"]


def test_the_table_says_what_would_make_it_fit(run, plan_words):
    result = run(*plan_words, "-t", "full,mpt", "--device", "1MB")
    assert "does not fit" in result.out and "it needs" in result.out and "not possible" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--device", "24"], "--device"), (["--device", "cuda:7"], "GPUs here"), (["-t", "lorra"], "lora")],
)
def test_wrong_requests_are_one_line(refused, plan_words, words, message):
    assert message in refused(*plan_words, *words)
