"""A budget in minutes: shares of the time, and what happens when it is over."""

import time

import pytest

from tunewise.comparison.budget import Budget, Clock
from tunewise.comparison.compare import compare
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.invocation import Invocation
from tunewise.comparison.row import Runs
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task


def test_twice_the_time_is_twice_the_steps(tmp_path):
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    recipe = make("lora", {}).resolved(base)
    found = []
    for minutes in (1, 2):
        clock = Clock(minutes, time.time(), tmp_path / f"{minutes}.json")
        clock._time_steps = lambda *given: (0.05, 0.0)
        found.append(clock.steps(recipe, context, TrainSettings(), rows=3, trials=2))
    assert found[0] == pytest.approx(0.9 * 60 / 3 / 2 / 0.05, rel=0.01)
    assert found[1] == pytest.approx(2 * found[0], rel=0.01)


def test_steps_once_decided_stay(tmp_path):
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    recipe = make("lora", {}).resolved(base)
    first = Clock(0.1, time.time(), tmp_path / "paces.json").steps(recipe, context, TrainSettings(), 1, 1)
    again = Clock(0.1, time.time() - 5, tmp_path / "paces.json").steps(recipe, context, TrainSettings(), 1, 1)
    assert first == again > 1


def test_another_budget_in_the_same_folder_is_another_number_of_steps(tmp_path):
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    recipe, found = make("lora", {}).resolved(base), []
    for minutes, trials in ((0.1, 1), (1, 1), (1, 2)):
        clock = Clock(minutes, time.time(), tmp_path / "paces.json")
        clock._time_steps = lambda *given: (0.01, 0.0)
        found.append(clock.steps(recipe, context, TrainSettings(), 1, trials))
    assert found[1] > 5 * found[0] and found[2] < found[1]


def test_remedies_are_timed_too(tmp_path):
    """They need a memory of the base, which is taken before anything is attached."""
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    settings = TrainSettings(replay=0.5)
    clock = Clock(0.1, time.time(), tmp_path / "paces.json")
    assert clock.steps(make("lora", {}).resolved(base), context, settings, 1, 1) > 1


def test_the_base_is_given_back_after_timing(tmp_path):
    base = tiny_base()
    before = base.fingerprint
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    Clock(0.1, time.time(), tmp_path / "paces.json").steps(
        make("full", {}).resolved(base), context, TrainSettings(), 1, 1
    )
    base._fingerprint = None
    assert base.fingerprint == before and not base.attached


def test_what_finds_no_time_is_skipped_and_said(tmp_path):
    base, task = tiny_base(), tiny_task()
    result = compare(
        base,
        task,
        [make(name, {}) for name in ("lora", "base", "bitfit")],
        tmp_path,
        budget=Budget(minutes=1),
        invocation=Invocation(started=time.time() - 59.9),
        settings=TrainSettings(),
    )
    by_name = {row["technique"]: row for row in result["rows"]}
    assert list(by_name) == ["lora", "base", "bitfit"]  # as asked, though base went first
    assert (
        by_name["bitfit"]["status"] == "skipped"
        and "the budget of 1 minutes was used up" in by_name["bitfit"]["reason"]
    )


def test_a_technique_that_cannot_work_is_a_row_with_its_own_reason(tmp_path):
    result = compare(tiny_base(), tiny_task(), [make("mpt", {})], tmp_path, budget=Budget(minutes=1))
    assert result["rows"][0]["status"] == "failed" and "source" in result["rows"][0]["reason"]


def test_what_one_technique_learns_before_training_is_not_taken_from_the_others(tmp_path, monkeypatch):
    from tunewise.techniques.nonparametric import icl

    prepare = icl._ExamplesInPrompt.prepare
    monkeypatch.setattr(icl._ExamplesInPrompt, "prepare", lambda self, study: (time.sleep(5), prepare(self, study))[1])
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=Retention.measure(base, None))
    clock = Clock(1, time.time(), tmp_path / "paces.json")
    runs = Runs(context, Budget(minutes=1), TrainSettings(), tmp_path, (), lambda *told: None, clock)
    row, _ = runs.row(make("icl", {}).resolved(base), 2)
    assert row.cost.train_seconds > 5 > clock.scoring > 0


@pytest.mark.slow
def test_minutes_are_kept(tmp_path):
    """A real comparison ends when it should, coarsely: what a busy machine does to the last tenth is not ours."""
    started = time.time()
    names = ("base", "lora", "bitfit", "full")
    recipes = [make(name, {}) for name in names]
    result = compare(
        tiny_base(), tiny_task(), recipes, tmp_path, budget=Budget(minutes=0.4), invocation=Invocation(started=started)
    )
    assert 0.5 * 24 < time.time() - started < 1.5 * 24
    assert [row["status"] for row in result["rows"]] == ["ok"] * 4
    assert all(row["training"]["steps"] > 20 for row in result["rows"] if row["technique"] != "base")
