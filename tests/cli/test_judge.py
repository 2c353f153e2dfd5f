"""A judge at an endpoint, from the command line."""

import json
import re

import pytest

from judge_server import judging


@pytest.fixture(scope="module")
def of_answers(tmp_path_factory, model, answers):
    """An adaptation that was fitted on the data with answers."""
    from tunewise.adaptation.fit import fit
    from tunewise.data.task import Task
    from tunewise.engine.model import load_base
    from tunewise.fitting.settings import TrainSettings
    from tunewise.techniques.registry import make

    out = tmp_path_factory.mktemp("fits") / "out"
    base = load_base(str(model), device="cpu")
    fit(base, Task.read(answers), make("lora"), out, settings=TrainSettings(max_steps=30))
    return out


def answer_in(text, place):
    return re.search(rf"<answer {place} \w+>\n(.*?)\n</answer {place}", text, re.DOTALL)[1]


def test_eval_against_the_reference_and_the_base(run, refused, of_answers, answers, tmp_path):
    """A judge that prefers the reference, and one that prefers the first place."""
    words = {"cat", "dog", "bird", "tree", "mat"}

    def knows_words(text):
        right = [answer_in(text, place) in words for place in "AB"]
        return '{"verdict": "tie"}' if right[0] == right[1] else '{"verdict": "%s"}' % ("A" if right[0] else "B")

    call = ["eval", of_answers, "--data", answers, "--test-examples", 6, "--metric", "judge", "--judge-model", "m"]
    with judging(knows_words) as endpoint:
        result = run(*call, "--judge-url", endpoint.url, "--predictions", tmp_path / "p.jsonl", "--json")
    assert result.code == 0, result.err
    scored = result.json()
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    expected = [0.5 if row["prediction"].strip() in words else 0.0 for row in rows]
    assert scored["mean"] == sum(expected) / 6 and scored["metric"] == f"judge:m@{endpoint.url}"
    assert scored["others"]["unreadable_verdicts"] == 0 and scored["judge_against"] == "reference"
    assert all(
        any(row["prompt"] in text for text in endpoint.prompts) for row in rows if row["prediction"] not in words
    )

    base_path = tmp_path / "b.jsonl"
    with judging(lambda text: "A") as endpoint:
        against = [*call, "--judge-url", endpoint.url, "--judge-against"]
        result = run(*against, "base", "--predictions", base_path, "--json")
        assert result.code == 0, result.err
        assert "must be reference or base" in refused(*against, "nobody")
    assert result.json()["mean"] == 0.5 and result.json()["judge_against"] == "base"
    of_base = [json.loads(line) for line in base_path.read_text().splitlines()]
    assert [row["prediction"] for row in of_base] == [row["prediction"] for row in rows], "the adaptation still answers"
    assert any(row["opponent"] != row["prediction"] for row in of_base)
    assert "give it, or leave this out" in refused("eval", of_answers, "--data", answers, "--judge-against", "base")


def test_compare_asks_the_judge(run, model, answers, tmp_path):
    """From a YAML file; the result names the judge, and a finished comparison asks nothing again."""
    with judging(lambda text: "A") as endpoint:
        settings = {"metric": "judge", "judge_url": endpoint.url, "judge_model": "m"}
        (tmp_path / "run.yaml").write_text(json.dumps(settings))
        words = ["-t", "base", "--model", model, "--data", answers, "--out", tmp_path / "out", "--test-examples", 6]
        call = ["compare", *words, "--config", tmp_path / "run.yaml", "--json"]
        result = run(*call)
        assert result.code == 0, result.err
        asked = len(endpoint.bodies)
        assert run(*call).code == 0 and len(endpoint.bodies) == asked > 0
    comparison = result.json()
    assert comparison["task"]["metric"] == f"judge:m@{endpoint.url}"
    (row,) = comparison["rows"]
    assert row["score"]["mean"] == 0.5 and row["others"]["unreadable_verdicts"] == 0
