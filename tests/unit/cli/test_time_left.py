"""How long is left: from an estimate, from what finished rows took, and from the pace of a stage; on a fake clock."""

from dataclasses import replace

import pytest

from fake_clock import Clock
from tunewise.cli.time_left import Tracker
from tunewise.core.progress import FORGETTING, PREPARING, SCORING, TRAINING, RowStart, training_report
from tunewise.results.estimate import Estimate, RowEstimate


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tracker(clock):
    return Tracker(clock)


def row_estimate(name, training):
    return RowEstimate(
        technique=name, preparing=2.0, training=training, scoring=10.0, forgetting=8.0, peak_memory_bytes=1
    )


ESTIMATE = Estimate(
    startup=20.0, rows=(row_estimate("base", 0.0), row_estimate("lora", 80.0), row_estimate("full", 80.0))
)


def run_row(tracker, clock, start, factor=1.0, training=80.0):
    """Run a row that takes `factor` times what is estimated."""
    tracker.start_row(start)
    for stage, seconds in ((PREPARING, 2.0), (TRAINING, training), (SCORING, 10.0), (FORGETTING, 8.0)):
        if seconds:
            tracker.report(start.technique, stage, 0, 0)
            clock.seconds += factor * seconds
    return tracker.end_row()


def test_before_the_first_row_the_whole_estimate_is_left(tracker, clock):
    assert tracker.left() is None
    tracker.expect(ESTIMATE)
    assert tracker.left() == ESTIMATE.seconds == 240.0
    tracker.report("model", "loading", 0, 0)
    clock.seconds = 15.0
    assert tracker.left() == 225.0
    clock.seconds = 50.0
    assert tracker.left() == 220.0


def test_what_is_left_of_an_estimate_is_scaled_by_what_rows_really_took(tracker, clock):
    tracker.expect(ESTIMATE)
    assert run_row(tracker, clock, RowStart("base", 1, 3, 1), factor=1.5, training=0.0) == 30.0
    tracker.start_row(RowStart("lora", 2, 3, 1))
    assert tracker.left() == pytest.approx(1.5 * 200)
    tracker.report("lora", PREPARING, 0, 0)
    clock.seconds += 3.0
    tracker.report("lora", TRAINING, 0, 40)
    assert tracker.left() == pytest.approx(1.5 * 198)


def test_the_pace_of_a_single_training_replaces_its_estimate(tracker, clock):
    tracker.expect(ESTIMATE)
    tracker.start_row(RowStart("lora", 1, 2, 1))
    tracker.report("lora", TRAINING, 0, 40)
    for step in range(1, 21):
        clock.seconds += 1.0
        tracker.report("lora", training_report(1.0), step, 40)
    others = 20.0 + 100.0  # the rows that have not begun
    assert tracker.left() == pytest.approx(20.0 + 18.0 + others)
    clock.seconds += 5.0  # nothing is reported meanwhile
    assert tracker.left() == pytest.approx(15.0 + 18.0 + others)


def test_a_row_that_is_read_from_disk_scales_nothing(tracker, clock):
    tracker.expect(ESTIMATE)
    tracker.start_row(RowStart("base", 1, 3, 1))
    clock.seconds += 0.1
    tracker.end_row()
    tracker.start_row(RowStart("lora", 2, 3, 1))
    assert tracker.left() == pytest.approx(200.0)


def test_a_second_worker_does_not_forget_what_rows_took(tracker, clock):
    tracker.expect(ESTIMATE)
    run_row(tracker, clock, RowStart("base", 1, 3, 1), factor=2.0, training=0.0)
    tracker.start_row(RowStart("base", 1, 3, 1))
    tracker.end_row()
    tracker.start_row(RowStart("lora", 2, 3, 1))
    assert tracker.left() == pytest.approx(400.0)


def test_without_an_estimate_the_rows_that_trained_say_what_the_others_take(tracker, clock):
    run_row(tracker, clock, RowStart("base", 1, 4, 1), training=0.0)
    assert tracker.left() is None
    tracker.start_row(RowStart("lora", 2, 4, 1))
    assert tracker.left() is None, "nothing has trained yet"
    tracker.end_row()
    run_row(tracker, clock, RowStart("lora", 2, 4, 1))
    tracker.start_row(RowStart("full", 3, 4, 1))
    assert tracker.left() == pytest.approx(200.0)
    tracker.report("full", PREPARING, 0, 0)
    clock.seconds += 2.0
    tracker.report("full", TRAINING, 0, 40)
    clock.seconds += 30.0
    assert tracker.left() == pytest.approx(168.0)


def test_without_an_estimate_the_first_training_gives_a_first_figure(tracker, clock):
    tracker.start_row(RowStart("lora", 1, 2, 1))
    tracker.report("lora", TRAINING, 0, 10)
    clock.seconds += 5.0
    tracker.report("lora", training_report(1.0), 1, 10)
    assert tracker.left() == pytest.approx(45.0 + 50.0)


def test_rows_by_advice_have_no_end_that_is_known(tracker, clock):
    run_row(tracker, clock, RowStart("lora", 1, None, 1))
    tracker.start_row(RowStart("full", 2, None, 1))
    assert tracker.left() is None


def test_a_slow_first_step_is_left_out_of_the_pace(tracker, clock):
    tracker.report("lora", TRAINING, 0, 10)
    for step, seconds in ((1, 5.0), (2, 1.0)):
        clock.seconds += seconds
        tracker.report("lora", training_report(1.0), step, 10)
    assert tracker.stage_left() == pytest.approx(8.0)


def test_a_resumed_training_is_not_taken_for_a_fast_one(tracker, clock):
    tracker.report("lora", TRAINING, 0, 100)
    clock.seconds += 1.0
    tracker.report("lora", training_report(1.0), 51, 100)
    assert tracker.stage_left() is None
    clock.seconds += 2.0
    tracker.report("lora", training_report(1.0), 52, 100)
    assert tracker.stage_left() == pytest.approx(96.0)


def test_workers_share_what_is_left_and_rows_that_end_beside_another_are_done(tracker, clock):
    estimate = replace(ESTIMATE, workers=2)
    assert estimate.seconds == 20 + max((20 + 100 + 100) / 2, 100) and estimate.peak_memory_bytes == 2
    tracker.expect(estimate)
    clock.seconds += 20.0
    assert tracker.left() == 220 / 2
    tracker.start_row(RowStart("lora", 2, 3, 1))
    assert tracker.left() == 100 + (20 + 100) / 2
    tracker.note_end("full")
    assert tracker.left() == 100 + 20 / 2
    tracker.note_end("lora")  # it ends as every row does
    assert tracker.row == RowStart("lora", 2, 3, 1)
