"""Says which rows a step reads: a function of seed and step, so that any step can be taken again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tunewise.core.seeds import generator
from tunewise.engine.encoding import TokenSequence
from tunewise.fitting.settings import TrainSettings


def order(examples: int, seed: int, start: int, count: int) -> list[int]:
    """Return `count` indices, from position `start` on, of an endless run of shuffled epochs of `examples` indices."""
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(start + len(indices), examples)
        indices += _shuffled_epoch(examples, seed, epoch)[offset : offset + count - len(indices)].tolist()
    return indices


@lru_cache(maxsize=2)  # a step reads one epoch or crosses into the next
def _shuffled_epoch(examples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(examples, generator=generator(seed, "order", epoch))


def steps_for_tokens(sequences: Sequence[TokenSequence], settings: TrainSettings, seed: int, tokens: int) -> int:
    """Return the number of optimiser steps after which at least `tokens` tokens have been read."""
    steps = tokens_read = 0
    while tokens_read < tokens:
        chosen = order(len(sequences), seed, steps * settings.rows, settings.rows)
        tokens_read += sum(len(sequences[index].ids) for index in chosen)
        steps += 1
    return max(steps, 1)
