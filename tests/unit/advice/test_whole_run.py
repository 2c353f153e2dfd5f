"""What a whole comparison is expected to take: its parts, and what is left of it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tunewise.advice.plan import tracing
from tunewise.advice.plan.machine_rates import Rates, forward_backward_seconds
from tunewise.advice.plan.planner import Planner
from tunewise.advice.plan.shallow_copies import at_depth, depth_of, depths_of
from tunewise.advice.plan.tracing import Tracer
from tunewise.advice.plan.weightless import sketch
from tunewise.advice.plan.whole_run import Share, WholeRun, Workload
from tunewise.fitting.settings import TrainSettings
from tunewise.results.schema import Comparison
from tunewise.techniques.registry import make
from tunewise.testing import tiny_task

RATES = Rates(1e9, 1e9, 1e-5)
SETTINGS = TrainSettings(max_steps=4, per_device_train_batch_size=4)


@pytest.fixture(scope="module")
def sketched(tmp_path_factory, save_tiny):
    return sketch(save_tiny(tmp_path_factory.mktemp("sketch") / "tiny"))


@pytest.fixture(scope="module")
def workload():
    task = tiny_task()
    return Workload(task=task, validation=task.validation, test=task.test, settings=SETTINGS, held_bytes=1e8)


def test_a_row_that_trains_takes_longer_and_more_steps_take_longer_still(sketched, workload):
    run = WholeRun(sketched, workload, RATES)
    base, full = run.row(make("base", {})), run.row(make("full", {}))
    longer = WholeRun(sketched, replace(workload, settings=replace(SETTINGS, max_steps=8)), RATES)
    assert base.training == 0 < full.training
    assert base.scoring > 0 and base.forgetting == 0  # nothing is measured again for the bare model
    assert 0 < run.row(make("icl", {})).forgetting < full.forgetting  # other text is read as the base reads it
    assert longer.row(make("full", {})).training == pytest.approx(2 * full.training, rel=0.01)
    assert full.peak_memory_bytes >= base.peak_memory_bytes > 1e8


def test_seeds_and_a_search_multiply_what_they_repeat(sketched, workload):
    once = WholeRun(sketched, workload, RATES).row(make("full", {}))
    more = WholeRun(sketched, replace(workload, seeds=2, search=3), RATES).row(make("full", {}))
    assert more.training == pytest.approx(4 * once.training, rel=0.05)
    assert more.forgetting == pytest.approx(2 * once.forgetting)


def test_what_is_finished_costs_nothing(sketched, workload):
    run, done = WholeRun(sketched, workload, RATES), Share(trainings=0, scorings=0, preparations=0)
    both = [make("base", {}), make("full", {})]
    left = run.estimate(both, {"full": done})
    assert [row.technique for row in left.rows] == ["base"]
    assert run.estimate(both, {"full": done, "base": done}).seconds == 0


def test_minutes_are_shared_by_the_rows_that_train(sketched, workload):
    run = WholeRun(sketched, replace(workload, minutes=30.0), Rates(1e11, 1e11, 1e-7))
    estimate = run.estimate([make("base", {}), make("full", {})])
    assert estimate.seconds == pytest.approx(1800)
    longer = WholeRun(sketched, replace(workload, minutes=60.0), Rates(1e11, 1e11, 1e-7))
    more = longer.estimate([make("base", {}), make("full", {})]).fewest_steps
    assert more == pytest.approx(2 * estimate.fewest_steps, rel=0.01)
    assert run.estimate([make("base", {})]).fewest_steps is None
    in_steps = WholeRun(sketched, workload, RATES).estimate([make("full", {})])
    assert in_steps.fewest_steps is None and "fewest_steps" not in in_steps.to_json()


def test_choosing_examples_stays_within_what_a_training_reads(sketched, workload):
    few = WholeRun(sketched, workload, RATES).row(make("icl", {}))
    more = replace(workload, settings=replace(SETTINGS, max_steps=100 * SETTINGS.max_steps))
    many = WholeRun(sketched, more, RATES).row(make("icl", {}))
    assert 0 < few.preparing < many.preparing
    assert few.scoring <= many.scoring, "more examples in the prompt take longer to read"


def test_what_is_read_before_training_counts_once_for_a_search(sketched, workload):
    def row(name, **changes):
        return WholeRun(sketched, replace(workload, **changes), RATES).row(make(name, {}))

    searched, seeds = row("fish_mask", search=4), row("fish_mask", seeds=3)
    once, nothing = row("fish_mask"), row("bitfit")
    reading = once.preparing - nothing.preparing
    assert reading > 0
    assert searched.preparing == pytest.approx(reading + row("bitfit", search=4).preparing)
    assert seeds.preparing == pytest.approx(3 * reading + row("bitfit", seeds=3).preparing)
    assert searched.training == pytest.approx(4 * once.training)


def test_a_share_that_is_done_is_not_left():
    whole, done = (Share(trainings=3.0, scorings=2, preparations=2), Share(trainings=2.0, scorings=1, preparations=1))
    assert whole.without(done) == Share(trainings=1.0, scorings=1, preparations=1)
    assert whole.without(whole).nothing and done.without(whole).nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "near", "peak"),
    [
        *(
            (name, 0.001, 0.01)
            for name in ("base", "full", "lora", "qlora", "last_layers", "threshold_mask", "lst", "icl")
        ),
        ("adalora", 0.1, 0.05),  # which ranks it stores is chosen in training
        ("prefix_tuning", 0.001, 0.05),  # the prefix of all blocks is one tensor
    ],
)
def test_a_deep_model_is_traced_from_shallow_copies(sketched, monkeypatch, name, near, peak):
    """What follows from two shallow copies is what the deep model shows; names of blocks differ in length."""
    deep, technique = at_depth(sketched, 16), make(name, {})
    assert depth_of(deep) == 16 and depths_of(deep)
    shallow = Tracer(deep).trace(tiny_task(), technique, SETTINGS)
    monkeypatch.setattr(tracing, "depths_of", lambda sketch: [])
    whole = Tracer(deep).trace(tiny_task(), technique, SETTINGS)
    assert shallow.training.optimised == whole.training.optimised
    assert shallow.training.weights == whole.training.weights
    assert shallow.stored == pytest.approx(whole.stored, rel=near)
    assert shallow.stored_bytes == pytest.approx(whole.stored_bytes, rel=near)
    assert shallow.training.passes.flops == pytest.approx(whole.training.passes.flops, rel=0.01)
    assert shallow.training_peak == pytest.approx(whole.training_peak, rel=peak)
    assert shallow.scoring_peak == pytest.approx(whole.scoring_peak, rel=peak)
    assert shallow.answers.each.flops == pytest.approx(whole.answers.each.flops, rel=0.02)


def test_a_trace_is_made_once_for_a_plan_and_the_whole_run(sketched, workload, monkeypatch):
    observed, observe = [], tracing.observe

    def counted(sketched, subject, device, **asked):
        observed.append(subject.technique.name)
        return observe(sketched, subject, device, **asked)

    monkeypatch.setattr(tracing, "observe", counted)
    planner = Planner(sketched, workload.task, [make("lora", {})], SETTINGS, whole_run=True)
    planner.rows(1e12)
    before = list(observed)
    WholeRun(sketched, workload, RATES, tracer=planner.tracer).row(make("lora", {}))
    assert sorted(before) == ["base", "lora"] and observed == before


def test_rates_at_a_models_shapes_are_positive(sketched):
    rates = Rates.for_model(sketched.config)
    assert min(rates.flops, rates.bandwidth, rates.overhead) > 0
    assert forward_backward_seconds(1000, 10, rates) == pytest.approx(60000 / rates.flops)


def _compared(model: str, data: str, name: str, out: Path) -> Comparison:
    words = ["--model", model, "--data", data, "-t", name, "--budget-steps", "2", "--test-examples", "32"]
    words += ["--validation-examples", "32", "--yes", "--json", "--out", str(out)]
    command = [sys.executable, "-m", "tunewise.cli", "compare", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("Estimate: about ") or "\nEstimate: about " in done.stderr
    return Comparison.from_json(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "lora", "full", "icl"])
def test_memory_of_the_process_is_as_expected(name, tmp_path):
    result = _compared("world", "world:town", name, tmp_path / "out")
    assert result.estimate.peak_memory_bytes == pytest.approx(result.process_peak_bytes, rel=0.3)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_of_a_real_model_is_as_expected(real, instruct_model, tmp_path):
    result = _compared(str(instruct_model), str(real / "tasks" / "trec6"), "full", tmp_path / "out")
    assert result.estimate.peak_memory_bytes == pytest.approx(result.process_peak_bytes, rel=0.3)
