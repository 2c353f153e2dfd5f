"""Finds the micro-batch that needs most memory among the first steps of a training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from tunewise.contract.attachment import Attachment
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.fitting.passes import passes
from tunewise.fitting.row_order import order
from tunewise.fitting.settings import TrainSettings

_MEASURED = 2000  # training examples whose lengths are measured, at most
_SEARCHED = 200  # steps that are searched


def heaviest(
    attachment: Attachment,
    examples: int,
    encoded: Callable[[Sequence[int]], list[TokenSequence]],
    settings: TrainSettings,
) -> tuple[list[TokenSequence], float]:
    """Find the micro-batch with the largest forward pass among the first steps, in the order of seed 0.

    Args:
        attachment: what is trained.
        examples: how many training examples there are.
        encoded: encodes training examples by their places.
        settings: the size of a micro-batch.

    Returns:
        Its rows, and tokens of a mean micro-batch / tokens of this one.
    """
    size, count = settings.per_device_train_batch_size, min(settings.max_steps, _SEARCHED) * settings.rows
    visited = order(min(examples, _MEASURED), 0, 0, count)
    places = sorted(set(visited))
    sequences = encoded(places)
    indices = [bisect_left(places, place) for place in visited]
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    padded = why_not_packed(attachment.base)
    tokens = []  # per micro-batch, the tokens of each pass with padding
    for batch in batches:
        lengths = [[len(sequences[index].ids) for index in part] for part in passes(attachment, sequences, batch)]
        tokens.append([max(part) * len(part) if padded else sum(part) for part in lengths])
    heaviest_batch = max(range(len(batches)), key=lambda i: (max(tokens[i]), sum(tokens[i])))
    mean = sum(map(sum, tokens)) / len(tokens)
    return [sequences[index] for index in batches[heaviest_batch]], mean / sum(tokens[heaviest_batch])
