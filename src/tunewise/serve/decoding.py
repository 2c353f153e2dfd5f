"""Rows that are decoded together: a key/value cache of left-padded rows that others join and finished ones leave.

Every row has its own place, its own randomness and its own end, so what it says does not depend on its company.
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


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn: the likeliest at temperature 0, else at random from the `top_p` likeliest.

    `logprobs` alternatives are told beside each token's own log-probability; None tells nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A drawn token with its natural log-probability and the likeliest ones' (id, log-probability)."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Row:
    """One answer in the making: the prompt's ids, how to draw, and `owner`, whom it belongs to."""

    prompt: list[int]
    sampling: Sampling
    owner: Any
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.sampling.seed)

    def draw(self, logits: Tensor, likeliest: int) -> Token:
        """The next token from its logits (V,), of which the largest is `likeliest`."""
        how = self.sampling
        chosen = likeliest
        if how.temperature > 0:
            chosen = self._sampled(logits)
        if how.logprobs is None:
            return Token(chosen)
        found = logits.float().log_softmax(-1)
        values, ids = found.topk(min(how.logprobs, len(found)))
        return Token(chosen, float(found[chosen]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _sampled(self, logits: Tensor) -> int:
        values, ids = (logits.float().cpu() / self.sampling.temperature).softmax(-1).sort(descending=True)
        beyond = values.cumsum(-1) - values >= self.sampling.top_p  # the first one always stays
        values = values.masked_fill(beyond, 0.0)
        return int(ids[torch.multinomial(values, 1, generator=self.generator)])


class Cohort:
    """Rows with one cache; `logits` (rows, V) predict each row's next token.

    `mask` (rows, T) says which places of the cache are real, `lengths` how many each row has.
    """

    def __init__(self, base: Base, rows: Sequence[Row]) -> None:
        self.base, self.rows = base, list(rows)
        self.lengths = [len(row.prompt) for row in rows]
        width = max(self.lengths)
        self.mask = _tensor(base, [[0] * (width - size) + [1] * size for size in self.lengths])
        self.cache = DynamicCache(config=base.model.config)
        ids = _tensor(base, [[0] * (width - len(row.prompt)) + row.prompt for row in rows])
        self.logits = self._pass(ids, (self.mask.cumsum(-1) - 1).clamp(min=0))

    def draw(self) -> list[Token]:
        """The next token of every row."""
        likeliest = self.logits.argmax(-1).tolist()
        return [row.draw(own, best) for row, own, best in zip(self.rows, self.logits, likeliest, strict=True)]

    def step(self, tokens: Sequence[int]) -> None:
        """Read one more token a row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], 1)
        places = _tensor(self.base, [[size] for size in self.lengths])
        self.lengths = [size + 1 for size in self.lengths]
        self.logits = self._pass(_tensor(self.base, [[token] for token in tokens]), places)

    def keep(self, places: Sequence[int]) -> None:
        """Leave out all other rows, and the padding that is then common to all."""
        if len(places) == len(self.rows):
            return
        index = torch.tensor(places, dtype=torch.long, device=self.base.device)
        self.rows, self.lengths = [self.rows[i] for i in places], [self.lengths[i] for i in places]
        self.mask, self.logits = self.mask[index], self.logits[index]
        for cache in _caches(self.cache):
            cache.batch_select_indices(index)
        if self.rows and self.joins:
            self._widen(max(self.lengths))

    def join(self, other: Cohort) -> bool:
        """Take the other's rows, unless layers forget some of their keys and values (a sliding window)."""
        if not (self.joins and other.joins):
            return False
        width = max(self.mask.shape[1], other.mask.shape[1])
        self._widen(width)
        other._widen(width)
        for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True):
            mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])
        self.rows, self.lengths = self.rows + other.rows, self.lengths + other.lengths
        self.mask, self.logits = torch.cat([self.mask, other.mask]), torch.cat([self.logits, other.logits])
        return True

    @property
    def joins(self) -> bool:
        """Whether rows of another length can be put beside these."""
        return all(type(layer) is DynamicLayer for layer in _layers(self.cache))

    def _widen(self, width: int) -> None:
        """Make the cache `width` places long, by padding on the left or by taking padding away."""
        more = width - self.mask.shape[1]
        self.mask = torch.nn.functional.pad(self.mask, (more, 0))
        for layer in _layers(self.cache):
            layer.keys, layer.values = (torch.nn.functional.pad(t, (0, 0, more, 0)) for t in (layer.keys, layer.values))

    def _pass(self, ids: Tensor, places: Tensor) -> Tensor:
        given = {"position_ids": places, "logits_to_keep": 1}
        known = signature(type(self.base.model).forward).parameters
        output = self.base.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in given.items() if name in known},
        )
        return output.logits[:, -1]


def _tensor(base: Base, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=base.device)


def _caches(cache: DynamicCache) -> Iterator[DynamicCache]:
    """The cache, and those that a technique hung on it."""
    yield cache
    yield from (part for part in vars(cache).values() if isinstance(part, DynamicCache))


def _layers(cache: DynamicCache) -> list[Any]:
    return [layer for part in _caches(cache) for layer in part.layers]
