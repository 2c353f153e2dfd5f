"""What is asked again after each trial is asked without what a technique found for its own task."""

from dataclasses import replace

import pytest
import torch

from tunewise.comparison.probe import TaskProbe
from tunewise.fitting.scoring import score
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def biased(base, bias):
    """The base's answers with a bias, as calibrated examples have one."""
    attachment = attach(make("base"), base)
    attachment.label_bias = lambda: torch.tensor(bias, dtype=torch.float64)
    return attachment


def test_a_probe_is_asked_without_the_bias_of_the_task(base):
    task = tiny_task()
    plain = attach(make("base"), base)
    expected = score(plain, task, task.test)
    rarest = min(task.labels, key=expected.predictions.count)
    assert set(expected.predictions) != {rarest}
    always_one = biased(base, [1e3 * (label == rarest) for label in task.labels])
    assert set(score(always_one, task, task.test).predictions) == {rarest}
    asked = score(always_one, task, task.test, as_given=True)
    assert asked.predictions == expected.predictions
    assert TaskProbe.of(task).score(always_one, task) == TaskProbe.of(task).score(plain, task)


@pytest.mark.parametrize("labels", [1, 40])
def test_a_probe_may_have_other_labels_than_the_task(base, labels):
    task = tiny_task()
    words = ("cat", "dog", "mat", "old", "town", "trees", "small", "birds")
    more = tuple(f"{one} {two}" for one in words for two in words)[:labels]
    probe = replace(task, labels=(*task.labels, *more))
    plain = attach(make("base"), base)
    attachment = biased(base, [1.0] * len(task.labels))
    assert TaskProbe.of(probe).score(attachment, task) == TaskProbe.of(probe).score(plain, task)
