"""Sequences to batches: packed rows without padding, or padded where a model cannot; and which go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import takewhile

import torch
from torch import Tensor

from tunewise.engine.attention import Segment
from tunewise.engine.encoding import TokenSequence

PASS_TOKENS = 4096  # real tokens of one scoring pass
_WORTH = 16  # tokens in common from which on a beginning is shared
_AGAIN = 20  # tokens of a pass for each that it reads again: a twentieth more work


@dataclass(frozen=True)
class Batch:
    """Sequences ready for one forward pass.

    ids and position_ids (rows, T); `positions` (N,) index the flattened (rows * T) hidden states from which
    `targets` (N,) are predicted; `owner` (N,) says to which sequence (and `branch` to which answer) each belongs, in
    the order of the sequences; `tokens` counts these, padding left out and what they share once for each.
    """

    ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segment, ...]
    positions: Tensor
    targets: Tensor
    owner: Tensor
    branch: Tensor
    tokens: int


def packed_batch(
    sequences: Sequence[TokenSequence],
    device: torch.device,
    answers: Sequence[Sequence[list[int]]] = (),
    *,
    share: bool = True,
) -> Batch:
    """All sequences in one row; labels are predicted within their own sequence.

    With `answers`, each sequence is a prompt that stands before all of its answers, for scoring them against each
    other; the last token of an answer is only predicted, never read, so it is left out of the row. What sequences begin
    with alike stands in the row once too, unless `share` is off.
    """
    row = _Row([], [], [[] for _ in sequences])
    rows, unlabelled = [sequence.ids for sequence in sequences], [_unlabelled(sequence) for sequence in sequences]
    groups = beginnings(rows, unlabelled) if share else [(0, [index]) for index in range(len(rows))]
    segments = []
    for shared, members in groups:
        start = row.put(rows[members[0]][:shared], 0)
        branches = []
        for index in members:
            own, sequence = row.put(rows[index][shared:], shared) - shared, sequences[index]
            for place, labelled in enumerate(sequence.labelled[1:]):
                if labelled:
                    row.predict(index, 0, place + (start if place < shared else own), sequence.ids[place + 1])
            last, continued = own + len(sequence.ids) - 1, []
            for number, answer in enumerate(answers[index] if answers else ()):
                at = row.put(answer[:-1], len(sequence.ids))
                for place, target in zip((last, *range(at, at + len(answer))), answer, strict=False):
                    row.predict(index, number, place, target)
                continued += [Segment(len(answer) - 1)] if len(answer) > 1 else []
            branches.append(Segment(len(sequence.ids) - shared, tuple(continued)))
        segments += [Segment(shared, tuple(branches))] if shared else branches
    return row.batch(tuple(segments), sum(map(len, rows)), device)


@dataclass(frozen=True)
class _Row:
    """A packed row while it is filled; `targets[i]` are (branch, position, target) of sequence i."""

    ids: list[int]
    places: list[int]
    targets: list[list[tuple[int, int, int]]]

    def put(self, ids: list[int], place: int) -> int:
        """Append tokens, the first of which is the `place`th of its sequence; where they begin."""
        self.ids.extend(ids)
        self.places.extend(range(place, place + len(ids)))
        return len(self.ids) - len(ids)

    def predict(self, sequence: int, branch: int, position: int, target: int) -> None:
        """Predict `target` from the row's token at `position`."""
        self.targets[sequence].append((branch, position, target))

    def batch(self, segments: tuple[Segment, ...], tokens: int, device: torch.device) -> Batch:
        flat = [(index, *found) for index, own in enumerate(self.targets) for found in own]
        owner, branch, positions, targets = torch.tensor(flat, dtype=torch.long, device=device).reshape(-1, 4).unbind(1)
        ids, places = (torch.tensor([values], device=device) for values in (self.ids, self.places))
        return Batch(ids, places, None, segments, positions, targets, owner, branch, tokens)


def _unlabelled(sequence: TokenSequence) -> int:
    """Tokens at the head of a sequence before its first label, and before its last token."""
    labelled = sequence.labelled
    return min(labelled.index(True, 1) if True in labelled[1:] else len(labelled), len(labelled) - 1)


def beginnings(rows: Sequence[list[int]], most: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Rows that begin alike, in their order: (tokens that they share, their indices), 0 tokens where one is alone.

    Of row i at most `most[i]` tokens are shared. Greedy over the sorted rows: one more joins the last group, or makes
    one with that group's last row, or stands alone, whichever saves most tokens.
    """
    found: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(rows)), key=rows.__getitem__):
        if found:
            shared, members = found[-1]
            last = members[-1]
            pair = min(_common(rows[last], rows[index]), most[last], most[index])
            group = min(pair, shared) if shared else pair
            if group >= _WORTH and group * len(members) - shared * (len(members) - 1) >= max(pair - shared, 1):
                found[-1] = group, [*members, index]
                continue
            if pair >= _WORTH and pair > shared:
                found[-1] = (shared, members[:-1]) if len(members) > 2 else (0, members[:-1])
                found.append((pair, [last, index]))
                continue
        found.append((0, [index]))
    return sorted(((shared, sorted(members)) for shared, members in found), key=lambda group: group[1][0])


def _common(first: list[int], second: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def padded_batch(sequences: Sequence[TokenSequence], device: torch.device) -> Batch:
    """One row a sequence, padded on the right: for architectures whose attention cannot be packed."""
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
        torch.tensor(owner, dtype=torch.long, device=device),
        torch.zeros(len(owner), dtype=torch.long, device=device),
        int(mask.sum()),
    )


def beginning(sequences: Sequence[TokenSequence]) -> int:
    """Tokens that all of these begin with, fewer than the shortest has; 0 where sharing them is not worth it."""
    rows = [sequence.ids for sequence in sequences]
    shared = min(_common(min(rows), max(rows)), min(map(len, rows)) - 1)
    return shared if shared >= _WORTH and len(sequences) > 1 else 0


def in_passes(sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
    """Indices in groups of about `budget` tokens, as equal as can be: the longest first, each to the least group.

    What all begin with is read again by each group; where that is much, groups are larger.
    """
    sizes = [len(sequence.ids) for sequence in sequences]
    groups = max(round(sum(sizes) / max(budget, _AGAIN * beginning(sequences))), 1)
    heap = [(0, group, list[int]()) for group in range(groups)]
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        tokens, group, members = heap[0]
        heapreplace(heap, (tokens + sizes[index], group, [*members, index]))
    return [sorted(members) for _, _, members in sorted(heap, key=lambda own: own[1]) if members]


def by_tokens(sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens, similar lengths together; a longer one stands alone."""
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


def by_beginning(sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens; what begins alike is together, its beginning counted once."""
    groups: list[list[int]] = []
    total = 0
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i].ids):
        ids = sequences[index].ids
        shared = _common(sequences[groups[-1][-1]].ids, ids) if groups else 0
        size = len(ids) - (shared if shared >= _WORTH else 0)
        if not groups or total + size > budget:
            groups.append([])
            size, total = len(ids), 0
        groups[-1].append(index)
        total += size
    return groups
