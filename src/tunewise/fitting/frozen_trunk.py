"""Computes the frozen lower part of a model once per training sequence and replays it in later epochs.

Below the lowest trained block nothing changes between epochs. Before the first step, the outputs of the blocks that a
technique names (`Attachment.trunk`) are recorded for every sequence, in one fixed order, so that a resumed run sees the
same bits. This is done where training takes at least an epoch and a half and the outputs fit an eighth of all memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn

from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, why_not_packed
from tunewise.engine.packing import by_tokens
from tunewise.engine.row_file import tokens_of

if TYPE_CHECKING:
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base
    from tunewise.engine.packing import Batch

_PASS_TOKENS = 4096  # real tokens per forward pass
_MIN_EPOCHS = 1.5  # fewer do not repay the recording
_MEMORY_SHARE = 1 / 8  # of all memory, not of free memory, by which a resumed run might decide otherwise


class Trunk:
    """Holds outputs of frozen blocks for every sequence: `states[block][sequence]` is (tokens, d)."""

    def __init__(self, attachment: Attachment, blocks: Sequence[int]) -> None:
        self.blocks: list[nn.Module] = attachment.base.anatomy.blocks[: max(blocks) + 1]
        self.states: dict[int, list[Tensor]] = {block: [] for block in blocks}
        self.tuples = False  # whether these blocks return their output as a tuple

    @torch.no_grad()
    def record(self, attachment: Attachment, sequences: Sequence[TokenSequence], precision: Any) -> None:
        """Record the blocks' outputs for all sequences; `precision` is the context of the forward passes."""
        base, outputs = attachment.base, dict[int, Tensor]()
        handles = [
            self.blocks[block].register_forward_hook(
                lambda m, a, output, b=block: outputs.update({b: self._hidden(output)})
            )
            for block in self.states
        ]
        try:
            states: dict[int, list[Tensor]] = {block: [torch.empty(0)] * len(sequences) for block in self.states}
            for group in by_tokens(list(sequences), _PASS_TOKENS):
                batch = batch_of(base, [sequences[index] for index in group], share=False)
                with layout(base, batch), precision:
                    base.within(partial(_run, base, batch))
                sizes = [len(sequences[index].ids) for index in group]
                for block, output in outputs.items():  # (1, tokens of the group, d)
                    for index, part in zip(group, output[0].split(sizes), strict=True):
                        states[block][index] = part.clone()
            self.states = states
        finally:
            for handle in handles:
                handle.remove()

    def _hidden(self, output: Any) -> Tensor:
        """Return the hidden states of a block's output, and remember whether it was a tuple."""
        self.tuples = isinstance(output, tuple)
        hidden: Tensor = output[0] if self.tuples else output
        return hidden

    @contextmanager
    def replay(self, rows: Sequence[int]) -> Iterator[None]:
        """Let the frozen blocks return what was recorded for these sequences, packed in this order."""
        recorded = {block: torch.cat([states[index] for index in rows])[None] for block, states in self.states.items()}

        def replayed(block: int) -> Any:
            def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
                output = recorded.get(block, hidden_states)
                return (output,) if self.tuples else output

            return forward

        overrides = [vars(block).get("forward") for block in self.blocks]  # that a technique may have set
        try:
            for number, block in enumerate(self.blocks):
                block.forward = replayed(number)
            yield
        finally:
            for block, override in zip(self.blocks, overrides, strict=True):
                if override is None:
                    del block.forward
                else:
                    block.forward = override


def _run(base: Base, batch: Batch) -> Tensor:
    output = base.anatomy.inner(input_ids=batch.ids, position_ids=batch.position_ids, use_cache=False)
    states: Tensor = output.last_hidden_state
    return states


def trunk_of(attachment: Attachment, sequences: Sequence[TokenSequence], visits: int, precision: Any) -> Trunk | None:
    """Record the frozen trunk; None where it does not pay, does not fit, or no block below is frozen.

    Args:
        attachment: says by `trunk()` which blocks' outputs it needs.
        sequences: the training sequences.
        visits: how many sequences the whole training reads, repetitions included.
        precision: the context of the forward passes.
    """
    blocks, base = attachment.trunk(), attachment.base
    if not blocks or visits < _MIN_EPOCHS * len(sequences) or why_not_packed(base):
        return None
    size = tokens_of(sequences) * base.anatomy.width * 4 * len(blocks)  # bytes in float32
    if size > _MEMORY_SHARE * psutil.virtual_memory().total:
        return None
    trunk = Trunk(attachment, blocks)
    trunk.record(attachment, sequences, precision)
    return trunk


def replaying(trunk: Trunk | None, rows: Sequence[int]) -> AbstractContextManager[None]:
    """Return the context in which a batch of these sequences runs: the trunk's replay, or none."""
    return trunk.replay(rows) if trunk is not None else nullcontext()
