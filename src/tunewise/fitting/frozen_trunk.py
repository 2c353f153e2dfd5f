"""The frozen lower part of a model, computed once for every training sequence and replayed in later epochs.

Below the lowest trained block nothing changes between epochs. Where a technique says so (`Attachment.trunk`), and
where more than an epoch and a half is trained and the states fit the budget, the outputs of the blocks that it needs
are kept for every sequence before the first step, in one fixed order, so that a resumed run sees the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn

from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, why_not_packed
from tunewise.engine.packing import by_tokens

if TYPE_CHECKING:
    from tunewise.contract.attachment import Attachment

_TOKENS = 4096  # real tokens of one pass
_WORTH = 1.5  # epochs from which on it pays
_SHARE = 1 / 8  # of all memory; by what is free, a resumed run might decide otherwise


class Trunk:
    """Outputs of some frozen blocks for every sequence: `states[block][sequence]` is (tokens, d)."""

    def __init__(self, attachment: Attachment, blocks: Sequence[int]) -> None:
        self.blocks: list[nn.Module] = attachment.base.anatomy.blocks[: max(blocks) + 1]
        self.states: dict[int, list[Tensor]] = {block: [] for block in blocks}
        self.tuples = False

    @torch.no_grad()
    def record(self, attachment: Attachment, sequences: Sequence[TokenSequence], precision: Any) -> None:
        """One forward pass over all sequences."""
        base, found = attachment.base, dict[int, Tensor]()
        handles = [
            self.blocks[block].register_forward_hook(
                lambda m, a, output, b=block: found.update({b: self._plain(output)})
            )
            for block in self.states
        ]
        try:
            places: dict[int, list[Tensor]] = {block: [torch.empty(0)] * len(sequences) for block in self.states}
            for group in by_tokens(list(sequences), _TOKENS):
                batch = batch_of(base, [sequences[index] for index in group], share=False)
                with layout(base, batch), precision:
                    base.anatomy.inner(input_ids=batch.ids, position_ids=batch.position_ids, use_cache=False)
                sizes = [len(sequences[index].ids) for index in group]
                for block, output in found.items():
                    for index, part in zip(group, output[0].split(sizes), strict=True):
                        places[block][index] = part.clone()
            self.states = places
        finally:
            for handle in handles:
                handle.remove()

    def _plain(self, output: Any) -> Tensor:
        self.tuples = isinstance(output, tuple)
        plain: Tensor = output[0] if self.tuples else output
        return plain

    @contextmanager
    def replay(self, rows: Sequence[int]) -> Iterator[None]:
        """Let the frozen blocks answer for these sequences, packed in this order, with what was recorded."""
        kept = {block: torch.cat([states[index] for index in rows])[None] for block, states in self.states.items()}

        def answer(block: int) -> Any:
            def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
                output = kept.get(block, hidden_states)
                return (output,) if self.tuples else output

            return forward

        before = [vars(block).get("forward") for block in self.blocks]
        try:
            for number, block in enumerate(self.blocks):
                block.forward = answer(number)
            yield
        finally:
            for block, own in zip(self.blocks, before, strict=True):
                if own is None:
                    del block.forward
                else:
                    block.forward = own


def trunk_of(attachment: Attachment, sequences: Sequence[TokenSequence], visits: int, precision: Any) -> Trunk | None:
    """The recorded trunk, or None where it does not pay, does not fit, or nothing below is frozen."""
    blocks, base = attachment.trunk(), attachment.base
    if not blocks or visits < _WORTH * len(sequences) or why_not_packed(base):
        return None
    size = sum(len(sequence.ids) for sequence in sequences) * base.anatomy.width * 4 * len(blocks)
    if size > _SHARE * psutil.virtual_memory().total:
        return None
    trunk = Trunk(attachment, blocks)
    trunk.record(attachment, sequences, precision)
    return trunk


def replaying(trunk: Trunk | None, rows: Sequence[int]) -> AbstractContextManager[None]:
    """The context in which a batch of these sequences runs."""
    return trunk.replay(rows) if trunk is not None else nullcontext()
