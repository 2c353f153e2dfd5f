"""Computes the learning rate of each step, by the names of Hugging Face's schedules."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def schedule_of(name: str, optimizer: Optimizer, warmup_steps: int, steps: int) -> LambdaLR:
    """Return the schedule of this name for a phase of so many steps, those of the warm-up included.

    The default, "cosine", is computed here with the same bits as in Hugging Face's module. Importing that module takes
    PEFT, bitsandbytes and torch's compiler along, which would be a third of the time before the first step.
    """
    if name == "cosine":
        return LambdaLR(optimizer, lambda step: _cosine(step, warmup_steps, steps))
    from transformers import get_scheduler

    schedule: LambdaLR = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)
    return schedule


def _cosine(step: int, warmup_steps: int, steps: int) -> float:
    """Return step / warm-up during the warm-up, and (1 + cos(pi t)) / 2 after the share t of the steps behind it."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
