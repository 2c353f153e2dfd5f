"""Generates greedy answers: rows of a batch that others join as soon as there is room."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tunewise.core.progress import SCORING, Progress, silent
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import TURN, Encoder, TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, by_tokens, shared_prefix

if TYPE_CHECKING:
    from tunewise.engine.decoding import Cohort

_STOP_TOKENS = 4  # newest tokens that are searched for the text that ends an answer
_MAX_ROWS = 64  # answers that are written at a time
_LONGEST = 32  # answers that are measured to find the longest
_WAITING = 0.125  # share of the rows of a batch that may wait, although they are over


def answer_room(encoder: Encoder, task: Task) -> int:
    """Return how many tokens a generated answer may have.

    That is a quarter more than the longest answer of the training split has, at most half of the window.
    """
    return max(1, min((longest_answer(encoder, task.train) or 64) * 5 // 4 + 4, encoder.limit // 2))


def longest_answer(encoder: Encoder, examples: Sequence[Example]) -> int:
    """Return the tokens of the longest answer among those with the most characters; 0 where there is no example."""
    longest = heapq.nlargest(_LONGEST, examples, key=lambda example: len(example.answer))
    return max((len(sequence.ids) - sequence.prompt for sequence in encoder.encode(longest)), default=0)


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


@torch.no_grad()
def generate(
    base: Base,
    encoder: Encoder,
    rendered: Sequence[Example],
    room: int,
    stop: str | None = None,
    progress: Progress = silent,
) -> Generated:
    """Generate greedy answers with a key/value cache; on several ranks each its share, or where sharded all of them.

    A prefix that all prompts share is read once. What is over leaves its batch, and other prompts take its place.

    Args:
        base: the model, with whatever is attached to it.
        encoder: renders and tokenizes the prompts.
        rendered: examples whose prompts are answered; their own answers are not looked at.
        room: the largest number of tokens in an answer.
        stop: text that ends an answer too; ignored for chat models, which end their turns with a control token.
        progress: called when an answer is over.
    """
    if base.ranks.size == 1 or base.ranks.sharded:
        return _generate(base, encoder, rendered, room, stop, progress)
    own = _generate(base, encoder, base.ranks.mine(rendered), room, stop, progress)
    every = base.ranks.gathered(list(zip(own.texts, own.prompts, own.tokens, own.ended, strict=True)))
    texts, prompts, tokens, ended = (list(column) for column in zip(*every, strict=True))
    return Generated(texts, prompts, tokens, ended)


def _generate(
    base: Base, encoder: Encoder, rendered: Sequence[Example], room: int, stop: str | None, progress: Progress
) -> Generated:
    stop = None if encoder.chat else stop
    prompts = encoder.prompts(rendered, room)
    answers = _answers(base, encoder, prompts, room, stop, progress) if prompts else []
    ends = [encoder.until_stop(answer) for answer in answers]
    kept = [answer[:end] for answer, end in zip(answers, ends, strict=True)]
    tokens = [_tokens_before(encoder, ids, stop) if stop else len(ids) for ids in kept]
    ended = [number < len(answer) for number, answer in zip(tokens, answers, strict=True)]
    return Generated([encoder.decode(ids, stop) for ids in kept], prompts, tokens, ended)


def _answers(
    base: Base, encoder: Encoder, prompts: list[TokenSequence], room: int, stop: str | None, progress: Progress
) -> list[list[int]]:
    """Return the ids of each answer, with what ended it."""
    from tunewise.engine.decoding import Cohort, DecodingRow, Prefix, Sampling  # loads transformers' caches

    shared = shared_prefix(prompts) if not why_not_packed(base) else 0
    prefix = Prefix(base, prompts[0].ids[:shared]) if shared else None
    if prefix is not None and not prefix.joins:  # some layer drops a part of it
        prefix, shared = None, 0
    rows = [DecodingRow(prompt.ids, Sampling(), None) for prompt in prompts]
    rests = [TokenSequence(prompt.ids[shared:], [], 0) for prompt in prompts]
    groups = deque(
        group[s : s + _MAX_ROWS] for group in by_tokens(rests, 2 * PASS_TOKENS) for s in range(0, len(group), _MAX_ROWS)
    )
    cohort: Cohort | None = None
    over = set[DecodingRow]()
    while cohort is not None or groups:
        if cohort is None:
            cohort = Cohort(base, [rows[index] for index in groups.popleft()], prefix)
        elif groups and cohort.joins and len(cohort.rows) + len(groups[0]) <= _MAX_ROWS:
            cohort.join(Cohort(base, [rows[index] for index in groups.popleft()], prefix))
        tokens = cohort.logits.argmax(-1).tolist()
        if base.ranks.sharded:  # all ranks take equally many steps, whatever the last bits of their logits
            tokens = base.ranks.first(tokens)
        for row, token in zip(cohort.rows, tokens, strict=True):
            if row not in over:
                row.drawn.append(token)
                if len(row.drawn) == room or token in encoder.ends.stops or (stop and _says(stop, row.drawn, encoder)):
                    over.add(row)
                    progress(SCORING, len(over), len(rows))
        going = [place for place, row in enumerate(cohort.rows) if row not in over]
        if not going:
            cohort = None
            continue
        # A row that leaves costs a copy of all others, so rows that are over wait for one another while they have room.
        waiting = [place for place, row in enumerate(cohort.rows) if row in over]
        full = any(cohort.lengths[place] == len(cohort.rows[place].prompt) + room for place in waiting)
        if full or len(waiting) > len(cohort.rows) * _WAITING:
            cohort.keep(going)
        cohort.step([row.drawn[-1] for row in cohort.rows])
    return [row.drawn for row in rows]


def _says(stop: str, ids: list[int], encoder: Encoder) -> bool:
    return stop in encoder.tokenizer.decode(ids[-_STOP_TOKENS:])


def _tokens_before(encoder: Encoder, ids: list[int], stop: str) -> int:
    """Return how many ids stand before the token that completes `stop`, all of them where none does."""
    if stop not in encoder.tokenizer.decode(ids):
        return len(ids)
    return bisect_left(range(len(ids)), True, key=lambda last: stop in encoder.tokenizer.decode(ids[: last + 1]))
