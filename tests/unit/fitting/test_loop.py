"""The training loop: validation losses on the way, the best state, and stopping early."""

import json
import math
from contextlib import nullcontext

import pytest
import torch

from tunewise.core.errors import SettingError
from tunewise.fitting import loop
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task


@pytest.fixture
def attachment():
    return attach(make("lora", {}), tiny_base())


def trained(attachment, losses, states=None, folder=None, **settings):
    """Train with these validation losses, one after the other; the states at them are put into `states`."""
    left = iter(losses)

    def evaluate():
        if states is not None:
            states.append({name: tensor.clone() for name, tensor in attachment.state().items()})
        return next(left)

    rows = encoder_for(attachment, tiny_task()).encode(tiny_task().train)
    return train(
        attachment,
        rows,
        TrainSettings(**{"load_best_model_at_end": True, **settings}),
        evaluate=evaluate,
        folder=folder,
    )


def same(state, other):
    return all(torch.equal(state[name], other[name]) for name in other)


def test_the_state_with_the_lowest_loss_is_the_result(attachment):
    states = []
    done = trained(attachment, [3.0, 1.0, 2.0, 4.0], states, max_steps=8, eval_steps=2)
    assert (done.steps, done.best_step, done.stopped_early) == (8, 4, None)
    assert same(attachment.state(), states[1]) and not same(attachment.state(), states[3])
    assert done.evaluation_seconds > 0


def test_the_last_state_stays_where_nothing_is_chosen(attachment):
    states = []
    done = trained(attachment, [3.0, 1.0, 2.0], states, max_steps=5, eval_steps=2, load_best_model_at_end=False)
    assert done.best_step is None and same(attachment.state(), states[2])
    assert len(states) == 3  # after the last step too


def test_training_stops_when_patience_is_at_its_end(attachment):
    done = trained(attachment, [3.0, 1.0, 1.0, 2.0], max_steps=20, eval_steps=3, early_stopping_patience=2)
    assert (done.steps, done.best_step, done.stopped_early) == (12, 6, True)


def test_patience_that_ends_with_the_last_step_is_no_early_stop(attachment):
    done = trained(attachment, [1.0, 2.0, 3.0], max_steps=6, eval_steps=2, early_stopping_patience=2)
    assert (done.steps, done.best_step, done.stopped_early) == (6, 2, False)


def test_a_loss_that_is_not_finite_is_never_the_best(attachment, tmp_path):
    done = trained(attachment, [math.nan, 2.0, math.inf], max_steps=6, eval_steps=2, folder=tmp_path)
    assert done.best_step == 4
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_loss"] for line in lines if "validation_loss" in line] == [None, 2.0, None]


def test_patience_without_a_validation_loss_is_refused(attachment):
    rows = encoder_for(attachment, tiny_task()).encode(tiny_task().train)
    with pytest.raises(SettingError, match="early_stopping_patience needs a validation loss"):
        train(attachment, rows, TrainSettings(early_stopping_patience=2))


def test_evaluating_changes_no_bit_of_the_steps(attachment):
    trained(attachment, [3.0, 2.0, 1.0], max_steps=6, eval_steps=2)
    other = attach(make("lora", {}), tiny_base())
    rows = encoder_for(other, tiny_task()).encode(tiny_task().train)
    train(other, rows, TrainSettings(max_steps=6))
    assert same(attachment.state(), other.state())


@pytest.mark.parametrize("full_determinism", [True, False])
def test_repeatable_bits_are_asked_for_unless_they_are_not_wanted(attachment, monkeypatch, full_determinism):
    """What a GPU does then, `tests/gpu` shows; a CPU gives the same bits either way."""
    asked = []
    monkeypatch.setattr(loop, "repeatable", lambda device: asked.append(device) or nullcontext())
    rows = encoder_for(attachment, tiny_task()).encode(tiny_task().train)
    train(attachment, rows, TrainSettings(max_steps=2, full_determinism=full_determinism))
    assert len(asked) == 2 * full_determinism
    assert ("full_determinism" in TrainSettings(full_determinism=full_determinism).to_json()) != full_determinism
