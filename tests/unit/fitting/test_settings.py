"""The one ladder of settings that need ever less memory."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tunewise.core.errors import SettingError
from tunewise.fitting.settings import TrainSettings, ever_lighter


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("size", range(1, 65))
def test_every_rung_reads_the_same_rows_and_is_lighter(size, passes):
    settings = TrainSettings(per_device_train_batch_size=size, gradient_accumulation_steps=passes)
    rungs = list(ever_lighter(settings))
    assert rungs[0] == settings
    assert {rung.per_device_train_batch_size * rung.gradient_accumulation_steps for rung in rungs} == {size * passes}
    for heavier, lighter in pairwise(rungs):
        fewer = lighter.per_device_train_batch_size < heavier.per_device_train_batch_size
        assert fewer != (lighter.gradient_checkpointing > heavier.gradient_checkpointing)
    assert rungs[-1].per_device_train_batch_size == 1 and rungs[-1].gradient_checkpointing
    given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
    assert all(replace(rung, gradient_checkpointing=False, **given) == settings for rung in rungs)


@pytest.mark.parametrize(("size", "sizes"), [(8, [8, 4, 2, 1, 1]), (6, [6, 3, 1, 1]), (5, [5, 1, 1]), (1, [1, 1])])
def test_rows_a_pass_are_cut_where_they_divide(size, sizes):
    rungs = ever_lighter(TrainSettings(per_device_train_batch_size=size))
    assert [rung.per_device_train_batch_size for rung in rungs] == sizes


def test_what_is_computed_again_already_ends_the_ladder():
    settings = TrainSettings(per_device_train_batch_size=1, gradient_checkpointing=True)
    assert list(ever_lighter(settings)) == [settings]


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({"max_steps": 100, "load_best_model_at_end": True}, 25),
        ({"max_steps": 50, "load_best_model_at_end": True}, 13),
        ({"max_steps": 19, "load_best_model_at_end": True}, 0),
        ({"max_steps": 100}, 0),
        ({"max_steps": 100, "eval_steps": 7}, 7),
        ({"max_steps": 100, "early_stopping_patience": 2}, 10),
        ({"max_steps": 4, "early_stopping_patience": 2}, 1),
        ({"max_steps": 100, "early_stopping_patience": 2, "eval_steps": 3}, 3),
    ],
)
def test_validation_losses_are_as_many_as_their_purpose_needs(settings, interval):
    assert TrainSettings(**settings).evaluation_interval == interval


def test_keeping_the_best_reads_little_and_what_is_asked_for_reads_all():
    assert [TrainSettings(max_steps=steps).evaluated_examples(128) for steps in (20, 100, 240, 1000)] == [
        32,
        32,
        76,
        128,
    ]
    assert TrainSettings(max_steps=100).evaluated_examples(10) == 10
    assert TrainSettings(early_stopping_patience=2).evaluated_examples(128) == 128
    assert TrainSettings(eval_steps=2).evaluated_examples(128) == 128


def test_the_record_is_that_of_older_versions_where_training_is_the_same():
    """Trials and checkpoints are found by it."""
    new = {"early_stopping_patience", "load_best_model_at_end"}
    assert not new & TrainSettings(max_steps=8).to_json().keys()
    assert not new & TrainSettings(max_steps=100, eval_steps=5).to_json().keys()
    kept = TrainSettings(max_steps=20, load_best_model_at_end=True)
    assert new & kept.to_json().keys() == {"load_best_model_at_end"}
    assert new <= TrainSettings(early_stopping_patience=1).to_json().keys()


def test_early_stopping_that_cannot_be_is_refused():
    with pytest.raises(SettingError, match="early_stopping_patience"):
        TrainSettings(early_stopping_patience=-1)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 12), (0.5, 6), (3, 38), (0.001, 1)])
def test_epochs_are_steps(epochs, steps):
    assert TrainSettings().steps_for(epochs, 100) == steps


@pytest.mark.parametrize("epochs", [0, -1, float("nan"), float("inf")])
def test_no_number_of_epochs_is_refused(epochs):
    with pytest.raises(SettingError, match="num_train_epochs"):
        TrainSettings().steps_for(epochs, 100)
