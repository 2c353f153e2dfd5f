"""The one ladder of settings that need ever less memory."""

from dataclasses import replace
from itertools import pairwise

import pytest

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
