"""The demo, as far as it can be run in seconds; .ci/run runs it whole."""

import json

import pytest

from tunewise.cli.commands import comparing


def test_demo_takes_known_techniques_and_tasks(refused, tmp_path):
    assert "did you mean" in refused("demo", "--out", tmp_path / "demo", "--techniques", "lorra")
    assert "town, reviews" in refused("demo", "--out", tmp_path / "demo", "--task", "review")
    assert not (tmp_path / "demo").exists()


def test_demo_runs_the_task_whose_techniques_differ(run, monkeypatch, tmp_path):
    """The default is the task that README shows; on `reviews` five rows tie at 1.000."""
    requests = []
    monkeypatch.setattr(comparing, "_compare", lambda request, *_: requests.append(request))
    assert run("demo", "--out", tmp_path).code == 0
    assert (requests[0].options.data, requests[0].options.out) == ("world:town", tmp_path / "town")


@pytest.mark.slow
def test_demo_compares_says_what_it_found_and_where(run, tmp_path):
    completed = run("demo", "--out", tmp_path, "--task", "records", "--techniques", "base,lora")
    assert completed.code == 0, completed.err
    assert "Recommended: lora." in completed.out
    assert f"{tmp_path / 'records' / 'report.html'} and report.md" in completed.out
    result = json.loads((tmp_path / "records" / "compare.json").read_text())
    rows = {row["technique"]: row for row in result["rows"]}
    assert rows["lora"]["score"]["mean"] > rows["base"]["score"]["mean"]
    assert rows["base"]["forgetting"]["nll_rise"] == 0.0
    assert rows["base"]["forgetting"]["probe"] >= 0.8  # it knows the facts of its world
    assert rows["lora"]["forgetting"]["probe"] <= rows["base"]["forgetting"]["probe"]
    assert "kept" in completed.out and (tmp_path / "records" / "report.md").read_text().count("kept") >= 2
