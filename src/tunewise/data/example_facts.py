"""Holds what tells examples apart and how long they are, without their texts: some 70 bytes for each."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from struct import iter_unpack

from tunewise.data.examples import Example, content_bytes, group_key

KEY = 16  # bytes of a hash that tell one row of a million from another
_CONTENT = 32


class Hashes:
    """A list of hashes of one size, end to end."""

    def __init__(self, size: int) -> None:
        self.size, self.content = size, bytearray()

    def __len__(self) -> int:
        return len(self.content) // self.size

    def __iter__(self) -> Iterator[bytes]:
        return (hash_ for (hash_,) in iter_unpack(f"{self.size}s", self.content))

    def add(self, hash_: bytes) -> None:
        """Take in one, or the first bytes of it."""
        self.content += hash_[: self.size]

    def chosen(self, places: Iterable[int]) -> Hashes:
        """Return those at some places."""
        chosen, size = Hashes(self.size), self.size
        for place in places:
            chosen.content += self.content[place * size : (place + 1) * size]
        return chosen

    def first_places(self) -> array[int]:
        """Return for each hash the first place where it stands."""
        firsts: dict[bytes, int] = {}
        return array("q", (firsts.setdefault(hash_[:KEY], place) for place, hash_ in enumerate(self)))


class ExampleFacts:
    """Holds facts of examples, in their order.

    Attributes:
        prompts: the beginning of its `group_key`.
        contents: the SHA-256 of all that it says.
        answers: in a classification the number of its label in `labels`; else 0.
        rows: the number of its row.
        prompt_characters, answer_characters: the lengths of all of its turns before the answer, and of its answer.
        kind: the kind of the task.
        labels: every label with its number; several splits may share it.
    """

    def __init__(self, kind: str, labels: dict[str, int] | None = None) -> None:
        self.kind, self.labels = kind, {} if labels is None else labels
        self.prompts, self.contents = Hashes(KEY), Hashes(_CONTENT)
        self.answers, self.rows = array("i"), array("q")
        self.prompt_characters, self.answer_characters = array("I"), array("I")

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, examples: Iterable[Example], kind: str, labels: dict[str, int] | None = None) -> ExampleFacts:
        """Take the facts of examples."""
        facts = cls(kind, labels)
        for example in examples:
            facts.add(example)
        return facts

    def add(self, example: Example) -> None:
        """Take in an example."""
        self.prompts.add(group_key(example, self.kind))
        self.contents.add(hashlib.sha256(content_bytes(example)).digest())
        is_label = self.kind == "classification"
        self.answers.append(self.labels.setdefault(example.answer, len(self.labels)) if is_label else 0)
        self.rows.append(example.row)
        self.prompt_characters.append(sum([len(message.content) for message in example.messages]))
        self.answer_characters.append(len(example.answer))

    def chosen(self, places: Sequence[int]) -> ExampleFacts:
        """Return those of the examples at some places."""
        facts = ExampleFacts(self.kind, self.labels)
        facts.prompts, facts.contents = self.prompts.chosen(places), self.contents.chosen(places)
        for name in ("answers", "rows", "prompt_characters", "answer_characters"):
            numbers: array[int] = getattr(self, name)
            setattr(facts, name, array(numbers.typecode, map(numbers.__getitem__, places)))
        return facts

    @cached_property
    def first_of_content(self) -> array[int]:
        """Return for each example the place of the first that says the same."""
        return self.contents.first_places()

    @cached_property
    def first_of_prompt(self) -> array[int]:
        """Return for each example the place of the first with the same prompt."""
        return self.prompts.first_places()

    @property
    def labels_present(self) -> frozenset[str]:
        """Return the labels that occur among these examples."""
        return frozenset(map(self.label_names.__getitem__, set(self.answers))) if self.labels else frozenset()

    @property
    def label_names(self) -> list[str]:
        """Return the label of each number."""
        return list(self.labels)
