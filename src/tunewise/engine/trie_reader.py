"""Reads prompts once, and the answers to them node by node, so that a caller decides which are worth reading on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from tunewise.engine.attention import Past, Reach, keeping
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import nll
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, Batch, packed_batch
from tunewise.engine.segments import Segment
from tunewise.engine.token_trie import PROMPT, TokenTrie

Nodes = list[tuple[int, int]]  # (prompt, node of its trie)


class TrieReader:
    """Holds prompts that a base has read, and what it has read of the answers to them, without gradients.

    The base must run packed rows. Keys and values of all tokens are kept, so that each is computed once.

    Attributes:
        nats: for each prompt the negative log-likelihood of every token that was predicted, by (node, token).
    """

    def __init__(self, base: Base, prompts: Sequence[TokenSequence], tries: Sequence[TokenTrie]) -> None:
        self._base, self._tries, self._past = base, tries, Past()
        self.nats: list[dict[tuple[int, int], float]] = [{} for _ in tries]
        first_tokens = [TokenTrie.of([[token] for token in trie.following[PROMPT]]) for trie in tries]
        batch = packed_batch(prompts, base.device, first_tokens)
        self._predict(batch, [(number, PROMPT) for number, trie in enumerate(tries) for _ in trie.following[PROMPT]])
        self._prompt_places = [list(chain.from_iterable(spans)) for spans in batch.spans]
        self._places: list[dict[int, int]] = [{} for _ in tries]  # of each prompt's nodes, among what is kept

    def read(self, nodes: Nodes) -> None:
        """Read nodes that were not read yet, with or after their parents, and predict what follows them."""
        ordered = sorted(nodes)  # prompt by prompt, each node after its parent
        for start in range(0, len(ordered), PASS_TOKENS):
            self._read(ordered[start : start + PASS_TOKENS])

    def _read(self, nodes: Nodes) -> None:
        kept, device = len(self._past.positions), self._base.device
        by_prompt: dict[int, list[int]] = {}
        for place, (prompt, node) in enumerate(nodes, kept):
            by_prompt.setdefault(prompt, []).append(node)
            self._places[prompt][node] = place
        tries, sizes = self._tries, [len(places) for places in self._prompt_places]
        self._past.reaches = tuple(self._reach(prompt, those) for prompt, those in by_prompt.items())
        predictions = [
            (row, token) for row, (prompt, node) in enumerate(nodes) for token in tries[prompt].following[node]
        ]
        sources = [row for row, _ in predictions]
        ids = [tries[prompt].ids[node] for prompt, node in nodes]
        position_ids = [sizes[prompt] + tries[prompt].depths[node] for prompt, node in nodes]
        owner = torch.tensor([nodes[row][0] for row in sources], device=device)
        batch = Batch(
            ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([position_ids], device=device),
            attention_mask=None,
            segments=tuple(Segment(len(those)) for those in by_prompt.values()),
            positions=torch.arange(len(nodes), device=device),
            targets=torch.tensor([token for _, token in predictions], device=device),
            sources=sources,
            owner=owner,
            branch=torch.zeros_like(owner),
            tokens=len(nodes),
        )
        self._predict(batch, [nodes[row] for row in sources])

    def _predict(self, batch: Batch, sources: Nodes) -> None:
        self._past.positions = torch.cat([self._past.positions.to(self._base.device), batch.position_ids[0]])
        with keeping(self._past):
            values = nll(self._base, batch).tolist()
        for (prompt, node), token, value in zip(sources, batch.targets.tolist(), values, strict=True):
            self.nats[prompt][node, token] = value

    def _reach(self, prompt: int, nodes: Sequence[int]) -> Reach:
        """Return what nodes attend to: the whole prompt, the nodes before them, and themselves."""
        read, before = self._places[prompt], self._prompt_places[prompt]
        columns = {node: len(before) + column for column, node in enumerate(read)}
        mask = torch.zeros(len(nodes), len(before) + len(read), dtype=torch.bool)
        mask[:, : len(before)] = True
        for row, node in enumerate(nodes):
            mask[row, [columns[other] for other in self._tries[prompt].path(node)]] = True
        device = self._base.device
        return Reach(torch.tensor([*before, *read.values()], device=device), mask.to(device))
