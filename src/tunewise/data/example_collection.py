"""Gathers examples: in memory, or in a temporary file where there are many of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from tunewise.data.example_facts import ExampleFacts
from tunewise.data.example_file import ExampleFile, ExampleWriter
from tunewise.data.examples import Example

MOST_IN_MEMORY = 50_000  # examples that are kept as objects, of about one kilobyte each; more are kept in a file


@dataclass(frozen=True)
class ExampleCollection:
    """Holds examples with what tells them apart.

    Attributes:
        examples: a tuple, or an `ExampleFile`.
        kind: the kind of their task.
        labels: every label of a classification with its number; further ones are added.
    """

    examples: Sequence[Example]
    kind: str
    labels: dict[str, int]

    @classmethod
    def of(cls, examples: Iterable[Example], kind: str, labels: dict[str, int] | None = None) -> Self:
        """Gather examples one by one."""
        labels, writer = {} if labels is None else labels, None
        here = list[Example]()
        for example in examples:
            if writer is not None:
                writer.add(example)
                continue
            here.append(example)
            if len(here) > MOST_IN_MEMORY:
                writer = ExampleWriter(ExampleFacts(kind, labels))
                for each in here:
                    writer.add(each)
                here.clear()
        return cls(tuple(here) if writer is None else writer.file(), kind, labels)

    @cached_property
    def facts(self) -> ExampleFacts:
        """Return what tells the examples apart, and how long they are."""
        if isinstance(self.examples, ExampleFile) and self.examples.facts.kind == self.kind:
            return self.examples.facts
        return ExampleFacts.of(self.examples, self.kind, self.labels)

    def chosen(self, places: Sequence[int]) -> ExampleCollection:
        """Return the examples at some places."""
        if isinstance(self.examples, ExampleFile):
            return ExampleCollection(self.examples.chosen(places), self.kind, self.labels)
        return ExampleCollection(tuple(self.examples[place] for place in places), self.kind, self.labels)


def kept(examples: Iterable[Example], kind: str) -> Sequence[Example]:
    """Return examples that are made one by one, as a tuple or in a file."""
    return ExampleCollection.of(examples, kind).examples
