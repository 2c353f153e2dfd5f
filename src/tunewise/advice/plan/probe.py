"""Runs three real steps of a technique, from which a plan's memory and time are calibrated for this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from tunewise.advice.plan.micro_batches import heaviest
from tunewise.advice.plan.plan_row import Probe
from tunewise.contract.technique import Technique
from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.memory import peak_memory, release_unused_memory
from tunewise.engine.model import Base
from tunewise.fitting.allowance import allowance
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for, study
from tunewise.fitting.settings import TrainSettings

_STEPS = 3  # per phase; the first one warms up and is not timed


def probe(base: Base, task: Task, technique: Technique, settings: TrainSettings) -> Probe:
    """Run three steps on the largest micro-batch and measure them; the time is scaled to a step of mean size.

    The base is bare again afterwards.

    Raises:
        RequestError: the technique cannot work on this model or task.
    """
    ends: list[float] = []
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    release_unused_memory()  # memory that an earlier probe freed must not count for this one
    try:
        with peak_memory(base.device) as memory:
            attachment = technique.resolved(base).attach(base, generator(0, "attach"))
            allowed = allowance(base, task, settings)
            attachment.prepare_shapes(study(attachment, task, task.validation, 0, allowance=allowed))

            def encoded(places: Sequence[int]) -> list[TokenSequence]:
                return encoder_for(attachment, task).encode([attachment.render(task.train[i]) for i in places])

            rows, mean_share = heaviest(attachment, len(task.train), encoded, settings)
            short = replace(
                settings,
                max_steps=_STEPS * attachment.phases,
                per_device_train_batch_size=len(rows),
                gradient_accumulation_steps=1,
                replay=0.0,
                kl_to_base=0.0,
            )
            train(attachment, rows, short, on_step=lambda *_: ends.append(time.perf_counter()), reuse_trunk=False)
    finally:
        base.release()
    seconds = median(after - before for before, after in pairwise(ends[:_STEPS]))
    return Probe(
        peak=max(memory[0], weights),
        step=seconds * mean_share * settings.gradient_accumulation_steps,
        steps=_STEPS,
        rows=len(rows),
    )
