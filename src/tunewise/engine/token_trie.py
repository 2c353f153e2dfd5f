"""A trie of the answers to one prompt: tokens that several answers begin with are computed once.

    card lost        prompt -- card -+- lost -- end
    card stolen                      +- stolen -- end

Every token that another one follows is a node, and a node predicts all tokens that follow it. The last token of an
answer is only predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tunewise.engine.segments import Segment

PROMPT = -1  # stands for the prompt's last token, which predicts the first token of every answer


@dataclass(frozen=True)
class TokenTrie:
    """Holds answers to one prompt, and their tokens as nodes.

    Attributes:
        answers: token ids of each answer.
        ids: the tokens of the nodes, depth first.
        depths: how many tokens stand between the prompt and each node.
        parents: the node before each, or `PROMPT`.
        sources: for each answer the nodes that its tokens are predicted from, the first from `PROMPT`.
        segments: the nodes as branches of a packed row.
    """

    answers: tuple[tuple[int, ...], ...]
    ids: list[int]
    depths: list[int]
    parents: list[int]
    sources: list[list[int]]
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> TokenTrie:
        """Make the trie of some answers, each of one token or more.

        Raises:
            ValueError: an answer has no tokens, so that nothing could be predicted.
        """
        if not all(answers):
            raise ValueError("an answer without tokens has no likelihood")
        ids, depths, parents = list[int](), list[int](), list[int]()
        sources: list[list[int]] = [[]] * len(answers)
        path = list[int]()  # the nodes of the answer before, from the prompt on
        for number in sorted(range(len(answers)), key=lambda index: tuple(answers[index])):
            for depth, token in enumerate(answers[number][:-1]):
                if depth == len(path) or ids[path[depth]] != token:
                    parents.append(path[depth - 1] if depth else PROMPT)
                    path[depth:] = [len(ids)]
                    ids.append(token)
                    depths.append(depth)
            sources[number] = [PROMPT, *path[: len(answers[number]) - 1]]
        return cls(tuple(map(tuple, answers)), ids, depths, parents, sources, _segments(parents))

    @cached_property
    def following(self) -> dict[int, list[int]]:
        """The tokens that are predicted from each node, and from `PROMPT`, in ascending order."""
        tokens: dict[int, set[int]] = {}
        for answer, nodes in zip(self.answers, self.sources, strict=True):
            for node, token in zip(nodes, answer, strict=True):
                tokens.setdefault(node, set()).add(token)
        return {node: sorted(after) for node, after in tokens.items()}

    def path(self, node: int) -> list[int]:
        """Return a node and those before it, the last first."""
        nodes = list[int]()
        while node != PROMPT:
            nodes.append(node)
            node = self.parents[node]
        return nodes

    def parts(self, most: int) -> list[TokenTrie]:
        """Divide the answers, in their order, into as few tries as have about `most` nodes each."""
        count = min(-(-len(self.ids) // most), len(self.answers))
        if count <= 1:
            return [self]
        ends = [len(self.answers) * part // count for part in range(count + 1)]
        return [TokenTrie.of(self.answers[start:end]) for start, end in pairwise(ends)]


def _segments(parents: Sequence[int]) -> tuple[Segment, ...]:
    """Return the trees of nodes in depth-first order, a node with a single child in one segment with it."""
    children: dict[int, list[Segment]] = {}
    for node in range(len(parents) - 1, -1, -1):  # children come after their parents
        below = children.pop(node, [])
        only = below[0] if len(below) == 1 else Segment(0, tuple(reversed(below)))
        children.setdefault(parents[node], []).append(Segment(only.prefix + 1, only.branches))
    return tuple(reversed(children.get(PROMPT, [])))
