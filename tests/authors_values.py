"""Reads what the authors' implementations gave; tests/reference/golden/README.md says how these numbers were made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "reference" / "golden"


def authors_values(name: str) -> Any:
    """Return the content of a file of golden values."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def tensor(numbers: Any) -> torch.Tensor:
    """Return numbers as a tensor of float64, in which they were computed."""
    return torch.tensor(numbers, dtype=torch.float64)


def tensors(numbers_by_name: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return named numbers as tensors of float64."""
    return {name: tensor(numbers) for name, numbers in numbers_by_name.items()}


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Return the numbers that a seed stands for in these files: normal ones, rounded to 64ths so that they are exact.

    NumPy keeps the stream of `RandomState` the same in all of its versions.
    """
    return torch.from_numpy(np.round(np.random.RandomState(seed).standard_normal(shape) * 64) / 64)
