"""A trial: what it does when memory runs out, and where it stops and goes on."""

from dataclasses import replace

import pytest

from tiers import in_full
from tunewise.comparison import trial as trials
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.trial import Trial, run, run_stage
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


class Killed(BaseException):
    """What ends a process; no `except Exception` catches it."""


def killed_after(steps):
    """A training that ends with its process after so many steps, as a kill does."""

    def attempt(attachment, sequences, settings, **options):
        def on_step(step, loss):
            options["on_step"](step, loss)
            if step == steps:
                raise Killed

        return train(attachment, sequences, settings, **{**options, "on_step": on_step})

    return attempt


RESULTS = ("validation_loss", "per_example", "nll", "training", "curve", "forgetting")


@pytest.mark.parametrize("name", ["lora", *in_full("lt_sft", "adalora")])
def test_killed_and_continued_no_bit_changes(context, tmp_path, name, monkeypatch):
    settings = {"save_steps": 1}
    whole = run(trial_of(name, **settings), context, tmp_path / "whole", finish=True)
    for steps in (2, 5):
        monkeypatch.setattr(trials, "train", killed_after(steps))
        with pytest.raises(Killed):
            run(trial_of(name, **settings), context, tmp_path / "parts", finish=True)
    monkeypatch.setattr(trials, "train", train)
    parts = run(trial_of(name, **settings), context, tmp_path / "parts", finish=True)
    for key in RESULTS:
        assert getattr(parts, key) == getattr(whole, key), key


@pytest.mark.parametrize("name", ["lt_sft", *in_full("lora", "adalora", "fish_mask")])
def test_a_stage_killed_in_its_middle_continues_to_the_same_bits(context, tmp_path, name, monkeypatch):
    stage_trial = stage_of(name, 0.5, max_steps=12, save_steps=1)
    whole = run_stage(stage_trial, context, tmp_path / "whole" / "trials")
    for steps in (2, 4):
        monkeypatch.setattr(trials, "train", killed_after(steps))
        with pytest.raises(Killed):
            run_stage(stage_trial, context, tmp_path / "parts" / "trials")
    monkeypatch.setattr(trials, "train", train)
    parts = run_stage(stage_trial, context, tmp_path / "parts" / "trials")
    for key in ("steps", "tokens", "validation_loss", "nll_rise", "preparing_tokens"):
        assert getattr(parts, key) == getattr(whole, key), key
    assert whole.steps == 6 and not list(tmp_path.glob("*/trials/*/checkpoint-*"))


@pytest.mark.parametrize(("name", "best"), [("lora", 18), *in_full(("lt_sft", 22), ("adalora", 32))])
def test_killed_and_continued_no_bit_changes_where_the_best_state_is_kept(context, tmp_path, name, best, monkeypatch):
    """Losses on the way are played, so that the best state is an earlier one and training stops early."""
    monkeypatch.setattr(trials, "train", with_lowest_loss(best))
    settings = {"max_steps": 40, "eval_steps": 2, "early_stopping_patience": 2, "save_steps": 2}
    whole = run(trial_of(name, **settings), context, tmp_path / "whole", finish=True)
    for steps in (11, 21):
        monkeypatch.setattr(trials, "train", with_lowest_loss(best, killed_after(steps)))
        with pytest.raises(Killed):
            run(trial_of(name, **settings), context, tmp_path / "parts", finish=True)
    monkeypatch.setattr(trials, "train", with_lowest_loss(best))
    parts = run(trial_of(name, **settings), context, tmp_path / "parts", finish=True)
    assert (whole.training.best_step, whole.training.steps) == (best, best + 4)
    assert whole.training.stopped_early and whole.cost.evaluation_seconds > 0
    for key in (*RESULTS, "validation_curve"):
        assert getattr(parts, key) == getattr(whole, key), key


def stage_of(name="lora", share=0.25, **settings):
    return replace(trial_of(name, **settings), share=share)


@pytest.mark.parametrize("name", ["lt_sft", *in_full("lora", "diff_pruning", "adalora")])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_stage_is_a_whole_training_of_fewer_steps(context, tmp_path, name, share):
    """Its schedule and its phases are those of its own steps, as if the budget were no larger."""
    stage = run_stage(stage_of(name, share, max_steps=24), context, tmp_path)
    alone = run(trial_of(name, max_steps=int(24 * share)), context, tmp_path, finish=False)
    assert (stage.steps, stage.tokens) == (alone.training.steps, alone.training.tokens)
    assert stage.validation_loss == alone.validation_loss


def test_how_many_weights_are_chosen_shows_in_every_stage(context, tmp_path):
    losses = set()
    for density in (0.002, 0.01, 0.05):
        recipe = make("lt_sft", {"lt_sft": {"density": density}}).resolved(context.base)
        stage = Trial(recipe, 0, TrainSettings(max_steps=16, per_device_train_batch_size=8), share=0.25)
        losses.add(run_stage(stage, context, tmp_path).validation_loss)
    assert len(losses) == 3


def test_a_stage_takes_its_share_of_the_tokens_and_a_step_for_each_phase(context, tmp_path):
    recipe, settings = make("lora", {}).resolved(context.base), TrainSettings(per_device_train_batch_size=2)
    whole = run(Trial(recipe, 0, settings, tokens=2000), context, tmp_path, finish=False)
    quarter = run_stage(Trial(recipe, 0, settings, tokens=2000, share=0.25), context, tmp_path)
    assert 500 <= quarter.tokens < 700 and whole.training.tokens >= 2000
    assert run_stage(stage_of("lt_sft", max_steps=4), context, tmp_path).steps == 2


def with_lowest_loss(best, train=train):
    """A training whose validation loss falls up to a step and rises from there."""

    def attempt(attachment, sequences, settings, **options):
        step = max([0, *(int(path.name[11:]) for path in options["folder"].glob("checkpoint-*"))])

        def evaluate():
            nonlocal step
            step += settings.eval_steps - step % settings.eval_steps
            return 1.0 + abs(step - best)

        return train(attachment, sequences, settings, **{**options, "evaluate": evaluate})

    return attempt


def test_a_stage_that_stops_early_is_ranked_by_its_best_state(context, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "train", with_lowest_loss(2))
    settings = {"eval_steps": 2, "early_stopping_patience": 1}
    stage = run_stage(stage_of(share=0.5, max_steps=20, **settings), context, tmp_path)
    assert stage.steps == 4
    record = run(trial_of(max_steps=10, **settings), context, tmp_path, finish=True)
    assert record.validation_loss == stage.validation_loss
    assert (record.training.best_step, record.training.steps) == (2, 4)


def test_the_best_of_four_evaluations_is_kept_on_demand(context, tmp_path):
    assert run(trial_of(max_steps=20), context, tmp_path, finish=True).validation_curve is None
    record = run(trial_of(max_steps=20, load_best_model_at_end=True), context, tmp_path, finish=True)
    losses = dict(record.validation_curve)
    assert list(losses) == [5, 10, 15, 20]
    assert record.training.best_step == min(losses, key=losses.get) and record.training.stopped_early is None


def test_a_stage_is_not_run_twice(context, tmp_path, monkeypatch):
    first = run_stage(stage_of(), context, tmp_path)
    run(trial_of(), context, tmp_path, finish=True)
    monkeypatch.setattr(trials, "train", lambda *given, **more: pytest.fail("trained again"))
    assert run_stage(stage_of(), context, tmp_path) == first


def test_a_stage_that_failed_is_a_record_with_its_reason(context, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "train", lambda *given, **more: (_ for _ in ()).throw(DivergedError("step 3")))
    failed = run_stage(stage_of(), context, tmp_path)
    assert (failed.status, failed.reason) == ("failed", "step 3")
    monkeypatch.setattr(trials, "train", train)
    assert run_stage(stage_of(), context, tmp_path) == failed  # it would diverge again
    assert run(trial_of(), context, tmp_path, finish=True).status == "ok"  # which is another trial


def test_six_rows_a_pass_become_three_and_one_as_a_plan_promises(context, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(trials, "train", greedy(1, tried))
    record = run(trial_of(per_device_train_batch_size=6), context, tmp_path, finish=True)
    assert tried == [(6, False), (3, False), (1, False)] and record.memory.endswith("6 passes per step")


def test_what_a_stage_found_too_large_is_not_tried_again(context, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(trials, "train", greedy(4, tried))
    run_stage(stage_of(max_steps=16), context, tmp_path)
    record = run(trial_of(max_steps=16), context, tmp_path, finish=True)
    assert tried == [(8, False), (4, False), (4, False)] and "4 examples per pass" in record.memory


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


def test_the_adaptation_is_kept_by_the_trackers_before_they_close(context, tmp_path, monkeypatch):
    events = []
    kept = lambda self, folder: events.append((folder / "adaptation.json").is_file())  # noqa: E731
    monkeypatch.setattr("tunewise.fitting.trackers.Trackers.keep", kept)
    monkeypatch.setattr("tunewise.fitting.trackers.Trackers.finish", lambda self: events.append("closed"))
    assert run(trial_of(), context, tmp_path, finish=True).status == "ok" and events == [True, "closed"]


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
