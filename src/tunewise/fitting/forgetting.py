"""Measures forgetting: the rise of the loss on text that the base knew, and the divergence of predictions there.

The same arithmetic is done for the base and for the tuned model, so that the unadapted base forgets exactly 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor
from transformers import GenerationConfig

from tunewise.contract.attachment import Attachment
from tunewise.core.seeds import derive
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import Encoder, TokenSequence
from tunewise.engine.forward import batch_of, log_probabilities, nll
from tunewise.engine.model import Base
from tunewise.engine.packing import Batch, by_tokens

_PASS_TOKENS = 4096  # real tokens per forward pass
_TASK_EXAMPLES = 64  # at most; the divergence on a task is averaged over them
_KL_ENTRIES = 1 << 26  # log-probabilities of the base that are kept, at most: 256 MB


@dataclass
class Retention:
    """Holds text that the base knew, with the base's loss and probabilities there, to compare a tuned model with.

    `nll` is the base's loss over all tokens of the sequences, in nats per token. `log_p` are its log-probabilities,
    per batch (positions, V), of the first `kl_tokens` positions.
    """

    sequences: list[TokenSequence]
    nll: float
    source: str
    log_p: list[Tensor] = field(repr=False)
    sums: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # nats per sequence, in the batches' order

    @classmethod
    def measure(cls, base: Base, texts: Sequence[str] | None, seed: int = 0) -> Retention:
        """Measure the bare base on the given texts, or on text that is sampled from it."""
        source = "given text" if texts else "text sampled from the base"
        sequences = text_sequences(base, texts) if texts else own_text(base, seed)
        retention = cls(sequences, 0.0, source, [])
        batches = retention._batches(base)
        retention.sums, counts = _nats_by_sequence(base, batches)
        retention.nll = float(retention.sums.sum() / counts.sum())
        positions_left = max(64, _KL_ENTRIES // base.anatomy.vocabulary)
        for batch in batches:
            if positions_left > 0:
                retention.log_p.append(log_probabilities(base, batch, positions_left))
                positions_left -= len(retention.log_p[-1])
        return retention

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the sequences' token ids."""
        return hashlib.sha256(repr([sequence.ids for sequence in self.sequences]).encode()).hexdigest()

    @property
    def kl_tokens(self) -> int:
        """Return the number of positions that the divergence is averaged over."""
        return sum(len(part) for part in self.log_p)

    def compare(self, attachment: Attachment) -> dict[str, float]:
        """Compare the adapted model with the base.

        Returns:
            `nll_rise`, the rise of the loss in nats per token, with the ends of its 95 % interval over sequences
            (`nll_rise_low`, `nll_rise_high`); and `kl`, KL(base || adapted) in nats per position. An attachment's
            virtual tokens stand before each sequence.
        """
        base = attachment.base
        total = torch.zeros((), dtype=torch.float64)
        batches = self._batches(base, attachment.virtual_tokens)
        for batch, log_p in zip(batches, self.log_p, strict=False):
            log_q = log_probabilities(base, batch, len(log_p))
            total += (log_p.exp() * (log_p - log_q)).double().sum().cpu()
        sums, counts = _nats_by_sequence(base, batches)
        rise, half_width = _mean_change(sums - self.sums, counts)
        return {
            "nll_rise": rise,
            "nll_rise_low": rise - half_width,
            "nll_rise_high": rise + half_width,
            "kl": float(total) / max(self.kl_tokens, 1),
        }

    def _batches(self, base: Base, virtual_tokens: int = 0) -> list[Batch]:
        """Batch the sequences in the same groups with or without virtual tokens, so that positions line up."""
        rows = [after_virtual(base, sequence, virtual_tokens) for sequence in self.sequences]
        groups = by_tokens(self.sequences, _PASS_TOKENS)
        return [batch_of(base, [rows[index] for index in group]) for group in groups]


def after_virtual(base: Base, sequence: TokenSequence, count: int) -> TokenSequence:
    """Return the sequence with `count` virtual tokens before it."""
    first = base.anatomy.vocabulary
    return TokenSequence([*range(first, first + count), *sequence.ids], [False] * count + sequence.labelled, 0)


def _nats_by_sequence(base: Base, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Return each sequence's total of nats and its number of predicted tokens, in the batches' order."""
    sums, counts = [], []
    for batch in batches:
        values, owner = nll(base, batch).double().cpu(), batch.owner.cpu()
        counts.append(torch.bincount(owner))
        sums.append(torch.zeros(len(counts[-1]), dtype=torch.float64).index_add_(0, owner, values))
    return torch.cat(sums), torch.cat(counts)


def _mean_change(change: Tensor, counts: Tensor) -> tuple[float, float]:
    """Return sum(change) / sum(counts), the mean change per token, and half the width of its 95 % interval.

    It is a ratio estimate over sampled sequences (Cochran 1977, section 6.3): tokens of one sequence depend on one
    another.
    """
    mean, sequences = float(change.sum() / counts.sum()), len(counts)
    if sequences < 2:
        return mean, 0.0
    error = float((change - mean * counts).std()) / (float(counts.double().mean()) * sequences**0.5)
    return mean, float(stats.t.ppf(0.975, sequences - 1)) * error


@dataclass(frozen=True)
class OnTask:
    """Holds the base's probabilities at the answer tokens of a task's examples, to compare a tuned model's with."""

    examples: tuple[Example, ...]
    log_p: list[Tensor] = field(repr=False)  # per example, (answer tokens, V)

    @classmethod
    def measure(cls, base: Base, task: Task, examples: Sequence[Example]) -> OnTask:
        """Measure the bare base on the first 64 examples, or on as many of them as fit 256 MB."""
        positions_left = max(64, _KL_ENTRIES // base.anatomy.vocabulary)
        chosen = examples[:_TASK_EXAMPLES]
        log_p: list[Tensor] = []
        for sequence in Encoder(base, task).encode(chosen):
            if positions_left <= 0:
                break
            log_p.append(log_probabilities(base, batch_of(base, [sequence]), positions_left))
            positions_left -= len(log_p[-1])
        return cls(tuple(chosen[: len(log_p)]), log_p)

    def divergence(self, attachment: Attachment, task: Task) -> float | None:
        """Return KL(base || adapted) in nats per answer token.

        None where the attachment's text or virtual tokens leave an answer less of the window than the base had for it.
        """
        base, total, count = attachment.base, 0.0, 0
        encoder = Encoder(base, task, attachment.virtual_tokens, attachment.virtual_suffix)
        sequences = encoder.encode([attachment.render(example) for example in self.examples])
        for sequence, log_p in zip(sequences, self.log_p, strict=True):
            log_q = log_probabilities(base, batch_of(base, [sequence]), len(log_p))
            if len(log_q) != len(log_p):
                return None
            total += float((log_p.exp() * (log_p - log_q)).double().sum())
            count += len(log_p)
        return total / count if count else None


def text_sequences(base: Base, texts: Sequence[str], most: int = 64, length: int = 256) -> list[TokenSequence]:
    """Split texts, joined by line feeds, into up to `most` sequences of at most `length` tokens each."""
    size = min(length, base.window // 2)  # half of the window stays free for virtual tokens
    ids: list[int] = []
    for text in texts:
        ids += base.tokenizer(text + "\n", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if len(ids) >= most * size:
            break
    start = [base.tokenizer.bos_token_id] if base.tokenizer.bos_token_id is not None else []
    step = size - len(start)
    pieces = [start + ids[offset : offset + step] for offset in range(0, len(ids), step)][:most]
    return [
        TokenSequence(piece, [False] + [True] * (len(piece) - 1), 0) for piece in pieces if len(piece) > len(start) + 1
    ]


def own_text(base: Base, seed: int, rows: int = 32, length: int = 128) -> list[TokenSequence]:
    """Sample sequences from the base at temperature 1: text that the base knows, where the user gives none."""
    start = base.tokenizer.bos_token_id if base.tokenizer.bos_token_id is not None else base.tokenizer.eos_token_id
    ids = torch.full((rows, 1), 0 if start is None else start, device=base.device)
    torch.manual_seed(derive(seed, "retention"))
    with torch.no_grad():
        output = base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=min(length, base.window // 2),
                do_sample=True,
                top_k=0,
                eos_token_id=base.tokenizer.eos_token_id,
                pad_token_id=base.tokenizer.eos_token_id or 0,
            ),
        )
    sequences = []
    for row in output.tolist():
        end = row.index(base.tokenizer.eos_token_id, 1) + 1 if base.tokenizer.eos_token_id in row[1:] else len(row)
        sequences.append(TokenSequence(row[:end], [False] + [True] * (end - 1), 0))
    return sequences
