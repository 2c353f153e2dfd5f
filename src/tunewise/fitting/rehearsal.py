"""Counters forgetting, with any technique: rehearses text that the base knew, and keeps the model close to the base.

    (1 - replay) nll(task) + replay nll(text) + kl_to_base KL(p_base || p) on text + l2_sp / 2 ||W - W_0||^2

The rehearsed text is given by the user or sampled from the base, and is never the text that forgetting is measured on.
KL is taken over the base's most likely tokens, with all other tokens as one. ||W - W_0||^2 (L2-SP, Li et al. 2018) is
over the weights that the model computes with: for LoRA ||B A||^2 = tr((B^T B)(A A^T)), not the norms of A and B.
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

_TOP = 256  # most likely tokens whose probabilities are kept per position


@dataclass(frozen=True)
class Rehearsal:
    """Holds the text to rehearse, with the base's predictions there.

    Per sequence, `tokens` (n, k) are the k tokens that the base finds most likely at each of n labelled positions, and
    `log_p` (n, k) their log-probabilities.
    """

    sequences: list[TokenSequence]
    tokens: list[Tensor]
    log_p: list[Tensor]

    @classmethod
    def of(cls, base: Base, texts: Sequence[str] | None, seed: int = 0) -> Rehearsal:
        """Record what the bare base predicts on these texts, or on text that is sampled from it."""
        sequences = text_sequences(base, texts) if texts else own_text(base, derive(seed, "memory"))
        tokens, log_p = [], []
        for sequence in sequences:
            batch = batch_of(base, [sequence])
            with torch.no_grad(), layout(base, batch):
                log_probabilities = answer_states(base, batch)[1].float().log_softmax(-1)  # (n, V)
            top = log_probabilities.topk(min(_TOP, log_probabilities.shape[1]), dim=1)
            tokens.append(top.indices)
            log_p.append(top.values)
        return cls(sequences, tokens, log_p)

    @contextmanager
    def losses(self, attachment: Attachment, chosen: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the chosen sequences' mean loss (nats per token) and mean KL from the base; backward belongs inside."""
        base = attachment.base
        rows = [after_virtual(base, self.sequences[index], attachment.virtual_tokens) for index in chosen]
        batch = batch_of(base, rows)
        with layout(base, batch):
            log_q = answer_states(base, batch)[1].float().log_softmax(-1)  # (N, V), N labelled positions
            nll = torch.nn.functional.nll_loss(log_q, batch.targets)
            tokens = torch.cat([self.tokens[index] for index in chosen])
            log_p = torch.cat([self.log_p[index] for index in chosen])
            yield nll, divergence(log_p, log_q.gather(1, tokens))


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats, mean over n rows, from k entries (n, k); all others count as one more entry."""
    rest_p, rest_q = (1 - part.exp().sum(1) for part in (log_p, log_q))
    listed = (log_p.exp() * (log_p - log_q)).sum(1)
    floor = 1e-6
    rest = rest_p.clamp(min=floor) * (rest_p.clamp(min=floor).log() - rest_q.clamp(min=floor).log())
    return (listed + rest).mean()
