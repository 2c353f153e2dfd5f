"""Decides whether a training on several GPUs shares out the weights: where the plan says that one is too small."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunewise.advice.plan.planner import Planner
from tunewise.core.units import size

if TYPE_CHECKING:
    from tunewise.advice.plan.weightless import Sketch
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True)
class ShardingChoice:
    """Says whether the weights are shared out, and in a sentence why; there is none where whole weights fit."""

    shards: bool
    why: str = ""


def choose_sharding(
    sketched: Sketch, task: Task, recipe: Technique, settings: TrainSettings, devices: int, limit: float
) -> ShardingChoice:
    """Choose for so many GPUs, of which the smallest has `limit` bytes of memory."""
    rows_each = math.ceil(settings.per_device_train_batch_size / devices)
    planner = Planner(sketched, task, [recipe], replace(settings, per_device_train_batch_size=rows_each), "cuda")
    (row,) = planner.rows(limit)
    if row.verdict != "does not fit":
        return ShardingChoice(False)
    if row.memory is not None and row.devices is not None and row.devices <= devices:
        return ShardingChoice(
            True,
            f"{recipe.name} needs {size(row.memory.peak)} on each GPU with whole weights, and {size(limit)} are there: "
            "the weights are shared out, as with --shard; --no-shard keeps them whole",
        )
    return ShardingChoice(False, f"{recipe.name} will probably run out of memory: {row.reason}")
