"""Rows that are decoded in one batch: a key/value cache of left-padded rows that others join and finished ones leave.

Every row has its own positions, its own random generator and its own end, so its answer does not depend on the rows
that are decoded beside it.

Shapes: R rows of the batch, T positions of the cache, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from tunewise.engine.model import Base

COLDEST = 1e-5  # a lower temperature draws the likeliest token, since logits divided by it overflow


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn: the likeliest at temperature 0, else at random from the `top_p` likeliest.

    `logprobs` is the number of alternatives returned with each token's log-probability; None: no log-probabilities.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A drawn token with its natural log-probability and the likeliest tokens' (id, log-probability)."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class DecodingRow:
    """One answer being decoded: the prompt's ids, how to draw, and `owner`, the caller's own object for it.

    `drawn` are the ids of the answer so far.
    """

    prompt: list[int]
    sampling: Sampling
    owner: Any
    drawn: list[int] = field(init=False, default_factory=list)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.sampling.seed)

    def draw(self, logits: Tensor, likeliest: int) -> Token:
        """Draw the next token from its logits (V,), of which the largest is that of token `likeliest`."""
        sampling = self.sampling
        token = self._sample(logits) if sampling.temperature >= COLDEST else likeliest
        if sampling.logprobs is None:
            return Token(token)
        logprobs = logits.float().log_softmax(-1)
        values, ids = logprobs.topk(min(sampling.logprobs, len(logprobs)))
        return Token(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _sample(self, logits: Tensor) -> int:
        """Draw at random from the likeliest tokens whose probabilities sum to `top_p`."""
        probabilities, ids = (logits.float().cpu() / self.sampling.temperature).softmax(-1).sort(descending=True)
        # The sum is taken without the token itself, so that the likeliest one always stays.
        beyond = probabilities.cumsum(-1) - probabilities >= self.sampling.top_p
        beyond[0] = False  # also where `top_p` is zero in single precision
        probabilities = probabilities.masked_fill(beyond, 0.0)
        return int(ids[torch.multinomial(probabilities, 1, generator=self.generator)])


class Cohort:
    """A batch of rows with one key/value cache; `logits` (R, V) predict each row's next token.

    `mask` (R, T) is 1 where a position of the cache holds a token and 0 where it is padding; `lengths` are the numbers
    of tokens of each row.
    """

    def __init__(self, base: Base, rows: Sequence[DecodingRow]) -> None:
        self.base, self.rows = base, list(rows)
        self.lengths = [len(row.prompt) + len(row.drawn) for row in rows]
        width = max(self.lengths)
        self.mask = _ids_tensor(base, [[0] * (width - length) + [1] * length for length in self.lengths])  # (R, T)
        self.cache = DynamicCache(config=base.model.config)
        pads = [[0] * (width - length) for length in self.lengths]
        ids = _ids_tensor(
            base, [[*pad, *row.prompt, *row.drawn] for pad, row in zip(pads, rows, strict=True)]
        )  # (R, T)
        self.logits = self._forward(ids, (self.mask.cumsum(-1) - 1).clamp(min=0))

    def draw(self) -> list[Token | Exception]:
        """Draw the next token of every row; a row for which that fails gets the error, and costs no other row."""
        drawn = list[Token | Exception]()
        for row, logits, best in zip(self.rows, self.logits, self.logits.argmax(-1).tolist(), strict=True):
            try:
                drawn.append(row.draw(logits, best))
            except Exception as error:  # torch raises several types for numbers that cannot be drawn from
                drawn.append(error)
        return drawn

    def step(self, tokens: Sequence[int]) -> None:
        """Run the model on one more token per row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], 1)
        positions = _ids_tensor(self.base, [[length] for length in self.lengths])  # (R, 1)
        self.lengths = [length + 1 for length in self.lengths]
        self.logits = self._forward(_ids_tensor(self.base, [[token] for token in tokens]), positions)

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all rows but those at `indices`, and the padding that all of them have then."""
        if len(indices) == len(self.rows):
            return
        index = torch.tensor(indices, dtype=torch.long, device=self.base.device)
        self.rows, self.lengths = [self.rows[i] for i in indices], [self.lengths[i] for i in indices]
        self.mask, self.logits = self.mask[index], self.logits[index]
        for cache in _caches(self.cache):
            cache.batch_select_indices(index)
        if self.rows and self.joins:
            self._resize(max(self.lengths))

    def join(self, other: Cohort) -> bool:
        """Take over the other cohort's rows; return False where a layer's cache has a sliding window, which forbids it.

        The other cohort must not be used after it.
        """
        if not (self.joins and other.joins):
            return False
        width = max(self.mask.shape[1], other.mask.shape[1])
        self._resize(width)
        other._resize(width)
        for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True):
            # (R, heads, T, head size) each
            mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])
        self.rows, self.lengths = self.rows + other.rows, self.lengths + other.lengths
        self.mask, self.logits = torch.cat([self.mask, other.mask]), torch.cat([self.logits, other.logits])
        return True

    @property
    def joins(self) -> bool:
        """Tell whether rows of another length can be batched with these: no layer forgets keys and values."""
        return all(type(layer) is DynamicLayer for layer in _layers(self.cache))

    def _resize(self, width: int) -> None:
        """Make the cache `width` positions long, by adding padding on the left or by removing it."""
        padding = width - self.mask.shape[1]  # negative where padding is removed
        self.mask = torch.nn.functional.pad(self.mask, (padding, 0))
        for layer in _layers(self.cache):
            layer.keys, layer.values = (
                torch.nn.functional.pad(tensor, (0, 0, padding, 0)) for tensor in (layer.keys, layer.values)
            )

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Run the model on ids at positions, both (R, new tokens), and return the last logits (R, V)."""
        optional = {"position_ids": positions, "logits_to_keep": 1}  # not every architecture takes them
        accepted = signature(type(self.base.model).forward).parameters
        output = self.base.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in accepted},
        )
        return output.logits[:, -1]


def _ids_tensor(base: Base, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=base.device)


def _caches(cache: DynamicCache) -> Iterator[DynamicCache]:
    """Yield the cache, and the caches that a technique stored as attributes of it (lst's side network has one)."""
    yield cache
    yield from (part for part in vars(cache).values() if isinstance(part, DynamicCache))


def _layers(cache: DynamicCache) -> list[Any]:
    return [layer for part in _caches(cache) for layer in part.layers]
