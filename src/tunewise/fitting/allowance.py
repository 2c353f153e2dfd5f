"""Says how much a technique may read to make its choices before training."""

from __future__ import annotations

from tunewise.contract.study import Allowance
from tunewise.data.task import Task, sample
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import Base
from tunewise.fitting.settings import TrainSettings

_ENCODED = 256  # training examples from which their mean length is taken


def training_tokens(base: Base, task: Task, settings: TrainSettings) -> float:
    """Return about how many tokens a training with these settings reads: steps x rows x mean tokens of an example."""
    sequences = Encoder(base, task).encode(sample(task.train, _ENCODED))
    return settings.max_steps * settings.rows * sum(len(sequence.ids) for sequence in sequences) / len(sequences)


def allowance(base: Base, task: Task, settings: TrainSettings, tokens: int | None = None) -> Allowance:
    """Return what may be read before a training with these settings, or of `tokens` where the budget is in tokens."""
    return Allowance.of_training(training_tokens(base, task, settings) if tokens is None else tokens)
