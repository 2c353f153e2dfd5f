"""Greedy answers, in cached, left-padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from tunewise.core.progress import Progress, silent
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import TURN, Encoder, TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, beginning, by_tokens


def answer_room(encoder: Encoder, task: Task) -> int:
    """Tokens that a generated answer may have: a quarter more than training's longest, at most half of the window."""
    longest = sorted(task.train, key=lambda example: -len(example.answer))[:32]
    sizes = [len(sequence.ids) - sequence.prompt for sequence in encoder.encode(longest)] if longest else [64]
    return max(1, min(max(sizes) * 5 // 4 + 4, encoder.limit // 2))


def stop_of(task: Task) -> str | None:
    """What ends an answer beside the end mark: the blank line between worked examples, unless answers have such."""
    return None if any(TURN in example.answer for example in task.train) else TURN


class _Stopped(StoppingCriteria):
    """Rows of a batch whose newest text, after `width` tokens of prompt, holds the stop."""

    def __init__(self, encoder: Encoder, stop: str, width: int) -> None:
        self.encoder, self.stop, self.width = encoder, stop, width

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        newest = input_ids[:, max(self.width, input_ids.shape[1] - 4) :].tolist()
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
) -> tuple[list[str], list[TokenSequence]]:
    """Greedy answers of at most `room` tokens, in cached, left-padded batches; and the prompts as they were sent.

    What all prompts begin with is read once; its keys and values stand before the padding of every batch.
    A model that ends its turns by no mark of a chat template ends an answer at `stop` too.
    """
    stop = None if encoder.chat else stop
    prompts = encoder.prompts(rendered, room)
    config = GenerationConfig(
        max_new_tokens=room,
        do_sample=False,
        eos_token_id=encoder.eos,
        pad_token_id=encoder.eos if encoder.eos is not None else 0,
    )
    texts = [""] * len(prompts)
    head = beginning(prompts) if prompts and not why_not_packed(base) else 0
    cache = _read(base, prompts[0].ids[:head]) if head else None
    head = head if cache is not None else 0
    rests = [TokenSequence(prompt.ids[head:], [], 0) for prompt in prompts]
    groups = [group[s : s + 64] for group in by_tokens(rests, 2 * PASS_TOKENS) for s in range(0, len(group), 64)]
    done = 0
    for group in groups:
        width = max(len(prompts[index].ids) for index in group)
        pads = [width - len(prompts[index].ids) for index in group]
        rows = [(prompts[index].ids, pad) for pad, index in zip(pads, group, strict=True)]
        ids = torch.tensor([row[:head] + [0] * pad + row[head:] for row, pad in rows])
        mask = torch.tensor([[1] * head + [0] * pad + [1] * (width - head - pad) for _, pad in rows])
        output = base.generate(
            input_ids=ids.to(base.device),
            attention_mask=mask.to(base.device),
            generation_config=config,
            past_key_values=_repeated(cache, len(group)),
            stopping_criteria=[_Stopped(encoder, stop, width)] if stop else [],
        )
        for index, row in zip(group, output[:, width:].tolist(), strict=True):
            end = row.index(encoder.eos) if encoder.eos in row else len(row)
            texts[index] = encoder.decode(row[:end], stop)
        done += len(group)
        progress("scoring", done, len(prompts))
    return texts, prompts


def _read(base: Base, ids: list[int]) -> DynamicCache | None:
    """The keys and values of a beginning, or None where layers forget some of them (a sliding window)."""
    cache = DynamicCache(config=base.model.config)
    base.anatomy.inner(input_ids=torch.tensor([ids], device=base.device), past_key_values=cache, use_cache=True)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


def _repeated(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """A copy for so many rows, of caches that a technique hung on it too."""
    copy = deepcopy(cache)
    for part in (copy, *vars(copy).values()) if copy is not None else ():
        if isinstance(part, DynamicCache):
            part.batch_repeat_interleave(rows)
    return copy
