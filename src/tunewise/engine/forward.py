"""Runs one forward pass over a batch, to losses: the only place where a model is called for its likelihoods.

In shapes: B rows (one where packed), T tokens a row, N labelled tokens of the batch, d the width, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tunewise.engine.attention import packed
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.loss import head_loss, token_nll
from tunewise.engine.model import Base, PackingTrial
from tunewise.engine.packing import Batch, packed_batch, padded_batch


def layout(base: Base, batch: Batch) -> AbstractContextManager[None]:
    """Return the context in which a batch's forward and backward passes must run."""
    return packed(base.model, batch.segments) if batch.segments else nullcontext()


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
        return head_loss(base.anatomy.head, _hidden(base, batch), batch.targets, scale)
    total = torch.nn.functional.cross_entropy(_logits(base, batch), batch.targets, reduction="sum")
    return total if scale is None else total * scale


def answer_states(base: Base, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the last hidden states (N, d) and logits (N, V) that predict the targets. Call inside `layout`."""
    hidden = _hidden(base, batch)
    logits: Tensor = base.anatomy.head(hidden)
    return hidden, logits


@torch.no_grad()
def nll(base: Base, batch: Batch) -> Tensor:
    """Return the negative log-likelihood (nats) of each labelled token, shape (N,)."""
    with layout(base, batch):
        if batch.segments:
            return token_nll(base.anatomy.head, _hidden(base, batch), batch.targets)
        return torch.nn.functional.cross_entropy(_logits(base, batch), batch.targets, reduction="none")


@torch.no_grad()
def log_probabilities(base: Base, batch: Batch, limit: int) -> Tensor:
    """Return log-probabilities (at most `limit`, V) at the batch's first labelled positions."""
    with layout(base, batch):
        logits = base.anatomy.head(_hidden(base, batch)[:limit]) if batch.segments else _logits(base, batch)[:limit]
    return logits.float().log_softmax(-1)


def _hidden(base: Base, batch: Batch) -> Tensor:
    """Return the last hidden states (N, d) from which the targets are predicted."""
    output = base.anatomy.inner(
        input_ids=batch.ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    # (B, T, d) to (B * T, d) to (N, d)
    hidden: Tensor = output.last_hidden_state.flatten(0, 1).index_select(0, batch.positions)
    return hidden


def _logits(base: Base, batch: Batch) -> Tensor:
    """Return the logits (N, V) of the whole model, including what it does after its last hidden state."""
    output = base.model(
        input_ids=batch.ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    logits = output.logits.flatten(0, 1).index_select(0, batch.positions)  # (B, T, V) to (N, V)
    return logits if logits.dtype == torch.float64 else logits.float()


def batch_of(base: Base, sequences: list[TokenSequence], *, share: bool = True) -> Batch:
    """Build a packed batch where the base runs it, else a padded one; `share` computes a shared prefix once."""
    if why_not_packed(base):
        return padded_batch(sequences, base.device)
    return packed_batch(sequences, base.device, share=share)


def why_not_packed(base: Base) -> str | None:
    """Say why this base cannot run packed rows, or return None if it can; tried once, on the bare base.

    Four sequences in one row, two of which share a prefix, must score as they do alone through the whole model.
    """
    if base.packing is None:
        base.packing = PackingTrial(_probe(base))
    return base.packing.reason


@torch.no_grad()
def _probe(base: Base) -> str | None:
    window = getattr(base.model.config, "sliding_window", None) or 0
    sizes = (7, min(max(11, window + 3), base.anatomy.context, 600))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, base.anatomy.vocabulary, (size,), generator=generator).tolist() for size in sizes]
    sequences = [TokenSequence(ids, [True] * len(ids), 0) for ids in rows]
    shared_prefix = (rows[0] * 4)[: max(base.anatomy.context - 7, 1)]
    for ending in (rows[0][:5], rows[0][::-1]):
        labelled = [False] * len(shared_prefix) + [True] * len(ending)
        sequences.append(TokenSequence(shared_prefix + ending, labelled, len(shared_prefix)))
    try:
        packed_nll = nll(base, packed_batch(sequences, base.device))
    except Exception as error:  # any failure means the same: this architecture cannot be packed
        return f"packed attention failed on {type(base.model).__name__}: {' '.join(str(error).split())[:200]}"
    padded_nll = torch.cat([nll(base, padded_batch([sequence], base.device)) for sequence in sequences])
    difference = float((packed_nll - padded_nll).abs().max())
    tolerance = 1e-3 if base.model.dtype in (torch.float32, torch.float64) else 0.2
    if difference > tolerance:
        return f"{type(base.model).__name__} scores packed sequences differently (by {difference:.2g} nats per token)"
    return None
