"""Measures forgetting: the rise of the loss on text that the base knew, and the divergence of predictions there.

The same arithmetic is done for the base and for the tuned model, so that the unadapted base forgets exactly 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.core.progress import DIVERGENCE, FORGETTING, Progress, as_stage, silent
from tunewise.core.seeds import derive
from tunewise.data.task import Example, Task
from tunewise.engine.conversation import Ends
from tunewise.engine.encoding import Encoder, TokenSequence
from tunewise.engine.forward import Observe, batch_of, nll, observe_predictions
from tunewise.engine.memory import allocate_on_disk, release_pages
from tunewise.engine.model import Base
from tunewise.engine.packing import Batch, by_tokens

_PASS_TOKENS = 4096  # real tokens per forward pass
_TASK_EXAMPLES = 64  # at most; the divergence on a task is averaged over them
_KL_ENTRIES = 1 << 26  # log-probabilities of the base that are kept on disk, at most: 256 MB


class _Recording:
    """Keeps the log-probabilities that it is called with, one part after the other, in one tensor on disk."""

    def __init__(self, positions: int) -> None:
        self.positions, self.position = positions, 0
        self.log_p = torch.zeros(0)  # (positions, V) from the first part on

    def __call__(self, part: Tensor) -> None:
        if not self.position:
            self.log_p = allocate_on_disk(self.positions, part.shape[1])
        self.log_p[self.position : self.position + len(part)] = part.cpu()
        self.position += len(part)
        release_pages(self.log_p)


class _Divergence:
    """Sums KL(p || q) over positions, from q's log-probabilities part by part and p's on disk, in float64."""

    def __init__(self, log_p: Tensor) -> None:
        self.log_p, self.position, self.total = log_p, 0, 0.0

    def __call__(self, log_q: Tensor) -> None:
        log_p = self.log_p[self.position : self.position + len(log_q)].to(log_q.device)
        terms = log_p.exp().mul_(log_q.neg_().add_(log_p))  # log_q is this call's own, and large: it becomes log p/q
        self.total += float(terms.sum(1).double().sum())
        self.position += len(log_q)
        release_pages(self.log_p)


@dataclass
class Retention:
    """Holds text that the base knew, with the base's loss and probabilities there, to compare a tuned model with.

    `nll` is the base's loss over all tokens of the sequences, in nats per token, and `nats` are its nats per sequence,
    in the batches' order. `log_p` (kl_tokens, V) are its log-probabilities at the first `kl_tokens` positions; they are
    None where the rest was read from a file, until `record_predictions`.

    Memory, besides the model's own forward pass over at most 4,096 tokens: `log_p` is a file of 4 V kl_tokens bytes, at
    most 256 MB, of which as many rows are in memory at once as `logit_rows` says, 8 MB. Comparing holds four such parts
    (log p, the logits, log q, and the terms of the sum): about 32 MB.
    """

    sequences: list[TokenSequence]
    nll: float
    source: str
    kl_tokens: int
    nats: Tensor = field(repr=False)
    log_p: Tensor | None = field(default=None, repr=False)

    @classmethod
    def measure(cls, base: Base, texts: Sequence[str] | None, seed: int = 0, progress: Progress = silent) -> Retention:
        """Measure the bare base on the given texts, or on text that is sampled from it."""
        source = "given text" if texts else "text sampled from the base"
        sequences = text_sequences(base, texts) if texts else own_text(base, seed, progress=progress)
        labelled = sum(sum(sequence.labelled[1:]) for sequence in sequences)
        retention = cls(sequences, 0.0, source, min(_kl_positions(base), labelled), torch.zeros(0))
        recording = _Recording(retention.kl_tokens)
        retention.nats, counts = retention._nats_by_sequence(
            base, observe=recording, progress=as_stage(progress, "measuring the retention text")
        )
        retention.nll = float(retention.nats.sum() / counts.sum())
        retention.log_p = recording.log_p
        return retention

    def record_predictions(self, base: Base) -> None:
        """Take the bare base's log-probabilities, unless they are there."""
        if self.log_p is None:
            recording, positions_left = _Recording(self.kl_tokens), self.kl_tokens
            for batch in self._batches(base):
                if positions_left > 0:
                    observe_predictions(base, batch, positions_left, recording)
                    positions_left -= len(batch.targets)
            self.log_p = recording.log_p

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the sequences' token ids."""
        return hashlib.sha256(repr([sequence.ids for sequence in self.sequences]).encode()).hexdigest()

    def compare(self, attachment: Attachment, progress: Progress = silent) -> dict[str, float]:
        """Compare the adapted model with the base.

        Returns:
            `nll_rise`, the rise of the loss in nats per token, with the ends of its 95 % interval over sequences
            (`nll_rise_low`, `nll_rise_high`); and `kl`, KL(base || adapted) in nats per position. An attachment's
            virtual tokens stand before each sequence.

        Raises:
            ValueError: the base's predictions were not recorded before anything was attached to it.
        """
        if self.log_p is None:
            raise ValueError("the base's predictions are missing; call record_predictions on the bare base first")
        divergence = _Divergence(self.log_p)
        sums, counts = self._nats_by_sequence(attachment.base, attachment.virtual_tokens, divergence, progress)
        rise, half_width = _mean_change(sums - self.nats, counts)
        return {
            "nll_rise": rise,
            "nll_rise_low": rise - half_width,
            "nll_rise_high": rise + half_width,
            "kl": divergence.total / max(self.kl_tokens, 1),
        }

    def nll_rise(self, attachment: Attachment) -> float:
        """Return only the rise of the loss, in nats per token."""
        sums, counts = self._nats_by_sequence(attachment.base, attachment.virtual_tokens)
        return _mean_change(sums - self.nats, counts)[0]

    def _nats_by_sequence(
        self,
        base: Base,
        virtual_tokens: int = 0,
        observe: Observe | None = None,
        progress: Progress = silent,
    ) -> tuple[Tensor, Tensor]:
        """Return each sequence's total of nats and its number of predicted tokens, in the batches' order.

        `observe` gets the log-probabilities of the first `kl_tokens` positions.
        """
        sums, counts, positions_left = [], [], self.kl_tokens
        groups = by_tokens(self.sequences, _PASS_TOKENS)
        for done, batch in enumerate(self._batches(base, virtual_tokens)):
            progress(FORGETTING, done, len(groups))
            values, owner = nll(base, batch, positions_left, observe).double().cpu(), batch.owner.cpu()
            positions_left = max(positions_left - len(values), 0)
            counts.append(torch.bincount(owner))
            sums.append(torch.zeros(len(counts[-1]), dtype=torch.float64).index_add_(0, owner, values))
        return torch.cat(sums), torch.cat(counts)

    def _batches(self, base: Base, virtual_tokens: int = 0) -> Iterator[Batch]:
        """Batch the sequences in the same groups with or without virtual tokens, so that positions line up."""
        rows = [after_virtual(base, sequence, virtual_tokens) for sequence in self.sequences]
        for group in by_tokens(self.sequences, _PASS_TOKENS):
            yield batch_of(base, [rows[index] for index in group])


def _kl_positions(base: Base) -> int:
    """Return at how many positions the base's log-probabilities are kept, at most."""
    return max(64, _KL_ENTRIES // base.anatomy.vocabulary)


def after_virtual(base: Base, sequence: TokenSequence, count: int) -> TokenSequence:
    """Return the sequence with `count` virtual tokens before it."""
    first = base.anatomy.vocabulary
    return TokenSequence([*range(first, first + count), *sequence.ids], [False] * count + sequence.labelled, 0)


def _mean_change(change: Tensor, counts: Tensor) -> tuple[float, float]:
    """Return sum(change) / sum(counts), the mean change per token, and half the width of its 95 % interval.

    It is a ratio estimate over sampled sequences (Cochran 1977, section 6.3): tokens of one sequence depend on one
    another.
    """
    from scipy import stats

    mean, sequences = float(change.sum() / counts.sum()), len(counts)
    if sequences < 2:
        return mean, 0.0
    error = float((change - mean * counts).std()) / (float(counts.double().mean()) * sequences**0.5)
    return mean, float(stats.t.ppf(0.975, sequences - 1)) * error


@dataclass(frozen=True)
class OnTask:
    """Holds the base's log-probabilities at the answer tokens of a task's examples, to compare a tuned model's with.

    `counts` are the answer tokens of each example that are compared, and `log_p` (sum of counts, V) lies on disk, with
    the memory that `Retention` says.
    """

    examples: tuple[Example, ...]
    counts: tuple[int, ...]
    log_p: Tensor = field(repr=False)

    @classmethod
    def measure(cls, base: Base, task: Task, examples: Sequence[Example], progress: Progress = silent) -> OnTask:
        """Measure the bare base on the first examples, as many as fit 256 MB."""
        sequences = Encoder(base, task).encode(examples[:_TASK_EXAMPLES])
        positions_left, counts = _kl_positions(base), list[int]()
        for sequence in sequences:
            if positions_left > 0:
                counts.append(min(sum(sequence.labelled[1:]), positions_left))
                positions_left -= counts[-1]
        recording = _Recording(sum(counts))
        for done, (sequence, count) in enumerate(zip(sequences, counts, strict=False)):
            progress("measuring the base on the task", done, len(counts))
            observe_predictions(base, batch_of(base, [sequence]), count, recording)
        return cls(tuple(examples[: len(counts)]), tuple(counts), recording.log_p)

    def divergence(self, attachment: Attachment, task: Task, progress: Progress = silent) -> float | None:
        """Return KL(base || adapted) in nats per answer token.

        None where the attachment's text or virtual tokens leave an answer less of the window than the base had for it.
        """
        base, divergence = attachment.base, _Divergence(self.log_p)
        encoder = Encoder(base, task, attachment.virtual_tokens, attachment.virtual_suffix)
        sequences = encoder.encode([attachment.render(example) for example in self.examples])
        for done, (sequence, count) in enumerate(zip(sequences, self.counts, strict=True)):
            progress(DIVERGENCE, done, len(sequences))
            if sum(sequence.labelled[1:]) < count:
                return None
            observe_predictions(base, batch_of(base, [sequence]), count, divergence)
        return divergence.total / sum(self.counts) if sum(self.counts) else None


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


@torch.no_grad()
def own_text(
    base: Base, seed: int, rows: int = 32, length: int = 128, progress: Progress = silent
) -> list[TokenSequence]:
    """Sample sequences from the base at temperature 1: text that the base knows, where the user gives none."""
    from tunewise.engine.decoding import Cohort, DecodingRow, Sampling  # loads transformers' caches

    length = min(length, base.window // 2)
    ends = Ends.of_tokenizer(base.tokenizer, base.generation_ends)
    start = base.tokenizer.bos_token_id if base.tokenizer.bos_token_id is not None else ends.taught
    texts = [
        DecodingRow(
            [0 if start is None else start], Sampling(temperature=1.0, seed=derive(seed, "retention", row)), None
        )
        for row in range(rows)
    ]
    cohort = Cohort(base, texts)
    for done in range(1, length + 1):
        tokens = list[int]()
        for token in cohort.draw():
            if isinstance(token, Exception):
                raise token
            tokens.append(token.id)
        if base.ranks.sharded:  # all ranks take equally many steps, whatever the last bits of their logits
            tokens = base.ranks.first(tokens)
        for row, id_ in zip(cohort.rows, tokens, strict=True):
            row.drawn.append(id_)
        progress("sampling text from the base", done, length)
        going = [place for place, id_ in enumerate(tokens) if id_ not in ends.stops]
        if done == length or not going:
            break
        cohort.keep(going)
        cohort.step([row.drawn[-1] for row in cohort.rows])
    return [TokenSequence([*text.prompt, *text.drawn], [False] + [True] * len(text.drawn), 0) for text in texts]
