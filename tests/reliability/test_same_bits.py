"""The same request gives the same bits, another seed gives others, and how a run is cut up changes nothing."""

import pytest
import torch

import figures
from adaptation_files import contents
from tunewise.adaptation.fit import fit
from tunewise.engine.generation import generate
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, encoder_for, example_settings, tiny_base, tiny_task

TECHNIQUES = [name for name in all_techniques() if make(name).trains]
STEPS = 40
PADDED = "gpt_neo"  # an architecture whose rows cannot be packed
DROPPED = {"lora": {"lora_dropout": 0.1}}  # draws random numbers in every step


def weights_after(folder, name, seed):
    fit(
        tiny_base(), tiny_task(), make(name, example_settings()), folder, settings=TrainSettings(max_steps=3), seed=seed
    )
    return contents(folder / "adaptation")[1]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.figure("R11")
@pytest.mark.parametrize("name", TECHNIQUES)
def test_one_seed_gives_the_same_bits_and_another_gives_others(name, tmp_path, cases):
    first = weights_after(tmp_path / "first", name, 0)
    assert first and same(first, weights_after(tmp_path / "again", name, 0))
    cases.passed()
    assert not same(first, weights_after(tmp_path / "other", name, 1))
    cases.passed()


class Stopped(Exception):
    pass


def trained(folder, name, settings, stop_at=0, resume=False):
    """Train, or stop right after a step; return losses and final state."""
    attachment, task, losses = attach(make(name, DROPPED), tiny_base()), tiny_task(), {}

    def on_step(step, loss):
        losses[step] = loss
        if step == stop_at:
            raise Stopped

    sequences = encoder_for(attachment, task).encode(task.train)
    try:
        train(attachment, sequences, settings, folder=folder, on_step=on_step, resume=resume)
    except Stopped:
        return losses, None
    return losses, {key: tensor.clone() for key, tensor in attachment.state().items()}


# All that keep something beside their weights from step to step, or change what a step is.
RESUMED = ("lora", "adalora", "dylora", "lt_sft", "diff_pruning", "full")


@pytest.mark.figure("R12")
@pytest.mark.timeout(figures.of(300, 7200))
@pytest.mark.parametrize("name", figures.of(["lora", "lt_sft"], RESUMED))
def test_a_run_may_stop_after_any_step(name, tmp_path, cases):
    settings = TrainSettings(max_steps=STEPS, save_steps=1)
    losses, expected = trained(tmp_path / "whole", name, settings)
    for stop_at in figures.of((1, 19, 20, 39), range(1, STEPS)):
        folder = tmp_path / str(stop_at)
        before, _ = trained(folder, name, settings, stop_at)
        after, state = trained(folder, name, settings, resume=True)
        assert before | after == losses and same(state, expected), f"stopped after step {stop_at}"
        cases.passed()


@pytest.mark.figure("R12")
@pytest.mark.parametrize("name", ["lora", "full", "lt_sft"])
def test_how_often_a_run_saves_changes_no_bit(name, tmp_path, cases):
    states = [trained(tmp_path / str(n), name, TrainSettings(max_steps=12, save_steps=n))[1] for n in (1, 5, 12)]
    for state in states[1:]:
        assert same(state, states[0])
        cases.passed()


@pytest.mark.figure("R12")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "full", "prompt_tuning"])
def test_how_a_batch_is_divided_changes_the_order_of_sums_alone(name, architecture, cases):
    def losses_of(rows, accumulated):
        base, task, losses = tiny_base(architecture, torch.float64), tiny_task(), []
        attachment = attach(make(name), base, task)
        sequences = encoder_for(attachment, task).encode(task.train)
        shape = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        train(attachment, sequences, TrainSettings(max_steps=8, **shape), on_step=lambda _, loss: losses.append(loss))
        return losses

    whole = losses_of(8, 1)
    for rows, accumulated in ((1, 8), (2, 4), (4, 2)):
        assert losses_of(rows, accumulated) == pytest.approx(whole, rel=1e-6)
        cases.passed()


@pytest.mark.figure("R12")
@pytest.mark.parametrize("architecture", ["llama", PADDED])
@pytest.mark.parametrize("name", ["base", "lora", "prompt_tuning"])
def test_the_side_on_which_a_tokenizer_pads_changes_nothing(name, architecture, cases):
    def found(side):
        base, task = tiny_base(architecture), tiny_task("generation")
        base.tokenizer.padding_side = side
        attachment = attach(make(name), base, task)
        encoder = encoder_for(attachment, task)
        if attachment.recipe.trains:
            train(attachment, encoder.encode(task.train), TrainSettings(max_steps=4))
        rendered = [attachment.render(example) for example in task.test]
        return generate(base, encoder, rendered, 6).texts, [value.clone() for value in attachment.state().values()]

    (texts, state), (others, other) = found("left"), found("right")
    assert texts == others and all(map(torch.equal, state, other))
    cases.passed()
