"""Runs one forward pass over a batch, to losses: the only place where a model is called for its likelihoods.

In shapes: B rows (one where packed), T tokens a row, N labelled tokens of the batch, d the width, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tunewise.core.errors import ModelError
from tunewise.engine.attention import packed
from tunewise.engine.context import INSTEAD, divided
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.loss import head_loss, token_nll
from tunewise.engine.model import Base, PackingTrial
from tunewise.engine.packing import Batch, packed_batch, padded_batch


def layout(base: Base, batch: Batch) -> AbstractContextManager[None]:
    """Return the context in which a batch's forward and backward passes must run."""
    return packed(base.model, batch.segments, batch.division) if batch.segments else nullcontext()


@contextmanager
def recomputing(base: Base, on: bool) -> Iterator[None]:
    """Recompute the blocks' activations in the backward pass instead of keeping them (Chen et al. 2016).

    Hugging Face does so only in training mode; only the blocks' flag is set, so that no dropout inside is active.
    """
    if not on:
        yield
        return
    enable, disable = _switches(base.model)
    enable({"use_reentrant": False})
    try:
        for block in base.anatomy.blocks:
            block.training = True
        yield
    finally:
        for block in base.anatomy.blocks:
            block.training = False
        disable()


def _switches(model: Any) -> tuple[Any, Any]:
    """Return Hugging Face's two methods to enable and disable it, by their newer names where these exist."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    return getattr(model, f"{name}_checkpointing_enable"), getattr(model, f"{name}_checkpointing_disable")


def loss_sum(base: Base, batch: Batch, scale: float | None = None) -> Tensor:
    """Sum the negative log-likelihoods (nats) of the labelled tokens; differentiable. Call inside `layout`.

    `scale` is as in `head_loss`.
    """
    if batch.segments:
        return base.within(lambda: head_loss(base.anatomy.head, _hidden(base, batch), batch.targets, scale))
    total = torch.nn.functional.cross_entropy(_logits(base, batch), batch.targets, reduction="sum")
    return total if scale is None else total * scale


def answer_states(base: Base, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the last hidden states (N, d) and logits (N, V) that predict the targets. Call inside `layout`."""

    def states() -> tuple[Tensor, Tensor]:
        hidden = _hidden(base, batch)
        return hidden, base.anatomy.head(hidden)

    return base.within(states)


Observe = Callable[[Tensor], None]


@torch.no_grad()
def nll(base: Base, batch: Batch, limit: int = 0, observe: Observe | None = None) -> Tensor:
    """Return the negative log-likelihood (nats) of each labelled token, shape (N,).

    With `observe`, the same forward pass also does what `observe_predictions` does.
    """
    with layout(base, batch):
        if not batch.segments:
            return torch.cat([_padded_nll(part, logits) for part, logits in _padded_parts(base, batch, limit, observe)])
        return base.within(lambda: _packed_nll(base, batch, limit, observe))


def _packed_nll(base: Base, batch: Batch, limit: int, observe: Observe | None) -> Tensor:
    hidden = _hidden(base, batch)
    if observe is not None:
        _observe(base, hidden[:limit], base.anatomy.head, observe)
    return token_nll(base.anatomy.head, hidden, batch.targets, batch.sources)


@torch.no_grad()
def observe_predictions(base: Base, batch: Batch, limit: int, observe: Observe) -> None:
    """Call `observe` with the log-probabilities (n, V), in float32, of the batch's first `limit` labelled positions.

    It is called for a few positions at a time, in their order: log-probabilities of all never exist at once. Besides
    the hidden states there are `logit_rows` rows of logits and as many of log-probabilities.
    """
    with layout(base, batch):
        if batch.segments:
            base.within(lambda: _observe(base, _hidden(base, batch)[:limit], base.anatomy.head, observe))
            return
        for _ in _padded_parts(base, batch, limit, observe):
            pass


@torch.no_grad()
def target_logits(base: Base, batch: Batch) -> Tensor:
    """Return the logits (N, V) that predict the targets, in float32 or better."""
    with layout(base, batch):
        if not batch.segments:
            return _logits(base, batch)
        logits = answer_states(base, batch)[1][list(batch.sources)]
    return logits if logits.dtype == torch.float64 else logits.float()


def logit_rows(base: Base) -> int:
    """Return for how many positions log-probabilities exist at once: 8 MB of them, or 16 positions if that is more."""
    return max(16, _LOGITS_AT_ONCE // base.anatomy.vocabulary)


_LOGITS_AT_ONCE = 1 << 21
_PADDED_LOGITS_AT_ONCE = 1 << 24  # 64 MB in float32; one row of a padded batch may exceed it


def _observe(base: Base, rows: Tensor, head: Callable[[Tensor], Tensor], observe: Observe) -> None:
    for part in rows.split(logit_rows(base)) if len(rows) else ():
        observe(head(part).float().log_softmax(-1))


def _padded_parts(base: Base, batch: Batch, limit: int, observe: Observe | None) -> Iterator[tuple[Batch, Tensor]]:
    """Yield a padded batch in parts of whole rows, each with its logits (n, V), only as large as these may be."""
    rows, width = batch.ids.shape
    together = max(1, _PADDED_LOGITS_AT_ONCE // (width * base.anatomy.vocabulary))
    for start in range(0, rows, together):
        stop = min(start + together, rows)
        inside = (batch.positions >= start * width) & (batch.positions < stop * width)
        part = replace(
            batch,
            ids=batch.ids[start:stop],
            position_ids=batch.position_ids[start:stop],
            attention_mask=batch.attention_mask[start:stop] if batch.attention_mask is not None else None,
            positions=batch.positions[inside] - start * width,
            targets=batch.targets[inside],
            sources=range(int(inside.sum())),
            owner=batch.owner[inside],
            branch=batch.branch[inside],
        )
        logits = _logits(base, part)
        if observe is not None:
            _observe(base, logits[: max(limit, 0)], lambda few: few, observe)
            limit -= len(logits)
        yield part, logits


def _padded_nll(part: Batch, logits: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, part.targets, reduction="none")


def _hidden(base: Base, batch: Batch) -> Tensor:
    """Return the last hidden states (P, d) from which the targets are predicted."""
    output = base.anatomy.inner(
        input_ids=batch.ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    # (B, T, d) to (B * T, d) to (P, d)
    hidden: Tensor = output.last_hidden_state.flatten(0, 1).index_select(0, batch.positions)
    return hidden


def _logits(base: Base, batch: Batch) -> Tensor:
    """Return the logits (N, V) of the whole model, including what it does after its last hidden state."""
    output = base.within(
        lambda: base.model(
            input_ids=batch.ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )
    )
    logits = output.logits.flatten(0, 1).index_select(0, batch.positions)  # (B, T, V) to (N, V)
    return logits if logits.dtype == torch.float64 else logits.float()


def batch_of(base: Base, sequences: list[TokenSequence], *, share: bool = True, divide: bool = False) -> Batch:
    """Build a packed batch where the base runs it, else a padded one.

    Args:
        base: runs the batch.
        sequences: what it holds.
        share: whether a shared prefix is computed once.
        divide: whether it is this device's stretch of the row only, where devices compute rows together.

    Raises:
        ModelError: the row is to be divided, and cannot be packed.
    """
    if reason := why_not_packed(base):
        if divide and base.ranks.divides_rows:
            raise ModelError(f"{base.name}: its rows cannot be packed, and so not be divided ({reason}); {INSTEAD}")
        return padded_batch(sequences, base.device)
    batch = packed_batch(sequences, base.device, share=share)
    return divided(batch, base.ranks) if divide else batch


def why_not_packed(base: Base) -> str | None:
    """Say why this base cannot run packed rows, or return None if it can; tried once, on the bare base.

    Four sequences in one row, two of which share a prefix, must score as they do alone through the whole model.
    """
    if base.packing is None:
        base.packing = PackingTrial(_probe(base))
    return base.packing.reason


@torch.no_grad()
def require_division(base: Base) -> None:
    """Refuse a base that scores divided rows otherwise than whole ones; all devices must ask together.

    Raises:
        ModelError: says by how much, or why its rows cannot be divided at all.
    """
    sequences, ranks = _trial_sequences(base), base.ranks
    sums = []
    for divide in (True, False):
        batch = batch_of(base, sequences, divide=divide)
        sums.append(torch.zeros(len(sequences), dtype=torch.float64, device=base.device))
        sums[-1].index_add_(0, batch.owner, nll(base, batch).double())
    ranks.sum(sums[:1])
    tokens = torch.tensor([sum(sequence.labelled[1:]) for sequence in sequences], device=base.device)
    difference = float(((sums[0] / ranks.groups - sums[1]) / tokens).abs().max())
    if not ranks.first(difference <= (1e-3 if _is_exact(base) else 0.3)):
        raise ModelError(
            f"{base.name} scores rows differently where devices compute them together (by {difference:.2g} nats per "
            f"token); {INSTEAD}"
        )


def _is_exact(base: Base) -> bool:
    return base.model.dtype in (torch.float32, torch.float64)


@torch.no_grad()
def _probe(base: Base) -> str | None:
    sequences = _trial_sequences(base)
    try:
        packed_nll = nll(base, packed_batch(sequences, base.device))
    except Exception as error:  # any failure means the same: this architecture cannot be packed
        return f"packed attention failed on {type(base.model).__name__}: {' '.join(str(error).split())[:200]}"
    padded_nll = torch.cat([nll(base, padded_batch([sequence], base.device)) for sequence in sequences])
    differences = (packed_nll - padded_nll).abs()
    # In half precision single tokens of random text differ by 0.3 nats, and by 0.1 on average, whichever way rows are
    # laid; where a sequence sees another one, they differ by more than 1 on average.
    exact = _is_exact(base)
    difference = float(differences.max() if exact else differences.mean())
    if difference > (1e-3 if exact else 0.3):
        return f"{type(base.model).__name__} scores packed sequences differently (by {difference:.2g} nats per token)"
    return None


def _trial_sequences(base: Base) -> list[TokenSequence]:
    """Return four sequences of random tokens, two of which share a prefix."""
    window = getattr(base.model.config, "sliding_window", None) or 0
    sizes = (7, min(max(11, window + 3), base.anatomy.context, 600))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, base.anatomy.vocabulary, (size,), generator=generator).tolist() for size in sizes]
    sequences = [TokenSequence(ids, [True] * len(ids), 0) for ids in rows]
    shared_prefix = (rows[0] * 4)[: max(base.anatomy.context - 7, 1)]
    for ending in (rows[0][:5], rows[0][::-1]):
        labelled = [False] * len(shared_prefix) + [True] * len(ending)
        sequences.append(TokenSequence(shared_prefix + ending, labelled, len(shared_prefix)))
    return sequences
