"""Finds the likeliest label without reading labels that cannot be it any more.

A label's negative log-likelihood grows with each of its tokens. The expected label, which is scored in any case, is
read first, and then always the one that is likeliest as far as it was read; a label that is less likely already than
one that was read to its end is not read on. So the likeliest label is that of reading all, whatever the order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from tunewise.engine.device import on_gpu
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.token_trie import TokenTrie
from tunewise.engine.trie_reader import TrieReader

_MIN_NODES = 64  # with fewer, a single pass takes less than several small ones
_SINGLE = 5  # steps in which one token of each label is read; then 2, 4, and so on, so that long labels take few steps


def is_worth_it(base: Base, tries: Sequence[TokenTrie]) -> bool:
    """Return whether a search takes less than a single pass: many labels, on a CPU.

    On a GPU several small passes take longer than a large one.
    """
    many = max((len(trie.ids) for trie in tries), default=0) >= _MIN_NODES
    return many and not on_gpu(base.anatomy.embedding.weight) and not why_not_packed(base)


def search(
    base: Base,
    prompts: Sequence[TokenSequence],
    tries: Sequence[TokenTrie],
    expected: Sequence[int],
    bias: Tensor | None,
) -> list[list[float]]:
    """Return the negative log-likelihood of labels in nats, (prompts, labels); infinite where one was not read on.

    Those of the expected label and of the likeliest one are always there.

    Args:
        base: a base that runs packed rows.
        prompts: what the labels follow.
        tries: the labels after each prompt.
        expected: the label that each prompt should have.
        bias: what is subtracted from each label's nats before they are compared, (labels,).
    """
    reader = TrieReader(base, prompts, tries)
    biases = [0.0] * len(tries[0].answers) if bias is None else bias.tolist()
    searches = [_Search(trie, nats, biases) for trie, nats in zip(tries, reader.nats, strict=True)]
    reader.read([(i, node) for i, label in enumerate(expected) for node in tries[i].sources[label][1:]])
    for step in count():
        tokens = min(step, 2 ** max(step - _SINGLE, 0))
        wanted = [(i, node) for i, each in enumerate(searches) for node in each.wanted(tokens)]
        if not wanted:
            break
        reader.read(wanted)
    return [each.nll() for each in searches]


@dataclass(frozen=True)
class _Search:
    """Holds the labels of one prompt, what was predicted after it by (node, token), and the bias of each label."""

    trie: TokenTrie
    nats: Mapping[tuple[int, int], float]
    bias: Sequence[float]

    def wanted(self, tokens: int) -> list[int]:
        """Return the next nodes of labels that may be the likeliest, and of the likeliest so far all nodes."""
        costs = [self._cost(label) for label in range(len(self.bias))]
        scores = [nats - bias for (nats, _), bias in zip(costs, self.bias, strict=True)]
        best = min(score for score, (_, left) in zip(scores, costs, strict=True) if not left)
        # Not `score <= best`: where a model gives no numbers, everything is read and no label is preferred.
        going = [label for label, (_, left) in enumerate(costs) if left and not scores[label] > best]
        likeliest = min(going, key=scores.__getitem__, default=None)
        nodes = set[int]()
        for label in going:
            left = self.trie.sources[label][-costs[label][1] :]
            nodes.update(left if label == likeliest else left[:tokens])
        return sorted(nodes)

    def nll(self) -> list[float]:
        """Return the nats of each label, infinite where some of its tokens were not predicted."""
        costs = map(self._cost, range(len(self.bias)))
        return [math.inf if left else nats for nats, left in costs]

    def _cost(self, label: int) -> tuple[float, int]:
        """Return the nats of a label's tokens as far as they were predicted, and how many were not."""
        total, sources = 0.0, self.trie.sources[label]
        for place, edge in enumerate(zip(sources, self.trie.answers[label], strict=True)):
            if edge not in self.nats:
                return total, len(sources) - place
            total += self.nats[edge]
        return total, 0
