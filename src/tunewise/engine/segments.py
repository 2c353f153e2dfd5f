"""Describes what stands in a packed row: trees of tokens, of which each attends to its own past alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Segment:
    """Describes a tree of tokens: `prefix` tokens in causal order, then branches.

    Each branch attends to the prefix and to itself. The branches are sequences with a shared prefix, or answers to one
    prompt that are scored against each other.
    """

    prefix: int
    branches: tuple[Segment, ...] = ()

    @cached_property
    def length(self) -> int:
        """Number of tokens that this tree takes up in the row."""
        return self.prefix + sum(branch.length for branch in self.branches)
