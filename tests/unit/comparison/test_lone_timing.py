"""Which seconds a row takes: those of its trial, or those that were measured alone."""

import pytest

from comparison_result import comparison
from tunewise.comparison.lone_timing import mark_neighbours, needs_timing, with_lone_times
from tunewise.comparison.trial_records import LoneTiming, read_timing, write_timing


@pytest.fixture
def row():
    """A row that took time to train."""
    return next(row for row in comparison().rows if row.status == "ok" and row.cost.train_seconds)


def timed(row, folder, faster, *, mixed):
    """The row when alone it answered and trained so many times as fast as in its trial."""
    timing = LoneTiming(
        neighbours=1,
        mixed=mixed,
        tokens_per_second=row.cost.tokens_per_second * faster,
        seconds_per_example=row.cost.seconds_per_example / faster,
        device="T4",
    )
    trial = (folder / row.adaptation).parent
    trial.mkdir(parents=True)
    write_timing(trial, timing)
    (found,) = with_lone_times([row], folder)
    return found.cost


def test_neighbours_only_ever_make_seconds_longer(row, tmp_path):
    cost = timed(row, tmp_path / "faster", 2.0, mixed=False)
    assert cost.seconds_per_example == row.cost.seconds_per_example / 2 and cost.timed_alone and not cost.timed_on
    assert cost.train_seconds < row.cost.train_seconds
    cost = timed(row, tmp_path / "slower", 0.5, mixed=False)
    assert cost.seconds_per_example == row.cost.seconds_per_example and cost.train_seconds == row.cost.train_seconds


@pytest.mark.parametrize("faster", [2.0, 0.5])
def test_on_devices_of_several_kinds_the_seconds_of_one_of_them_count(row, tmp_path, faster):
    cost = timed(row, tmp_path, faster, mixed=True)
    assert cost.seconds_per_example == row.cost.seconds_per_example / faster and cost.timed_on == "T4"
    preparing = row.cost.preparing_seconds or 0.0
    assert cost.train_seconds == pytest.approx(preparing + (row.cost.train_seconds - preparing) / faster)


def test_a_trial_is_marked_once(tmp_path):
    assert not needs_timing(tmp_path)
    mark_neighbours(tmp_path / "trial", 3, mixed=True)
    mark_neighbours(tmp_path / "trial", 1)
    assert read_timing(tmp_path / "trial") == LoneTiming(neighbours=3, mixed=True)
    assert needs_timing(tmp_path / "trial")


def test_what_was_timed_before_kinds_were_mixed_is_timed_again(tmp_path):
    mark_neighbours(tmp_path, 1)
    write_timing(tmp_path, LoneTiming(neighbours=1, seconds_per_example=0.5, device="A100"))
    mark_neighbours(tmp_path, 1)
    assert not needs_timing(tmp_path)
    mark_neighbours(tmp_path, 1, mixed=True)
    assert needs_timing(tmp_path)
