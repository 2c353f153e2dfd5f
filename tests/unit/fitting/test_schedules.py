"""The schedules of the learning rate: the default one is Hugging Face's, to the bit."""

import pytest
import torch
from transformers import get_scheduler

from tunewise.fitting.schedules import schedule_of
from tunewise.fitting.settings import TrainSettings


def rates(schedule, steps):
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return [*seen, schedule.get_last_lr()]


def optimizer():
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 1e-3}, {"params": [torch.zeros(1)], "lr": 0.07}])


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (1, 1), (3, 3), (0, 7), (6, 100), (2, 33)])
def test_the_default_is_hugging_face_s_to_the_bit(warmup, steps):
    name = TrainSettings().lr_scheduler_type
    theirs = get_scheduler(name, optimizer(), num_warmup_steps=warmup, num_training_steps=steps)
    assert rates(schedule_of(name, optimizer(), warmup, steps), steps) == rates(theirs, steps)


def test_other_schedules_are_hugging_face_s():
    linear, cosine = (rates(schedule_of(name, optimizer(), 2, 10), 10) for name in ("linear", "cosine"))
    theirs = get_scheduler("linear", optimizer(), num_warmup_steps=2, num_training_steps=10)
    assert linear == rates(theirs, 10) != cosine
