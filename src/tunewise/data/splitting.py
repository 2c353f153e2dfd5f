"""Samples and splits examples by their content, never by their order; equal prompts stay in one split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from tunewise.core.errors import DataError
from tunewise.data.examples import Example, content_bytes, group_key, json_bytes
from tunewise.data.split_names import SPLITS
from tunewise.data.table import Table

ONE_IN = 10  # a held-out split gets one in this many distinct prompts


def split_by_content(
    examples: Sequence[Example], held_out: Sequence[str], *, kind: str, seed: int = 0, path: str | None = None
) -> dict[str, list[Example]]:
    """Split examples into "train" and the `held_out` splits, which get a tenth of the distinct prompts each.

    Examples with the same prompt (for text: the same answer) stay together, the order of the examples does not matter,
    and in a classification every label has a prompt in train.

    Args:
        examples: what to split.
        held_out: names of the splits beside "train", as in ("test", "validation").
        kind: the kind of the task.
        seed: another seed splits differently.
        path: the file that an error message names.

    Raises:
        DataError: there are too few distinct prompts for that.
    """
    groups: dict[bytes, list[Example]] = {}
    keys = [group_key(example, kind, seed) for example in examples]
    for key, example in zip(keys, examples, strict=True):
        groups.setdefault(key, []).append(example)
    order = sorted(groups)
    unit = "texts" if kind == "text" else "prompts"
    needed = len(held_out) + 1
    if len(order) < needed:
        raise DataError(
            f"only {len(order)} different {unit} to split into {', '.join(('train', *held_out))}",
            path=path,
            remedy=f"give separate files train, validation and test, or at least {needed} different {unit}",
        )
    reserved = _one_group_per_label(groups, order) if kind == "classification" else set()
    free = [key for key in order if key not in reserved]
    if len(free) < len(held_out):
        raise DataError(
            f"its {len(order)} different prompts are too few to have every label in train and still hold out "
            f"{' and '.join(held_out)}",
            path=path,
            remedy="add examples of the rare labels, or give separate files train, validation and test",
        )
    size = min(max(1, len(order) // ONE_IN), len(free) // len(held_out))
    split_of = dict.fromkeys(order, "train")
    for i, split in enumerate(held_out):
        split_of |= dict.fromkeys(free[i * size : (i + 1) * size], split)
    splits: dict[str, list[Example]] = {split: [] for split in ("train", *held_out)}
    for key, example in zip(keys, examples, strict=True):
        splits[split_of[key]].append(example)
    return splits


def _one_group_per_label(groups: Mapping[bytes, Sequence[Example]], order: Sequence[bytes]) -> set[bytes]:
    """Return the last group of each label; it stays in train, whichever groups the other splits take."""
    last: dict[str, bytes] = {example.answer: key for key in order for example in groups[key]}
    reserved: set[bytes] = set()
    covered: set[str] = set()
    for label in sorted(last):
        if label not in covered:
            reserved.add(last[label])
            covered |= {example.answer for example in groups[last[label]]}
    return reserved


def sampled(table: Table, examples: list[Example], size: int, kind: str, seed: int) -> tuple[list[Example], str]:
    """Take the `size` examples with the smallest hashes, in a classification one of each label first, and a note."""
    if size >= len(examples):
        return examples, f"a sample of {size} was requested and all {len(examples)} examples were taken"
    keys = [hashlib.sha256(json_bytes(seed) + content_bytes(example)).digest() for example in examples]
    order = sorted(range(len(examples)), key=keys.__getitem__)
    if kind == "classification":
        first_of_label = {examples[i].answer: i for i in reversed(order)}
        if len(first_of_label) > size:
            raise table.error(
                f"a sample of {size} cannot hold its {len(first_of_label)} labels", "take a larger sample"
            )
        chosen = set(first_of_label.values())
        order.sort(key=lambda i: i not in chosen)
    return [examples[i] for i in sorted(order[:size])], f"{size} of {len(examples)} were sampled by content"


def completed(
    table: Table, examples: Mapping[str, list[Example]], kind: str, seed: int, notes: list[str]
) -> dict[str, list[Example]]:
    """Return all three splits: those that were read, and the missing ones split off the first."""
    first = "train" if "train" in examples else "all"
    missing = [split for split in ("test", "validation") if split not in examples]
    if not missing:
        return dict(examples)
    parts = split_by_content(examples[first], missing, kind=kind, seed=seed, path=table.path)
    origin = "train" if first == "train" else "the file"
    notes += [
        f"{split} was split off {origin} ({len(parts[split])} of {len(examples[first])} examples, by content)"
        for split in missing
    ]
    return {split: parts[split] if split in parts else examples[split] for split in SPLITS}
