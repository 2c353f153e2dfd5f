"""What was forgotten: the loss on text that the base knew, and how far predictions there moved from the base's.

The same arithmetic is done for the base and for what was tuned, so that the unadapted base forgets exactly 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig

from tunewise.forward import batch_of, log_probabilities, nll
from tunewise.model import Base
from tunewise.pack import Batch, by_tokens
from tunewise.pack import Sequence as Tokens
from tunewise.seeds import derive
from tunewise.technique import Attachment

_TOKENS = 4096  # real tokens of one pass
_KL_ENTRIES = 1 << 26  # log-probabilities of the base that are kept: 256 MB


@dataclass
class Retention:
    """Text that the base knew before: its loss there, and its probabilities, to compare a tuned model with.

    The loss counts every token of the sequences; the divergence the first `kl_tokens` of them.
    """

    sequences: list[Tokens]
    nll: float
    source: str
    log_p: list[Tensor] = field(repr=False)

    @classmethod
    def measure(cls, base: Base, texts: Sequence[str] | None, seed: int = 0) -> Retention:
        """Measure the bare base on the given texts, or on text that it writes itself."""
        source = "given text" if texts else "text sampled from the base"
        sequences = text_sequences(base, texts) if texts else own_text(base, seed)
        held = cls(sequences, 0.0, source, [])
        batches = held._batches(base)
        held.nll = _mean_nll(base, batches)
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
        """nll_rise in nats per token and kl = KL(base || adapted) in nats per position, virtual tokens included."""
        base = attachment.base
        total = torch.zeros((), dtype=torch.float64)
        batches = self._batches(base, attachment.virtual_tokens)
        for batch, before in zip(batches, self.log_p, strict=False):
            after = log_probabilities(base, batch, len(before))
            total += (before.exp() * (before - after)).double().sum().cpu()
        return {"nll_rise": _mean_nll(base, batches) - self.nll, "kl": float(total) / max(self.kl_tokens, 1)}

    def _batches(self, base: Base, virtual_tokens: int = 0) -> list[Batch]:
        """The same groups whatever is put before the sequences, so that positions line up with the base's."""
        rows = [after_virtual(base, sequence, virtual_tokens) for sequence in self.sequences]
        groups = by_tokens(self.sequences, _TOKENS)
        return [batch_of(base, [rows[index] for index in group]) for group in groups]


def after_virtual(base: Base, sequence: Tokens, count: int) -> Tokens:
    """The sequence with `count` virtual tokens before it."""
    first = base.anatomy.vocabulary
    return Tokens([*range(first, first + count), *sequence.ids], [False] * count + sequence.labelled, 0)


def _mean_nll(base: Base, batches: list[Batch]) -> float:
    return float(torch.cat([nll(base, batch).double() for batch in batches]).mean())


def text_sequences(base: Base, texts: Sequence[str], most: int = 64, length: int = 256) -> list[Tokens]:
    """Up to `most` pieces of at most `length` tokens, the text's lines joined."""
    size = min(length, base.window // 2)  # half of the window stays free for virtual tokens
    ids: list[int] = []
    for text in texts:
        ids += base.tokenizer(text + "\n", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if len(ids) >= most * size:
            break
    start = [base.tokenizer.bos_token_id] if base.tokenizer.bos_token_id is not None else []
    pieces = [start + ids[at : at + size - len(start)] for at in range(0, len(ids), size - len(start))][:most]
    return [Tokens(piece, [False] + [True] * (len(piece) - 1), 0) for piece in pieces if len(piece) > len(start) + 1]


def own_text(base: Base, seed: int, rows: int = 32, length: int = 128) -> list[Tokens]:
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
        sequences.append(Tokens(row[:end], [False] + [True] * (end - 1), 0))
    return sequences
