"""`tunewise plan`: what it prints, as a table and as JSON, and what it refuses."""

import pytest


@pytest.fixture
def asked(model, labels):
    return ["plan", "--model", str(model), "--data", str(labels)]


def test_a_plan_says_what_fits(run, asked):
    found = run(*asked, "-t", "base,full,lora,mpt", "--device", "24GB", "--json")
    assert found.code == 0, found.err
    rows = {row["technique"]: row for row in found.json()["rows"]}
    assert rows["full"]["verdict"] == rows["lora"]["verdict"] == "fits"
    assert rows["full"]["parameters"]["optimised"] > rows["lora"]["parameters"]["optimised"] > 0
    assert rows["mpt"]["verdict"] == "not possible" and "source" in rows["mpt"]["reason"]
    assert rows["lora"]["time"]["seconds"] is None  # of a GPU's speed nothing is known


def test_a_probe_puts_what_it_took_beside_what_was_foreseen(run, asked):
    (row,) = run(*asked, "-t", "lora", "--probe", "--json").json()["rows"]
    assert row["memory"]["peak"] == row["probe"]["peak"] != row["probe"]["foreseen_peak"] > 0
    assert row["time"]["seconds"] > 0 < row["probe"]["foreseen_time"]["seconds"]


def test_the_table_says_what_would_make_it_fit(run, asked):
    found = run(*asked, "-t", "full,mpt", "--device", "1MB")
    assert "does not fit" in found.out and "it needs" in found.out and "not possible" in found.out


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--device", "24"], "--device"), (["--device", "cuda:7"], "GPUs here"), (["-t", "lorra"], "lora")],
)
def test_wrong_requests_are_one_line(refused, asked, words, said):
    assert said in refused(*asked, *words)
