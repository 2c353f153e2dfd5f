"""Says which split a name such as `train`, `dev` or `eval` stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunewise.core.errors import DataError
from tunewise.core.text import show

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_EVALUATION = ("eval", "evaluation")


def is_split_name(name: str) -> bool:
    """Tell whether a name stands for a split."""
    return name.lower() in SPLIT_NAMES or name.lower() in _EVALUATION


def splits_of(
    names: Iterable[str], path: str, files: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Find the names that stand for splits.

    `eval` is the validation split where no other name is, or else the test split where no other name is.

    Args:
        names: the names.
        path: what holds them, for an error.
        files: the file of each name, which messages show instead.

    Returns:
        {split: name}, with train first, and notes on what `eval` was taken for.

    Raises:
        DataError: two names stand for the same split.
    """
    shown = {name: (files or {}).get(name, name) for name in names}
    found: dict[str, str] = {}
    for name in shown:
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"{show(shown[found[split]])} and {show(shown[name])} are both the {split} split",
                path=path,
                remedy="keep one of them",
            )
        found[split] = name
    notes = []
    for name in shown:
        free = [split for split in ("validation", "test") if split not in found]
        if name.lower() in _EVALUATION and free:
            found[free[0]] = name
            notes.append(f"{show(shown[name])} is read as the {free[0]} split")
    return {split: found[split] for split in SPLITS if split in found}, notes
