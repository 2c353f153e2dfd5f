"""Rows that are decoded in one batch: a key/value cache of left-padded rows that others join and finished ones leave.

Every row has its own positions, its own random generator and its own end, so its answer does not depend on the rows
that are decoded beside it. A prefix that all rows share is read once; its keys and values stand before the padding.

Shapes: R rows of the batch, T positions of the cache, V entries of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

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
        """Draw at random from the likeliest tokens whose probabilities sum to `top_p`.

        Raises:
            ValueError: the logits are no numbers that can be drawn from.
        """
        probabilities = (logits.float().cpu() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p >= 1:
            return self._drawn_from(probabilities)
        probabilities, ids = probabilities.sort(descending=True)
        # The sum is taken without the token itself, so that the likeliest one always stays.
        beyond = probabilities.cumsum(-1) - probabilities >= self.sampling.top_p
        beyond[0] = False  # also where `top_p` is zero in single precision
        probabilities = probabilities.masked_fill(beyond, 0.0)
        return int(ids[self._drawn_from(probabilities)])

    def _drawn_from(self, weights: Tensor) -> int:
        """Return an index with a probability in proportion to its weight: the first where the sum exceeds a draw.

        torch.multinomial does the same in ten times the time, as it draws a number for every entry.
        """
        sums = weights.double().cumsum(-1)
        total = float(sums[-1])
        if not 0 < total < math.inf:
            raise ValueError("the model's predictions are not finite, so that no token can be drawn")
        draw = total * torch.rand(1, generator=self.generator, dtype=torch.float64)
        return int(torch.searchsorted(sums, draw, right=True))


class _RoomyLayer(DynamicLayer):
    """Keys and values in tensors with room for more tokens, so that a further token copies none of those before it."""

    _rooms: tuple[Tensor, ...] = ()  # which `keys` and `values` are the first positions of

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used, news = self.get_seq_length(), (key_states, value_states)
        length = used + key_states.shape[-2]
        if not self._rooms or self._rooms[0].shape[-2] < length:
            size = length + max(_ROOM, length // 4)
            rooms = tuple(new.new_empty(*new.shape[:2], size, new.shape[3]) for new in news)
            if used:
                for room, kept in zip(rooms, (self.keys, self.values), strict=True):
                    room[..., :used, :] = cast(Tensor, kept)
            self._rooms = rooms
        for room, new in zip(self._rooms, news, strict=True):
            room[..., used:length, :] = new
        keys, values = (room[..., :length, :] for room in self._rooms)
        self.keys, self.values = keys, values
        return keys, values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold these in place of all before."""
        self.keys, self.values, self._rooms = keys, values, ()

    def batch_select_indices(self, indices: Tensor) -> None:
        self.replace(cast(Tensor, self.keys)[indices], cast(Tensor, self.values)[indices])


_ROOM = 64  # further tokens that there is room for at least


def new_cache(base: Base) -> DynamicCache:
    """Return an empty cache for a model."""
    cache = DynamicCache(config=base.model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class Prefix:
    """The first tokens of several prompts, read once; `joins` is False where a layer's cache has a sliding window."""

    def __init__(self, base: Base, ids: Sequence[int]) -> None:
        self.length, self.cache = len(ids), new_cache(base)
        inputs = {"input_ids": _ids_tensor(base, [list(ids)]), "past_key_values": self.cache, "use_cache": True}
        base.within(lambda: base.anatomy.inner(**inputs).last_hidden_state)
        self.joins = _keeps_all(self.cache)

    def repeated(self, rows: int) -> DynamicCache:
        """Return a copy of the cache for so many rows, with any caches that a technique keeps as its attributes."""
        copy = deepcopy(self.cache)
        for layer in _layers(copy):
            keys, values = (tensor.expand(rows, *tensor.shape[1:]) for tensor in (layer.keys, layer.values))
            _replace(layer, keys, values)
        return copy


class Cohort:
    """A batch of rows with one key/value cache; `logits` (R, V) predict each row's next token.

    `mask` (R, T) is 1 where a position of the cache holds a token and 0 where it is padding; `lengths` are the numbers
    of tokens of each row. With a `prefix`, every prompt begins with its tokens.
    """

    def __init__(self, base: Base, rows: Sequence[DecodingRow], prefix: Prefix | None = None) -> None:
        self.base, self.rows = base, list(rows)
        self.shared = prefix.length if prefix is not None else 0
        self.lengths = [len(row.prompt) + len(row.drawn) for row in rows]
        pads = [max(self.lengths) - length for length in self.lengths]
        own = [[0] * pad + [*row.prompt, *row.drawn][self.shared :] for pad, row in zip(pads, rows, strict=True)]
        mask = [[1] * self.shared + [0] * pad + [1] * (len(ids) - pad) for pad, ids in zip(pads, own, strict=True)]
        self.mask = _ids_tensor(base, mask)  # (R, T)
        self.cache = prefix.repeated(len(rows)) if prefix is not None else new_cache(base)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, self.shared :]
        self.logits = self._forward(_ids_tensor(base, own), positions)

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

        The other cohort must have the same prefix, and not be used after it.
        """
        if not (self.joins and other.joins):
            return False
        width = max(self.mask.shape[1], other.mask.shape[1])
        self._resize(width)
        other._resize(width)
        for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True):
            # (R, heads, T, head size) each
            _replace(mine, torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values]))
        self.rows, self.lengths = self.rows + other.rows, self.lengths + other.lengths
        self.mask, self.logits = torch.cat([self.mask, other.mask]), torch.cat([self.logits, other.logits])
        return True

    @property
    def joins(self) -> bool:
        """Tell whether rows of another length can be batched with these: no layer forgets keys and values."""
        return _keeps_all(self.cache)

    def _resize(self, width: int) -> None:
        """Make the cache `width` positions long, by adding padding after the prefix or by removing it."""
        padding = width - self.mask.shape[1]  # negative where padding is removed
        if not padding:
            return
        self.mask = self._padded(self.mask, padding, 1)
        for layer in _layers(self.cache):
            _replace(layer, self._padded(layer.keys, padding, 2), self._padded(layer.values, padding, 2))

    def _padded(self, tensor: Tensor, padding: int, dim: int) -> Tensor:
        """Return a tensor with so many more positions after the prefix along `dim`, or fewer."""
        before, after = (
            tensor.narrow(dim, 0, self.shared),
            tensor.narrow(dim, self.shared, tensor.shape[dim] - self.shared),
        )
        if padding < 0:
            return torch.cat([before, after.narrow(dim, -padding, after.shape[dim] + padding)], dim)
        shape = (*tensor.shape[:dim], padding, *tensor.shape[dim + 1 :])
        return torch.cat([before, tensor.new_zeros(shape), after], dim)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Run the model on ids at positions, both (R, new tokens), and return the last logits (R, V)."""
        # Not every architecture takes them. The last position is named by a tensor, which copies its states: a slice of
        # them would be multiplied by the head row by row.
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        optional = {"position_ids": positions, "logits_to_keep": last}
        accepted = signature(type(self.base.model).forward).parameters
        output = self.base.within(
            lambda: self.base.model(
                input_ids=ids,
                attention_mask=self.mask,
                past_key_values=self.cache,
                use_cache=True,
                **{name: value for name, value in optional.items() if name in accepted},
            )
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


def _keeps_all(cache: DynamicCache) -> bool:
    """Whether every layer keeps all keys and values: none has a sliding window."""
    return all(type(layer) in (_RoomyLayer, DynamicLayer) for layer in _layers(cache))


def _replace(layer: DynamicLayer, keys: Tensor, values: Tensor) -> None:
    if isinstance(layer, _RoomyLayer):
        layer.replace(keys, values)
    else:
        layer.keys, layer.values = keys, values
