"""Samples and splits examples by their content, never by their order; equal prompts stay in one split."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence

from tunewise.core.errors import DataError
from tunewise.data.example_collection import ExampleCollection
from tunewise.data.example_facts import KEY, ExampleFacts, Hashes
from tunewise.data.examples import Example, content_bytes, group_key, json_bytes
from tunewise.data.split_names import SPLITS
from tunewise.data.table import Table

ONE_IN = 10  # a held-out split gets one in this many distinct prompts
# With a dozen test examples no two techniques can be told apart, so that a small file gives more of them to the test.
ENOUGH_FOR_TEST = 100
TEST_AT_MOST_ONE_IN = 5


def split_by_content(
    examples: Sequence[Example], held_out: Sequence[str], *, kind: str, seed: int = 0, path: str | None = None
) -> dict[str, list[Example]]:
    """Split examples into "train" and the `held_out` splits, which get a tenth of the distinct prompts each.

    Where a tenth is less than 100 prompts, "test" gets up to 100 of them, and at most a fifth. Examples with the same
    prompt (for text: the same answer) stay together, the order of the examples does not matter, and in a
    classification every label has a prompt in train.

    Args:
        examples: what to split.
        held_out: names of the splits beside "train", as in ("test", "validation").
        kind: the kind of the task.
        seed: another seed splits differently.
        path: the file that an error message names.

    Raises:
        DataError: there are too few distinct prompts for that.
    """
    places = _places(ExampleCollection.of(examples, kind), held_out, seed, path)
    return {split: [examples[place] for place in chosen] for split, chosen in places.items()}


def _places(examples: ExampleCollection, held_out: Sequence[str], seed: int, path: str | None) -> dict[str, array[int]]:
    """Return the places of the examples of each split."""
    kind = examples.kind
    keys: Iterable[bytes] = examples.facts.prompts
    if seed:
        keys = Hashes(KEY)
        for example in examples.examples:
            keys.add(group_key(example, kind, seed))
    order = sorted(set(keys))
    unit = "texts" if kind == "text" else "prompts"
    needed = len(held_out) + 1
    if len(order) < needed:
        raise DataError(
            f"only {len(order)} different {unit} to split into {', '.join(('train', *held_out))}",
            path=path,
            remedy=f"give separate files train, validation and test, or at least {needed} different {unit}",
        )
    reserved = _one_group_per_label(keys, examples.facts) if kind == "classification" else set()
    free = [key for key in order if key not in reserved]
    if len(free) < len(held_out):
        raise DataError(
            f"its {len(order)} different prompts are too few to have every label in train and still hold out "
            f"{' and '.join(held_out)}",
            path=path,
            remedy="add examples of the rare labels, or give separate files train, validation and test",
        )
    split_of: dict[bytes, str] = {}
    taken = 0
    for i, split in enumerate(held_out):
        size = min(_size_of(split, len(order)), (len(free) - taken) // (len(held_out) - i))
        split_of |= dict.fromkeys(free[taken : taken + size], split)
        taken += size
    places = {split: array("q") for split in ("train", *held_out)}
    for place, key in enumerate(keys):
        places[split_of.get(key, "train")].append(place)
    return places


def _size_of(split: str, prompts: int) -> int:
    """Return how many of so many distinct prompts a held-out split gets."""
    tenth = max(1, prompts // ONE_IN)
    return max(tenth, min(ENOUGH_FOR_TEST, prompts // TEST_AT_MOST_ONE_IN)) if split == "test" else tenth


def _one_group_per_label(keys: Iterable[bytes], facts: ExampleFacts) -> set[bytes]:
    """Return the last group of each label; it stays in train, whichever groups the other splits take."""
    last: dict[int, bytes] = {}
    for key, answer in zip(keys, facts.answers, strict=True):
        last[answer] = max(key, last.get(answer, b""))
    answers: dict[bytes, set[int]] = {key: set() for key in last.values()}
    for key, answer in zip(keys, facts.answers, strict=True):
        if key in answers:
            answers[key].add(answer)
    reserved: set[bytes] = set()
    covered: set[int] = set()
    for answer in sorted(last, key=facts.label_names.__getitem__):
        if answer not in covered:
            reserved.add(last[answer])
            covered |= answers[last[answer]]
    return reserved


def sampled(table: Table, examples: ExampleCollection, size: int, seed: int) -> tuple[ExampleCollection, str]:
    """Take the `size` examples with the smallest hashes, in a classification one of each label first, and a note."""
    count = len(examples.examples)
    if size >= count:
        return examples, f"a sample of {size} was requested and all {count} examples were taken"
    keys = [hashlib.sha256(json_bytes(seed) + content_bytes(example)).digest() for example in examples.examples]
    order = sorted(range(count), key=keys.__getitem__)
    if examples.kind == "classification":
        first_of_label = {examples.facts.answers[place]: place for place in reversed(order)}
        if len(first_of_label) > size:
            raise table.error(
                f"a sample of {size} cannot hold its {len(first_of_label)} labels", "take a larger sample"
            )
        chosen = set(first_of_label.values())
        order.sort(key=lambda place: place not in chosen)
    return examples.chosen(sorted(order[:size])), f"{size} of {count} were sampled by content"


def completed(
    table: Table, examples: Mapping[str, ExampleCollection], seed: int, notes: list[str]
) -> dict[str, ExampleCollection]:
    """Return all three splits: those that were read, and the missing ones split off the first."""
    first = "train" if "train" in examples else "all"
    missing = [split for split in ("test", "validation") if split not in examples]
    if not missing:
        return dict(examples)
    places = _places(examples[first], missing, seed, table.path)
    origin = "train" if first == "train" else "the file"
    notes += [
        f"{split} was split off {origin} ({len(places[split])} of {len(examples[first].examples)} examples, by content)"
        for split in missing
    ]
    parts = {split: examples[first].chosen(chosen) for split, chosen in places.items()}
    return {split: parts[split] if split in parts else examples[split] for split in SPLITS}
