"""Generates greedy answers, in left-padded batches with a key/value cache."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewise.core.progress import SCORING, Progress, silent
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import TURN, Encoder, TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, by_tokens, shared_prefix

if TYPE_CHECKING:
    from transformers import DynamicCache

_STOP_TOKENS = 4  # newest tokens that are searched for the text that ends an answer
_MAX_ROWS = 64  # prompts per batch


def answer_room(encoder: Encoder, task: Task) -> int:
    """Return how many tokens a generated answer may have.

    That is a quarter more than the longest answer of the training split has, at most half of the window.
    """
    longest = sorted(task.train, key=lambda example: -len(example.answer))[:32]
    sizes = [len(sequence.ids) - sequence.prompt for sequence in encoder.encode(longest)] if longest else [64]
    return max(1, min(max(sizes) * 5 // 4 + 4, encoder.limit // 2))


def stop_of(task: Task) -> str | None:
    """Return the text that ends an answer besides the end-of-sequence token, or None.

    It is the blank line that separates worked examples, unless a training answer contains one.
    """
    return None if any(TURN in example.answer for example in task.train) else TURN


@dataclass(frozen=True)
class Generated:
    """Holds generated answers and the prompts as the model read them.

    Attributes:
        texts: the answers.
        prompts: what they answer.
        tokens: the length of each answer, without what ended it.
        ended: whether each answer ended, by a token or the text that ends an answer; if not, it was cut at the largest
            number of tokens.
    """

    texts: list[str]
    prompts: list[TokenSequence] = field(repr=False)
    tokens: list[int]
    ended: list[bool]


class _StopAtText:  # called as one of Hugging Face's stopping criteria
    """Stops the rows of a batch whose newest text, after `width` tokens of prompt, contains `stop`."""

    def __init__(self, encoder: Encoder, stop: str, width: int) -> None:
        self.encoder, self.stop, self.width = encoder, stop, width

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        newest = input_ids[:, max(self.width, input_ids.shape[1] - _STOP_TOKENS) :].tolist()
        return torch.tensor(
            [self.stop in self.encoder.tokenizer.decode(row) for row in newest], device=input_ids.device
        )


@torch.no_grad()
def generate(
    base: Base,
    encoder: Encoder,
    rendered: Sequence[Example],
    room: int,
    stop: str | None = None,
    progress: Progress = silent,
) -> Generated:
    """Generate greedy answers in left-padded batches with a key/value cache; on several ranks each its share.

    A prefix that all prompts share is read once, and its key/value cache stands before the padding of every batch.

    Args:
        base: the model, with whatever is attached to it.
        encoder: renders and tokenizes the prompts.
        rendered: examples whose prompts are answered; their own answers are not looked at.
        room: the largest number of tokens in an answer.
        stop: text that ends an answer too; ignored for chat models, which end their turns with a control token.
        progress: called after every batch.
    """
    own = _generate(base, encoder, base.ranks.mine(rendered), room, stop, progress)
    if base.ranks.size == 1:
        return own
    every = base.ranks.gathered(list(zip(own.texts, own.prompts, own.tokens, own.ended, strict=True)))
    texts, prompts, tokens, ended = (list(column) for column in zip(*every, strict=True))
    return Generated(texts, prompts, tokens, ended)


def _generate(
    base: Base, encoder: Encoder, rendered: Sequence[Example], room: int, stop: str | None, progress: Progress
) -> Generated:
    from transformers import GenerationConfig

    stop = None if encoder.chat else stop
    prompts = encoder.prompts(rendered, room)
    config = GenerationConfig(
        max_new_tokens=room,
        do_sample=False,
        eos_token_id=sorted(encoder.ends.stops) or None,
        pad_token_id=encoder.ends.taught or 0,
    )
    texts, tokens, ended = [""] * len(prompts), [0] * len(prompts), [False] * len(prompts)
    shared = shared_prefix(prompts) if prompts and not why_not_packed(base) else 0
    cache = _prefix_cache(base, prompts[0].ids[:shared]) if shared else None
    shared = shared if cache is not None else 0
    rests = [TokenSequence(prompt.ids[shared:], [], 0) for prompt in prompts]
    groups = [
        group[s : s + _MAX_ROWS] for group in by_tokens(rests, 2 * PASS_TOKENS) for s in range(0, len(group), _MAX_ROWS)
    ]
    done = 0
    for group in groups:
        width = max(len(prompts[index].ids) for index in group)
        pads = [width - len(prompts[index].ids) for index in group]
        rows = [(prompts[index].ids, pad) for pad, index in zip(pads, group, strict=True)]
        ids = torch.tensor([row[:shared] + [0] * pad + row[shared:] for row, pad in rows])
        mask = torch.tensor([[1] * shared + [0] * pad + [1] * (width - shared - pad) for _, pad in rows])
        output = base.generate(
            input_ids=ids.to(base.device),
            attention_mask=mask.to(base.device),
            generation_config=config,
            past_key_values=_repeat_cache(cache, len(group)),
            stopping_criteria=[_StopAtText(encoder, stop, width)] if stop else [],
        )
        for index, row in zip(group, output[:, width:].tolist(), strict=True):
            end = encoder.until_stop(row)
            texts[index] = encoder.decode(row[:end], stop)
            kept = _tokens_before(encoder, row[:end], stop) if stop else end
            tokens[index], ended[index] = kept, kept < len(row)
        done += len(group)
        progress(SCORING, done, len(prompts))
    return Generated(texts, prompts, tokens, ended)


def _tokens_before(encoder: Encoder, ids: list[int], stop: str) -> int:
    """Return how many ids stand before the token that completes `stop`, all of them where none does."""
    if stop not in encoder.tokenizer.decode(ids):
        return len(ids)
    return bisect_left(range(len(ids)), True, key=lambda last: stop in encoder.tokenizer.decode(ids[: last + 1]))


def _prefix_cache(base: Base, ids: list[int]) -> DynamicCache | None:
    """Return the key/value cache of a prefix, or None where some layer drops a part of it (a sliding window)."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=base.model.config)
    base.anatomy.inner(input_ids=torch.tensor([ids], device=base.device), past_key_values=cache, use_cache=True)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


def _repeat_cache(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """Copy a cache of one row for several rows, with any caches that a technique keeps as its attributes."""
    from transformers import DynamicCache

    copy = deepcopy(cache)
    for part in (copy, *vars(copy).values()) if copy is not None else ():
        if isinstance(part, DynamicCache):
            part.batch_repeat_interleave(rows)
    return copy
