"""Remedies for forgetting, for any technique: rehearse remembered text, and stay close to the base.

    (1 - replay) * task + replay * nll(memory) + kl_to_base * KL(p_base || p) on memory + l2_sp / 2 * ||W - W_0||^2

The memory is text that the base knew, given or written by the base itself, and never the text that forgetting is
measured on. KL is taken over the base's most likely tokens and all others together. ||W - W_0||^2 (L2-SP, Li et al.
2018) is over weights as they count: of LoRA the product's, tr((B^T B)(A A^T)), not A's and B's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.core.seeds import derive
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import answer_states, batch_of, layout
from tunewise.engine.model import Base
from tunewise.fitting.forgetting import after_virtual, own_text, text_sequences

_TOP = 256  # tokens whose probabilities are remembered at each place


@dataclass(frozen=True)
class Rehearsal:
    """Sequences with, for each labelled token, the base's most likely tokens (n, k) and their log-probabilities."""

    sequences: list[TokenSequence]
    tokens: list[Tensor]
    log_p: list[Tensor]

    @classmethod
    def of(cls, base: Base, texts: Sequence[str] | None, seed: int = 0) -> Rehearsal:
        """What the bare base says of these texts, or of what it writes itself."""
        sequences = text_sequences(base, texts) if texts else own_text(base, derive(seed, "memory"))
        tokens, log_p = [], []
        for sequence in sequences:
            batch = batch_of(base, [sequence])
            with torch.no_grad(), layout(base, batch):
                found = answer_states(base, batch)[1].float().log_softmax(-1)
            top = found.topk(min(_TOP, found.shape[1]), dim=1)
            tokens.append(top.indices)
            log_p.append(top.values)
        return cls(sequences, tokens, log_p)

    @contextmanager
    def losses(self, attachment: Attachment, chosen: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean nats per token of the chosen sequences, and mean KL from the base; backward belongs inside."""
        base = attachment.base
        rows = [after_virtual(base, self.sequences[index], attachment.virtual_tokens) for index in chosen]
        batch = batch_of(base, rows)
        with layout(base, batch):
            log_q = answer_states(base, batch)[1].float().log_softmax(-1)
            nll = torch.nn.functional.nll_loss(log_q, batch.targets)
            tokens = torch.cat([self.tokens[index] for index in chosen])
            log_p = torch.cat([self.log_p[index] for index in chosen])
            yield nll, divergence(log_p, log_q.gather(1, tokens))


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, mean over rows, of which k entries (n, k) are known and the rest counts as one more."""
    rest_p, rest_q = (1 - part.exp().sum(1) for part in (log_p, log_q))
    known = (log_p.exp() * (log_p - log_q)).sum(1)
    floor = 1e-6
    rest = rest_p.clamp(min=floor) * (rest_p.clamp(min=floor).log() - rest_q.clamp(min=floor).log())
    return (known + rest).mean()
