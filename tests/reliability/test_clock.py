"""A wall clock that is set back and forth while something runs changes nothing: durations are of a monotonic clock."""

import itertools
import math
import time

import pytest

import figures
from comparison_result import timeless
from tunewise.adaptation.fit import fit
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.comparison.invocation import Invocation
from tunewise.core import artifact_writer
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

pytestmark = pytest.mark.figure("R15")

DAY = 86_400.0
BACK_AND_FORTH = {"back and forth": [DAY * step * (-1) ** step for step in range(1, 1000)]}
ONE_WAY = {"forwards": [DAY * step for step in range(1, 1000)], "backwards": [-DAY * step for step in range(1, 1000)]}
JUMPS = figures.of(BACK_AND_FORTH, BACK_AND_FORTH | ONE_WAY)


@pytest.fixture
def clock(monkeypatch):
    """A function that lets the wall clock jump by these seconds, one at each look at it, from its second look on."""
    real = time.time

    def jump(by):
        offsets = itertools.cycle(by)
        monkeypatch.setattr(time, "time", lambda: real() + next(offsets))

    yield jump
    monkeypatch.undo()


def durations(value, name=""):
    """Every number below a name that ends in "seconds"."""
    if isinstance(value, dict):
        return [found for key, each in value.items() for found in durations(each, key)]
    if isinstance(value, list | tuple):
        return [found for each in value for found in durations(each, name)]
    return [value] if name.endswith("seconds") and isinstance(value, int | float) else []


def compared(out, budget):
    estimates = []
    result = compare(
        tiny_base(),
        tiny_task(),
        [make("base"), make("bitfit")],
        out,
        budget=budget,
        retention=["the cat sat on a mat"],
        invocation=Invocation(on_estimate=estimates.append),
    )
    return result, estimates


@pytest.mark.parametrize("jumps", JUMPS)
def test_a_fit_takes_the_time_that_it_takes(tmp_path, clock, jumps):
    def fitted(out):
        settings = TrainSettings(max_steps=4, save_steps=1, eval_steps=2)
        record = fit(tiny_base(), tiny_task(), make("bitfit"), out, settings=settings)
        return record, artifact_writer.read(out / "adaptation").tensors("weights.safetensors")

    _, expected = fitted(tmp_path / "still")
    clock(JUMPS[jumps])
    record, weights = fitted(tmp_path / "jumping")
    assert weights.keys() == expected.keys() and all(weights[name].equal(expected[name]) for name in weights)
    found = durations(record)
    assert len(found) > 2 and all(0 <= seconds < 3600 for seconds in found), record


@pytest.mark.parametrize("jumps", JUMPS)
def test_a_comparison_takes_the_time_that_it_takes(tmp_path, clock, jumps):
    expected, _ = compared(tmp_path / "still", Budget(steps=4))
    clock(JUMPS[jumps])
    result, [estimate] = compared(tmp_path / "jumping", Budget(steps=4))
    assert timeless(result) == timeless(expected)
    found = durations(result)
    assert len(found) > 5 and all(0 <= seconds < 3600 for seconds in found), result
    assert 0 <= estimate.startup < 3600 and math.isfinite(estimate.startup)


@pytest.mark.parametrize("jumps", JUMPS)
def test_a_budget_in_minutes_is_kept(tmp_path, clock, jumps):
    clock(JUMPS[jumps])
    result, _ = compared(tmp_path, Budget(minutes=0.3))
    assert [row["status"] for row in result["rows"]] == ["ok", "ok"], "no row is skipped because its time was used up"
    assert 1 <= result["rows"][1]["training"]["steps"] < 1_000_000
