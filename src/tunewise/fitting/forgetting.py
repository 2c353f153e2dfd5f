"""What was forgotten: the loss on text that the base knew, and how far predictions there moved from the base's.

The same arithmetic is done for the base and for what was tuned, so that the unadapted base forgets exactly 0.
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

_TOKENS = 4096  # real tokens of one pass
_ON_TASK = 64  # examples that the divergence on a task is averaged over
_KL_ENTRIES = 1 << 26  # log-probabilities of the base that are kept: 256 MB


@dataclass
class Retention:
    """Text that the base knew before: its loss there, and its probabilities, to compare a tuned model with.

    The loss counts every token of the sequences; the divergence the first `kl_tokens` of them.
    """

    sequences: list[TokenSequence]
    nll: float
    source: str
    log_p: list[Tensor] = field(repr=False)
    sums: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # nats of each sequence, batch by batch

    @classmethod
    def measure(cls, base: Base, texts: Sequence[str] | None, seed: int = 0) -> Retention:
        """Measure the bare base on the given texts, or on text that it writes itself."""
        source = "given text" if texts else "text sampled from the base"
        sequences = text_sequences(base, texts) if texts else own_text(base, seed)
        held = cls(sequences, 0.0, source, [])
        batches = held._batches(base)
        held.sums, counts = _by_sequence(base, batches)
        held.nll = float(held.sums.sum() / counts.sum())
        left = max(64, _KL_ENTRIES // base.anatomy.vocabulary)
        for batch in batches:
            if left > 0:
                held.log_p.append(log_probabilities(base, batch, left))
                left -= len(held.log_p[-1])
        return held

    @property
    def fingerprint(self) -> str:
        """sha256 over the sequences."""
        return hashlib.sha256(repr([sequence.ids for sequence in self.sequences]).encode()).hexdigest()

    @property
    def kl_tokens(self) -> int:
        """Positions that the divergence is averaged over."""
        return sum(len(part) for part in self.log_p)

    def compare(self, attachment: Attachment) -> dict[str, float]:
        """How far the base was left: `nll_rise` in nats per token, `kl` in nats per position.

        The rise comes with its 95 % interval over sequences; kl is KL(base || adapted). Virtual tokens are put before.
        """
        base = attachment.base
        total = torch.zeros((), dtype=torch.float64)
        batches = self._batches(base, attachment.virtual_tokens)
        for batch, before in zip(batches, self.log_p, strict=False):
            after = log_probabilities(base, batch, len(before))
            total += (before.exp() * (before - after)).double().sum().cpu()
        after_all = _by_sequence(base, batches)
        rise, half = _ratio(after_all[0] - self.sums, after_all[1])
        return {
            "nll_rise": rise,
            "nll_rise_low": rise - half,
            "nll_rise_high": rise + half,
            "kl": float(total) / max(self.kl_tokens, 1),
        }

    def _batches(self, base: Base, virtual_tokens: int = 0) -> list[Batch]:
        """The same groups whatever is put before the sequences, so that positions line up with the base's."""
        rows = [after_virtual(base, sequence, virtual_tokens) for sequence in self.sequences]
        groups = by_tokens(self.sequences, _TOKENS)
        return [batch_of(base, [rows[index] for index in group]) for group in groups]


def after_virtual(base: Base, sequence: TokenSequence, count: int) -> TokenSequence:
    """The sequence with `count` virtual tokens before it."""
    first = base.anatomy.vocabulary
    return TokenSequence([*range(first, first + count), *sequence.ids], [False] * count + sequence.labelled, 0)


def _by_sequence(base: Base, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Nats of each sequence, and the tokens that they are of, in the batches' order."""
    sums, counts = [], []
    for batch in batches:
        values, owner = nll(base, batch).double().cpu(), batch.owner.cpu()
        counts.append(torch.bincount(owner))
        sums.append(torch.zeros(len(counts[-1]), dtype=torch.float64).index_add_(0, owner, values))
    return torch.cat(sums), torch.cat(counts)


def _ratio(change: Tensor, counts: Tensor) -> tuple[float, float]:
    """Mean change per token and half of its 95 % interval; sequences are what was drawn (Cochran 1977, section 6.3)."""
    mean, sequences = float(change.sum() / counts.sum()), len(counts)
    if sequences < 2:
        return mean, 0.0
    error = float((change - mean * counts).std()) / (float(counts.double().mean()) * sequences**0.5)
    return mean, float(stats.t.ppf(0.975, sequences - 1)) * error


@dataclass(frozen=True)
class OnTask:
    """The base's probabilities where a task's answers are predicted, to say how far a tuned model's are from them."""

    examples: tuple[Example, ...]
    log_p: list[Tensor] = field(repr=False)  # of each example, (answer tokens, V)

    @classmethod
    def measure(cls, base: Base, task: Task, examples: Sequence[Example]) -> OnTask:
        """On as many of the examples as fit 256 MB."""
        left = max(64, _KL_ENTRIES // base.anatomy.vocabulary)
        chosen = examples[:_ON_TASK]
        found: list[Tensor] = []
        for sequence in Encoder(base, task).encode(chosen):
            if left <= 0:
                break
            found.append(log_probabilities(base, batch_of(base, [sequence]), left))
            left -= len(found[-1])
        return cls(tuple(chosen[: len(found)]), found)

    def divergence(self, attachment: Attachment, task: Task) -> float | None:
        """KL(base || adapted) in nats per answer token; None where the window leaves them other tokens."""
        base, total, count = attachment.base, 0.0, 0
        encoder = Encoder(base, task, attachment.virtual_tokens, attachment.virtual_suffix)
        sequences = encoder.encode([attachment.render(example) for example in self.examples])
        for sequence, before in zip(sequences, self.log_p, strict=True):
            after = log_probabilities(base, batch_of(base, [sequence]), len(before))
            if len(after) != len(before):
                return None
            total += float((before.exp() * (before - after)).double().sum())
            count += len(before)
        return total / count if count else None


def text_sequences(base: Base, texts: Sequence[str], most: int = 64, length: int = 256) -> list[TokenSequence]:
    """Up to `most` pieces of at most `length` tokens, the text's lines joined."""
    size = min(length, base.window // 2)  # half of the window stays free for virtual tokens
    ids: list[int] = []
    for text in texts:
        ids += base.tokenizer(text + "\n", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if len(ids) >= most * size:
            break
    start = [base.tokenizer.bos_token_id] if base.tokenizer.bos_token_id is not None else []
    pieces = [start + ids[at : at + size - len(start)] for at in range(0, len(ids), size - len(start))][:most]
    return [
        TokenSequence(piece, [False] + [True] * (len(piece) - 1), 0) for piece in pieces if len(piece) > len(start) + 1
    ]


def own_text(base: Base, seed: int, rows: int = 32, length: int = 128) -> list[TokenSequence]:
    """Sequences sampled from the base at temperature 1: what it believes, without asking the user for text."""
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
