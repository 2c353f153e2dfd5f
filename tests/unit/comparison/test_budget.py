"""A budget: the steps that are chosen where none is given, and minutes, their shares and what happens at their end."""

import json
import time

import pytest

from tunewise.advice.plan.machine_rates import Rates
from tunewise.comparison.budget import Budget, Clock, chosen_steps, keep_choice, settled
from tunewise.comparison.compare import compare
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.invocation import Invocation
from tunewise.comparison.row import Runs
from tunewise.core.errors import SettingError
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, tiny_base, tiny_task

RATES = Rates(flops=1e11, bandwidth=1e10, overhead=0.0)


@pytest.mark.parametrize(
    ("examples", "parameters", "trainings", "steps", "why"),
    [
        (640, 3e6, 1, 240, "240 steps of 8 examples: 3 epochs of 640 examples, about 19 s a row on this machine."),
        (
            16_000,
            1e8,
            1,
            80,
            "80 steps of 8 examples: 0.04 epochs of 16,000 examples; more would take over 4 min a row on this machine "
            "(--epochs or --budget-steps for more).",
        ),
        (
            40,
            3e6,
            1,
            60,
            "60 steps of 8 examples: 12 epochs of 40 examples, as fewer steps teach too little to compare; about 5 s a "
            "row on this machine.",
        ),
        (
            16_000,
            1e9,
            3,
            60,
            "60 steps of 8 examples: 0.03 epochs of 16,000 examples, about 81 min a row on this machine; fewer steps "
            "teach too little to compare (--epochs or --budget-steps).",
        ),
    ],
)
def test_steps_follow_from_data_model_and_machine(examples, parameters, trainings, steps, why):
    chosen = chosen_steps(examples, 8, 48.0, int(parameters), RATES, trainings)
    assert chosen.steps == steps
    assert chosen.why == why
    assert chosen.epochs == steps * 8 / examples


def test_a_faster_machine_and_more_data_give_more_steps():
    fast = Rates(flops=1e14, bandwidth=2e12, overhead=0.0)
    steps = [
        chosen_steps(examples, 8, 50.0, 135_000_000, rates).steps
        for rates in (RATES, fast)
        for examples in (200, 2_000, 20_000)
    ]
    assert steps == sorted(steps) and steps[-1] > 50 * steps[0]
    assert all(float(f"{count:.2g}") == count for count in steps)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"steps": 5, "epochs": 2}, "gives steps and epochs"),
        ({"tokens": 5, "minutes": 2}, "gives tokens and minutes"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": float("nan")}, "epochs is nan"),
        ({"minutes": -1}, "minutes is -1"),
    ],
)
def test_one_length_is_given_and_it_is_more_than_nothing(lengths, message):
    with pytest.raises(SettingError, match=message):
        Budget(**lengths)


def test_epochs_and_the_steps_that_follow_are_recorded(tmp_path):
    task = tiny_task()
    recipes = [make(name, {}) for name in ("base", "bitfit")]
    budget = Budget(epochs=0.5, test_examples=4, validation_examples=4)
    result = compare(tiny_base(), task, recipes, tmp_path, budget=budget)
    assert result["budget"]["epochs"] == 0.5
    assert result["budget"]["steps"] == max(1, round(len(task.train) / 16))
    assert result["rows"][1]["training"]["steps"] == result["budget"]["steps"]


def test_what_was_chosen_in_a_folder_stays(tmp_path, monkeypatch):
    base, task, settings = tiny_base(), tiny_task(), TrainSettings()
    first = settled(Budget(), base, task, settings, tmp_path)
    keep_choice(first.chosen, tmp_path)
    monkeypatch.setattr(Rates, "for_model", lambda *given: pytest.fail("measured again"))
    assert settled(Budget(), base, task, settings, tmp_path) == first
    assert settled(Budget(steps=7), base, task, settings, tmp_path) == Budget(steps=7)
    with pytest.raises(pytest.fail.Exception, match="measured again"):  # it was chosen for other batches
        settled(Budget(), base, task, TrainSettings(per_device_train_batch_size=2), tmp_path)


def test_a_comparison_without_a_budget_says_what_it_chose_and_why(tmp_path):
    told = []
    recipes = [make(name, {}) for name in ("base", "bitfit")]
    for names in (1, 2):
        result = compare(
            tiny_base(),
            tiny_task(),
            recipes[:names],
            tmp_path,
            budget=Budget(test_examples=4, validation_examples=4),
            invocation=Invocation(on_message=told.append),
        )
    steps = result["budget"]["steps"]
    assert steps >= 60 and result["rows"][1]["training"]["steps"] == steps
    assert told == [result["budget"]["chosen"]] and told[0].startswith(f"{steps} steps of 8 examples: ")
    assert f"The budget was chosen: {told[0]}" in (tmp_path / "report.md").read_text()


def test_twice_the_time_is_twice_the_steps(tmp_path):
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    recipe = make("lora", {}).resolved(base)
    found = []
    for minutes in (1, 2):
        clock = Clock(minutes, time.monotonic(), tmp_path / f"{minutes}.json")
        clock._time_steps = lambda *given: (0.05, 0.0)
        found.append(clock.steps(recipe, context, TrainSettings(), rows=3, trials=2))
    assert found[0] == pytest.approx(0.9 * 60 / 3 / 2 / 0.05, rel=0.01)
    assert found[1] == pytest.approx(2 * found[0], rel=0.01)


def test_steps_once_decided_stay(tmp_path):
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    recipe = make("lora", {}).resolved(base)
    first = Clock(0.1, time.monotonic(), tmp_path / "paces.json").steps(recipe, context, TrainSettings(), 1, 1)
    again = Clock(0.1, time.monotonic() - 5, tmp_path / "paces.json").steps(recipe, context, TrainSettings(), 1, 1)
    assert first == again > 1


def test_another_budget_in_the_same_folder_is_another_number_of_steps(tmp_path):
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    recipe, found = make("lora", {}).resolved(base), []
    for minutes, trials in ((0.1, 1), (1, 1), (1, 2)):
        clock = Clock(minutes, time.monotonic(), tmp_path / "paces.json")
        clock._time_steps = lambda *given: (0.01, 0.0)
        found.append(clock.steps(recipe, context, TrainSettings(), 1, trials))
    assert found[1] > 5 * found[0] and found[2] < found[1]


def test_remedies_are_timed_too(tmp_path):
    """They need a memory of the base, which is taken before anything is attached."""
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    settings = TrainSettings(replay=0.5)
    clock = Clock(0.1, time.monotonic(), tmp_path / "paces.json")
    assert clock.steps(make("lora", {}).resolved(base), context, settings, 1, 1) > 1


def test_the_base_is_given_back_after_timing(tmp_path):
    base = tiny_base()
    before = base.fingerprint
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=None)
    Clock(0.1, time.monotonic(), tmp_path / "paces.json").steps(
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
        invocation=Invocation(started=time.monotonic() - 59.9),
        settings=TrainSettings(),
    )
    by_name = {row["technique"]: row for row in result["rows"]}
    assert list(by_name) == ["lora", "base", "bitfit"]  # as asked, though base went first
    assert (
        by_name["bitfit"]["status"] == "skipped"
        and "the budget of 1 minutes was used up" in by_name["bitfit"]["reason"]
    )


def test_a_technique_that_cannot_work_is_a_row_with_its_own_reason(tmp_path):
    result = compare(tiny_base(), tiny_task(), [make("mpt", {})], tmp_path, budget=Budget(minutes=5))
    assert result["rows"][0]["status"] == "failed" and "source" in result["rows"][0]["reason"]


def test_what_one_technique_learns_before_training_is_not_taken_from_the_others(tmp_path, monkeypatch):
    from tunewise.techniques.nonparametric import icl

    prepare = icl._ExamplesInPrompt.prepare
    monkeypatch.setattr(icl._ExamplesInPrompt, "prepare", lambda self, study: (time.sleep(3), prepare(self, study))[1])
    base = tiny_base()
    context = ComparisonContext(base, tiny_task(), validation=8, test=8, retention=Retention.measure(base, None))
    clock = Clock(1, time.monotonic(), tmp_path / "paces.json")
    runs = Runs(context, Budget(minutes=1), TrainSettings(), tmp_path, (), lambda *told: None, clock)
    row, _ = runs.row(make("icl", {}).resolved(base), 2)
    # The clock's figure is of scoring alone: what is left of the row's time is at least what was learnt before.
    assert row.cost.train_seconds > 3 and clock.scoring > 0
    assert clock.scoring < time.monotonic() - clock.started - 3


@pytest.mark.slow
def test_minutes_are_kept(tmp_path):
    """A real comparison ends when it should, coarsely: what a busy machine does to the last tenth is not ours."""
    started = time.monotonic()
    names = ("base", "lora", "bitfit", "full")
    recipes = [make(name, {}) for name in names]
    result = compare(
        tiny_base(), tiny_task(), recipes, tmp_path, budget=Budget(minutes=0.4), invocation=Invocation(started=started)
    )
    assert 0.5 * 24 < time.monotonic() - started < 1.5 * 24
    assert [row["status"] for row in result["rows"]] == ["ok"] * 4
    assert all(row["training"]["steps"] > 3 for row in result["rows"] if row["technique"] != "base")


def test_what_trains_nothing_chooses_within_the_budget_and_its_row_says_so(tmp_path):
    """A budget of more steps lets more be tried, and does not reuse the choice of the smaller one."""
    task, spent = tiny_task(), []
    for steps in (2, 60):
        result = compare(tiny_base(), task, [make("icl")], tmp_path, budget=Budget(steps=steps))
        row = result["rows"][0]
        encoded = encoder_for(attach(make("base"), tiny_base()), task).encode(task.train)
        tokens = steps * TrainSettings().rows * sum(len(sequence.ids) for sequence in encoded) / len(encoded)
        assert row["spent"]["preparing_tokens"] == row["training"]["preparing_tokens"] <= 1.5 * tokens
        assert row["training"]["tokens"] == 0
        spent.append(row["spent"]["preparing_tokens"])
    assert spent[0] < spent[1]


def test_minutes_give_what_chooses_an_allowance_that_a_continued_comparison_keeps(tmp_path):
    for _ in range(2):
        result = compare(tiny_base(), tiny_task(), [make("icl")], tmp_path, budget=Budget(minutes=1))
        decided = json.loads((tmp_path / "paces.json").read_text())
        assert [key for key in decided if key.startswith("icl,")] and result["rows"][0]["status"] == "ok"
    assert len(list((tmp_path / "trials").glob("icl-*"))) == 1
