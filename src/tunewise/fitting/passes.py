"""Divides the rows of a micro-batch into forward passes, and among the ranks that compute them."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.contract.attachment import Attachment
from tunewise.engine.device import on_gpu
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.packing import in_groups, in_passes

PASS = 768  # tokens per forward pass beyond which a CPU gets no faster and only needs more memory


def passes(attachment: Attachment, sequences: Sequence[TokenSequence], batch: list[int]) -> list[list[int]]:
    """Divide a micro-batch into forward passes: one on a GPU, several of about `PASS` tokens a rank on a CPU."""
    if on_gpu(next(attachment.base.model.parameters())) or not attachment.accumulates:
        return [batch]
    parts = in_passes([sequences[i] for i in batch], PASS * attachment.base.ranks.context)
    return [[batch[position] for position in part] for part in parts]


def passes_by_group(
    attachment: Attachment, sequences: Sequence[TokenSequence], batch: list[int]
) -> list[list[list[int]]]:
    """Share a micro-batch out among the groups of ranks, and divide each share into forward passes; some may be empty.

    A group is one rank, or those that compute rows together.
    """
    ranks = attachment.base.ranks
    if ranks.groups == 1:
        return [passes(attachment, sequences, batch)]
    shares = in_groups([sequences[row] for row in batch], ranks.groups)
    return [passes(attachment, sequences, [batch[place] for place in share]) if share else [] for share in shares]
