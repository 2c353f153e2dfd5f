"""A plan leaves nothing behind in its process: what runs afterwards computes with real numbers."""

import subprocess
import sys

SCRIPT = """
import os
import sys

import torch

from tunewise.advice.plan.planner import measure
from tunewise.advice.plan.weightless import Sketch
from tunewise.engine.device import is_fake
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task

base, task = tiny_base("llama"), tiny_task()
sketched = Sketch("tiny", base.model.config, base.tokenizer, torch.float32, base.max_length, None)


def plan_and_train(name):
    recipe = make(name)
    settings = TrainSettings(max_steps=2, per_device_train_batch_size=2)
    measure(sketched, task, recipe, settings)
    attachment = attach(recipe.resolved(base), base, task, 0)
    if recipe.trains:
        sequences = encoder_for(attachment, task).encode([attachment.render(each) for each in task.train])
        train(attachment, sequences, settings, seed=0)
    tensors = {**attachment.state(), **attachment.params()}
    assert not any(map(is_fake, tensors.values())), name
    attachment.detach()
    base.release()
    print(name, flush=True)


for group in sys.argv[1:]:
    child = os.fork()
    if not child:
        for name in group.split(","):
            plan_and_train(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{group} failed")
"""
# A process of its own for each: one for all would let one technique make real what another one needs.
GROUPS = ["base,icl,rag", "full,last_layers,bitfit", "lt_sft,diff_pruning,fish_mask,threshold_mask"]
GROUPS += ["adapter,lst", "prompt_tuning,prefix_tuning,p_tuning,pasta", "lora,adalora,dylora,krona", "qlora"]


def test_what_is_planned_first_trains_for_real_afterwards():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *GROUPS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [name for group in GROUPS for name in group.split(",")]
