"""Turns token sequences into batches, and decides which sequences go into one forward pass together.

A batch is one packed row without padding, or padded rows where a model cannot run packed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.engine.encoding import TokenSequence
from tunewise.engine.segments import Segment
from tunewise.engine.token_trie import PROMPT, TokenTrie

if TYPE_CHECKING:
    from tunewise.engine.context import Division

PASS_TOKENS = 4096  # real tokens per scoring pass
_MIN_SHARED_TOKENS = 16  # a shorter common prefix is not worth sharing
_PASS_PER_PREFIX = 20  # a pass is at least this many times the prefix it reads again: at most 5 % more work
_SCORING_PASS_PER_PREFIX = 4  # the same for scoring, where prefixes of worked examples may fill the window


@dataclass(frozen=True)
class Batch:
    """Holds sequences ready for one forward pass.

    `ids` and `position_ids` are (rows, T). `positions` (P,) index the flattened (rows * T) hidden states from which
    `targets` (N,) are predicted, and `sources` (N,) says which of these P each target is predicted from, in ascending
    order; there is one target for each unless sequences have several answers. `owner` (N,) says which sequence each
    target belongs to, in the order of the sequences, and `branch` (N,) which of its answers. `tokens` counts the
    sequences' tokens: no padding, and a shared prefix once per sequence. `spans` says where the tokens of each sequence
    stand in a packed row: those that it shares, and its own. With a `division`, everything but `segments` is of this
    device's stretch of the row.
    """

    ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segment, ...]
    positions: Tensor
    targets: Tensor
    sources: Sequence[int]
    owner: Tensor
    branch: Tensor
    tokens: int
    spans: tuple[tuple[range, range], ...] = ()
    division: Division | None = None


def packed_batch(
    sequences: Sequence[TokenSequence],
    device: torch.device,
    answers: Sequence[TokenTrie] = (),
    *,
    share: bool = True,
) -> Batch:
    """Pack all sequences into one row; labels are predicted within their own sequence.

    Args:
        sequences: what to pack; each a prompt where there are `answers`.
        device: where the batch's tensors are made.
        answers: several answers to each sequence, to be scored against each other. A prompt stands in the row once,
            and so does what its answers begin with alike. The last token of an answer is only predicted and never read,
            so it is left out of the row.
        share: whether a prefix that several sequences have in common stands in the row once.
    """
    row = _RowBuilder([], [], [[] for _ in sequences])
    rows = [sequence.ids for sequence in sequences]
    shareable = [_unlabelled_prefix(sequence) for sequence in sequences]
    groups = shared_prefixes(rows, shareable) if share else [(0, [index]) for index in range(len(rows))]
    segments, spans = [], [(range(0), range(0))] * len(rows)
    for shared, members in groups:
        prefix_start = row.append(rows[members[0]][:shared], range(shared))
        branches = []
        for index in members:
            # Token i of this sequence stands at `prefix_start + i` in the row if it is shared, else at `start + i`.
            sequence, end = sequences[index], len(rows[index])
            start = row.append(rows[index][shared:], range(shared, end)) - shared
            spans[index] = range(prefix_start, prefix_start + shared), range(start + shared, start + end)
            for place, labelled in enumerate(sequence.labelled[1:]):
                if labelled:
                    position = place + (prefix_start if place < shared else start)
                    row.predict(index, 0, position, sequence.ids[place + 1])
            trie = answers[index] if answers else _NO_ANSWERS
            first = row.append(trie.ids, [end + depth for depth in trie.depths])
            for number, (answer, nodes) in enumerate(zip(trie.answers, trie.sources, strict=True)):
                for node, target in zip(nodes, answer, strict=True):
                    row.predict(index, number, start + end - 1 if node == PROMPT else first + node, target)
            branches.append(Segment(end - shared, trie.segments))
        segments += [Segment(shared, tuple(branches))] if shared else branches
    return replace(row.batch(tuple(segments), sum(map(len, rows)), device), spans=tuple(spans))


def row_tokens(sequences: Sequence[TokenSequence], answers: Sequence[TokenTrie] = ()) -> int:
    """Count the tokens of the row that `packed_batch` makes of these, a shared prefix once."""
    groups = shared_prefixes([s.ids for s in sequences], [_unlabelled_prefix(s) for s in sequences])
    own = sum(len(sequences[index].ids) - shared for shared, members in groups for index in members)
    return own + sum(shared for shared, _ in groups) + sum(len(trie.ids) for trie in answers)


@dataclass(frozen=True)
class _RowBuilder:
    """Collects the tokens of a packed row; `targets[i]` are (position, branch, target) of sequence i."""

    ids: list[int]
    position_ids: list[int]
    targets: list[list[tuple[int, int, int]]]

    def append(self, ids: list[int], position_ids: Sequence[int]) -> int:
        """Append tokens with their position ids, and return where they start in the row."""
        self.ids.extend(ids)
        self.position_ids.extend(position_ids)
        return len(self.ids) - len(ids)

    def predict(self, sequence: int, branch: int, position: int, target: int) -> None:
        """Predict `target` from the row's token at `position`."""
        self.targets[sequence].append((position, branch, target))

    def batch(self, segments: tuple[Segment, ...], tokens: int, device: torch.device) -> Batch:
        """Make the batch's tensors."""
        flat = [(index, *target) for index, targets in enumerate(self.targets) for target in sorted(targets)]
        places = list(dict.fromkeys((index, position) for index, position, _, _ in flat))
        numbers = {place: number for number, place in enumerate(places)}
        owner, _, branch, targets = torch.tensor(flat, dtype=torch.long, device=device).reshape(-1, 4).unbind(1)
        positions = torch.tensor([position for _, position in places], dtype=torch.long, device=device)
        sources = [numbers[index, position] for index, position, _, _ in flat]
        ids, position_ids = (torch.tensor([values], device=device) for values in (self.ids, self.position_ids))
        return Batch(ids, position_ids, None, segments, positions, targets, sources, owner, branch, tokens)


_NO_ANSWERS = TokenTrie.of([])


def _unlabelled_prefix(sequence: TokenSequence) -> int:
    """Count the tokens before a sequence's first label and before its last token."""
    labelled = sequence.labelled
    return min(labelled.index(True, 1) if True in labelled[1:] else len(labelled), len(labelled) - 1)


def shared_prefixes(rows: Sequence[list[int]], most: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group rows by shared prefix: (length of the prefix, indices of its rows); length 0 for a row on its own.

    Of row i at most `most[i]` tokens are shared. This is greedy over the sorted rows: the next row joins the last
    group, or forms a group with that group's last row, or stands alone, whichever saves most tokens.
    """
    groups: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(rows)), key=rows.__getitem__):
        if groups:
            shared, members = groups[-1]
            last = members[-1]
            with_last = min(_common_prefix(rows[last], rows[index]), most[last], most[index])
            with_group = min(with_last, shared) if shared else with_last
            saved = with_group * len(members) - shared * (len(members) - 1)  # by joining, compared with standing alone
            if with_group >= _MIN_SHARED_TOKENS and saved >= max(with_last - shared, 1):
                groups[-1] = with_group, [*members, index]
                continue
            if with_last >= _MIN_SHARED_TOKENS and with_last > shared:
                groups[-1] = (shared, members[:-1]) if len(members) > 2 else (0, members[:-1])
                groups.append((with_last, [last, index]))
                continue
        groups.append((0, [index]))
    return sorted(((shared, sorted(members)) for shared, members in groups), key=lambda group: group[1][0])


def _common_prefix(first: list[int], second: list[int]) -> int:
    """Count the tokens that two rows have in common at their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def padded_batch(sequences: Sequence[TokenSequence], device: torch.device) -> Batch:
    """Give each sequence a row, padded on the right: for architectures whose attention cannot be packed."""
    width = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    positions, targets, owner = [], [], []
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        for place, labelled in enumerate(sequence.labelled):
            if labelled and place > 0:
                positions.append(row * width + place - 1)
                targets.append(sequence.ids[place])
                owner.append(row)
    return Batch(
        ids.to(device),
        torch.arange(width).expand(len(sequences), width).contiguous().to(device),
        mask.to(device),
        (),
        torch.tensor(positions, dtype=torch.long, device=device),
        torch.tensor(targets, dtype=torch.long, device=device),
        range(len(targets)),
        torch.tensor(owner, dtype=torch.long, device=device),
        torch.zeros(len(owner), dtype=torch.long, device=device),
        int(mask.sum()),
    )


def shared_prefix(sequences: Sequence[TokenSequence]) -> int:
    """Return the length of the prefix that all sequences share, less than the shortest; 0 if not worth sharing."""
    rows = [sequence.ids for sequence in sequences]
    shared = min(_common_prefix(min(rows), max(rows)), min(map(len, rows)) - 1)
    return shared if shared >= _MIN_SHARED_TOKENS and len(sequences) > 1 else 0


def in_passes(sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
    """Divide sequences into groups of about `budget` tokens, as equal as possible; return the groups' indices.

    A prefix that all sequences share is read again by each group, so groups are larger than `budget` where that prefix
    is long.
    """
    tokens = sum(len(sequence.ids) for sequence in sequences)
    groups = max(round(tokens / max(budget, _PASS_PER_PREFIX * shared_prefix(sequences))), 1)
    return [members for members in in_groups(sequences, groups) if members]


def in_groups(sequences: Sequence[TokenSequence], groups: int) -> list[list[int]]:
    """Divide sequences into so many groups of about as many tokens each; return their indices, ascending.

    The longest come first, each put into the group with the fewest tokens. Groups are empty where there are fewer
    sequences.
    """
    sizes = [len(sequence.ids) for sequence in sequences]
    heap = [(0, group, list[int]()) for group in range(groups)]
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        tokens, group, members = heap[0]
        heapreplace(heap, (tokens + sizes[index], group, [*members, index]))
    return [sorted(members) for _, _, members in sorted(heap, key=lambda entry: entry[1])]


def by_tokens(sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
    """Group indices of sequences of similar length, at most `budget` tokens per group; a longer one stands alone."""
    groups: list[list[int]] = []
    total = 0
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids)):
        size = len(sequences[index].ids)
        if not groups or total + size > budget:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups


def by_shared_prefix(sequences: Sequence[TokenSequence], budget: int, further: Sequence[int] = ()) -> list[list[int]]:
    """Group indices of sequences with a shared prefix, about `budget` tokens per group, the prefix counted once.

    A prefix that all sequences of a group share is read again by the next group, so groups are larger than `budget`
    where that prefix is long: worked examples that stand before every question are read a few times and not once for
    each question. `further` are the tokens that answers add to each sequence.
    """
    groups: list[list[int]] = []
    total = prefix = 0
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i].ids):
        ids, added = sequences[index].ids, further[index] if further else 0
        shared = _common_prefix(sequences[groups[-1][-1]].ids, ids) if groups else 0
        shared = shared if shared >= _MIN_SHARED_TOKENS else 0
        prefix = min(prefix, shared)
        size = len(ids) - shared + added
        if not groups or total + size > max(budget, _SCORING_PASS_PER_PREFIX * prefix):
            groups.append([])
            size, total, prefix = len(ids) + added, 0, len(ids)
        groups[-1].append(index)
        total += size
    return groups
