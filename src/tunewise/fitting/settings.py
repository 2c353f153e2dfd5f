"""Says how to train, in the names of Hugging Face's `TrainingArguments`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunewise.core.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Says how a technique is trained, in the names of Hugging Face's `TrainingArguments`.

    `max_steps` counts optimiser steps over all phases. `save_steps` is the number of steps between checkpoints,
    `eval_steps` that between validation losses in `metrics.jsonl` (0: none). With `gradient_checkpointing` the blocks'
    activations are computed again in the backward pass instead of being kept. `replay`, `kl_to_base` and `l2_sp` are
    weights of remedies for forgetting; see `tunewise.fitting.rehearsal`.
    """

    max_steps: int = 100
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    warmup_ratio: float = 0.06
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    save_steps: int = 500
    eval_steps: int = 0
    logging_steps: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    replay: float = 0.0
    kl_to_base: float = 0.0
    l2_sp: float = 0.0

    def __post_init__(self) -> None:
        positive = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "save_steps")
        for name in (*positive, "logging_steps"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.eval_steps < 0:
            raise SettingError(f"eval_steps is {self.eval_steps} but must be at least 0")
        if self.lr_scheduler_type != TrainSettings.lr_scheduler_type:
            from transformers import SchedulerType  # takes PEFT and bitsandbytes along: a quarter of starting

            schedules = sorted(kind.value for kind in SchedulerType)
            if self.lr_scheduler_type not in schedules:
                raise SettingError(f'lr_scheduler_type "{self.lr_scheduler_type}" is not one of {", ".join(schedules)}')
        if not 0 <= self.replay < 1:
            raise SettingError(f"replay is {self.replay} but must be at least 0 and below 1, a share of the loss")
        for name in ("kl_to_base", "l2_sp"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name} is {getattr(self, name)} but must be at least 0")
        if not 0 <= self.warmup_ratio < 1:
            raise SettingError(f"warmup_ratio is {self.warmup_ratio} but must be at least 0 and below 1")

    @property
    def rehearses(self) -> bool:
        """Tell whether training rehearses text that the base knew."""
        return bool(self.replay or self.kl_to_base)

    @property
    def rows(self) -> int:
        """Sequences of one optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


def ever_lighter(settings: TrainSettings) -> Iterator[TrainSettings]:
    """Yield these settings, then ones that need less and less memory for the same steps, to be tried in this order.

    First the micro-batch shrinks, down to one row, with more gradient accumulation; then gradient checkpointing is on.
    Every step still reads the same number of rows, so a micro-batch shrinks to a divisor: 6 to 3 and 1, 5 to 1.
    """
    yield settings
    while (size := settings.per_device_train_batch_size) > 1:
        micro_batch = next(part for part in range(size // 2, 0, -1) if size % part == 0)
        settings = replace(
            settings, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=settings.rows // micro_batch
        )
        yield settings
    if not settings.gradient_checkpointing:
        yield replace(settings, gradient_checkpointing=True)
