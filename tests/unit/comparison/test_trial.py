"""A trial: what it does when memory runs out, and where it stops and goes on."""

import pytest

from tunewise.comparison import trial as trials
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.trial import Trial, run
from tunewise.core.errors import DivergedError
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task


@pytest.fixture
def context():
    base, task = tiny_base(), tiny_task()
    return ComparisonContext(
        base, task, validation=8, test=8, retention=Retention.measure(base, None), attempt_id="now"
    )


def trial_of(name="lora", **settings):
    options = {"max_steps": 8, "per_device_train_batch_size": 8, **settings}
    return Trial(make(name, {}).resolved(tiny_base()), 0, TrainSettings(**options))


def greedy(limit, calls):
    """A training that has memory for so many examples per pass, or for any number with gradient checkpointing."""

    def attempt(attachment, sequences, settings, **options):
        calls.append((settings.per_device_train_batch_size, settings.gradient_checkpointing))
        done = train(attachment, sequences, settings, **{**options, "until": 2})  # some steps before it happens
        if settings.per_device_train_batch_size > limit and not settings.gradient_checkpointing:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        assert done.steps == 2
        return train(attachment, sequences, settings, **options)

    return attempt


@pytest.mark.parametrize(
    ("limit", "calls", "said"),
    [
        (2, [(8, False), (4, False), (2, False)], "out of memory: 2 examples per pass, 4 passes per step"),
        (0, [(8, False), (4, False), (2, False), (1, False), (1, True)], "with gradient checkpointing"),
    ],
)
def test_out_of_memory_takes_less_for_the_same_steps(context, tmp_path, monkeypatch, limit, calls, said):
    plain = run(trial_of(), context, tmp_path / "plain", finish=True)
    found = []
    monkeypatch.setattr(trials, "train", greedy(limit, found))
    record = run(trial_of(), context, tmp_path / "poor", finish=True)
    assert found == calls
    assert record.status == "ok" and said in record.memory
    assert record.training.steps == 8
    assert record.validation_loss == pytest.approx(plain.validation_loss, rel=1e-5)


def test_out_of_memory_in_the_end_is_a_row_with_its_reason(context, tmp_path, monkeypatch):
    def never(*given, **more):
        raise MemoryError

    monkeypatch.setattr(trials, "train", never)
    record = run(trial_of(), context, tmp_path, finish=True)
    assert record.status == "failed" and record.reason.startswith("out of memory, even with one example per pass")


@pytest.mark.parametrize("name", ["lora", "lt_sft", "adalora"])
def test_stopping_and_going_on_changes_no_bit(context, tmp_path, name):
    whole = run(trial_of(name), context, tmp_path / "whole", finish=True)
    stages = [run(trial_of(name), context, tmp_path / "parts", finish=False, until=share) for share in (0.25, 0.5)]
    assert [stage.steps for stage in stages] == [2, 4]
    assert stages[0].tokens < stages[1].tokens
    parts = run(trial_of(name), context, tmp_path / "parts", finish=True)
    for key in ("validation_loss", "per_example", "nll", "training", "curve", "forgetting"):
        assert getattr(parts, key) == getattr(whole, key), key


def test_a_stage_is_not_run_twice(context, tmp_path, monkeypatch):
    first = run(trial_of(), context, tmp_path, finish=False, until=0.25)
    monkeypatch.setattr(trials, "train", lambda *given, **more: pytest.fail("trained again"))
    assert run(trial_of(), context, tmp_path, finish=False, until=0.25) == first


def test_a_stage_stays_what_it_was_when_the_trial_is_over(context, tmp_path):
    """A comparison that is killed after a winner's trial reads its search again, and must find what it saw."""
    first = run(trial_of(), context, tmp_path, finish=False, until=0.25)
    run(trial_of(), context, tmp_path, finish=True)
    assert run(trial_of(), context, tmp_path, finish=False, until=0.25) == first


def test_what_failed_is_tried_again_in_another_attempt_unless_it_must_fail_again(context, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "train", lambda *given, **more: (_ for _ in ()).throw(ValueError("odd")))
    assert run(trial_of(), context, tmp_path, finish=True).reason == "ValueError: odd"
    monkeypatch.setattr(trials, "train", train)
    assert run(trial_of(), context, tmp_path, finish=True).status == "failed"
    context.attempt_id = "later"
    assert run(trial_of(), context, tmp_path, finish=True).status == "ok"

    wild = trial_of("full")
    monkeypatch.setattr(trials, "train", lambda *given, **more: (_ for _ in ()).throw(DivergedError("step 3")))
    first = run(wild, context, tmp_path, finish=True)
    context.attempt_id = "much later"
    monkeypatch.setattr(trials, "train", lambda *given, **more: pytest.fail("trained again"))
    assert run(wild, context, tmp_path, finish=True) == first and first.reason == "step 3"


@pytest.mark.parametrize("error", [AttributeError("odd"), ZeroDivisionError("odd"), AssertionError("odd")])
def test_any_error_of_a_technique_costs_its_row_alone(context, tmp_path, monkeypatch, error):
    def fails(*given, **more):
        raise error

    monkeypatch.setattr(trials, "train", fails)
    assert run(trial_of(), context, tmp_path, finish=True).reason == f"{type(error).__name__}: odd"
    monkeypatch.setattr(trials, "train", train)
    assert run(trial_of("bitfit"), context, tmp_path, finish=True).status == "ok"


def test_trackers_are_closed_where_training_fails(context, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("tunewise.fitting.trackers.Trackers.finish", lambda self: closed.append(1))
    monkeypatch.setattr(trials, "train", lambda *given, **more: (_ for _ in ()).throw(DivergedError("step 3")))
    assert run(trial_of(), context, tmp_path, finish=True).status == "failed" and closed == [1]


def test_costs_say_what_can_be_done_with_it(context, tmp_path):
    facts = {}
    for name in ("base", "full", "lora", "prompt_tuning"):
        cost = run(trial_of(name), context, tmp_path, finish=True).cost
        facts[name] = (cost.merges, cost.swappable)
    assert facts == {
        "base": (True, True),
        "full": (True, False),
        "lora": (True, True),
        "prompt_tuning": (False, True),
    }


def test_how_far_the_weights_moved(context, tmp_path):
    found = {name: run(trial_of(name), context, tmp_path, finish=True).forgetting for name in ("base", "full", "lora")}
    assert found["base"].weight_change is None and not any(found["base"].to_json().values())
    assert found["lora"].weight_change > 0 and 0 < found["full"].weight_change < 1
    for name in ("full", "lora"):
        assert found[name].nll_rise_low < found[name].nll_rise < found[name].nll_rise_high
        assert found[name].kl_task > 0
