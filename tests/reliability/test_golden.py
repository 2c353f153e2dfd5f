"""Files that an earlier version wrote are read: an adaptation, and the checkpoint of a run that was stopped."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunewise import Task, TrainSettings, load, load_base, make
from tunewise.core.seeds import generator
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import score
from tunewise.testing import encoder_for

pytestmark = pytest.mark.figure("R14")

GOLDEN = Path(__file__).parents[1] / "golden"


def test_an_adaptation_is_loaded_and_scores_as_it_did():
    adaptation = load(GOLDEN / "adaptation")
    task = Task.read("world:reviews")
    scores = score(adaptation.attachment, task, task.test[:40])
    assert adaptation.attachment.recipe.name == "prompt_tuning"
    assert scores.nll == pytest.approx(3.3044308, rel=1e-4)


def test_a_checkpoint_is_resumed_and_ends_where_the_uninterrupted_run_ended(tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    base, task = load_base("world", device="cpu"), Task.read("world:reviews")
    recipe = make("prompt_tuning", {"prompt_tuning": {"num_virtual_tokens": 4}}).resolved(base)
    attachment = recipe.attach(base, generator(0, "attach"))
    settings = TrainSettings(max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=1, save_steps=3)
    steps = []
    train(
        attachment,
        encoder_for(attachment, task).encode(task.train[:40]),
        settings,
        seed=0,
        folder=tmp_path / "run",
        resume=True,
        on_step=lambda step, loss: steps.append(step),
    )
    assert steps == [4, 5, 6]
    for name, tensor in load_file(GOLDEN / "final.safetensors").items():
        torch.testing.assert_close(attachment.state()[name], tensor, rtol=1e-4, atol=1e-5)
