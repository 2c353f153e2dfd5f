"""What a user must have: `memory<8GB`, `artifact<50MB`, `latency<20ms`, `mergeable`, `retain`, ..."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunewise.core.errors import SettingError
from tunewise.core.units import BYTES, SECONDS

KEPT = 0.9  # share of its score on what the base could do that a technique must keep to be said to retain it
ROSE = 0.1  # nats per token that the loss on retention text may rise where no such score was taken

Row = Mapping[str, Any]

_PLAIN = {"": 1.0, "k": 1e3, "M": 1e6}
_QUANTITIES: dict[str, tuple[str, str, dict[str, float]]] = {
    "memory": ("cost", "peak_memory_bytes", BYTES),
    "artifact": ("cost", "artifact_bytes", BYTES),
    "train": ("cost", "train_seconds", SECONDS),
    "latency": ("cost", "seconds_per_example", SECONDS),
    "prompt": ("cost", "prompt_tokens", _PLAIN),
    "parameters": ("cost", "optimised_parameters", _PLAIN),
    "price": ("cost", "usd_per_1000_requests", _PLAIN),
    "score": ("score", "mean", _PLAIN),
    "forgot": ("forgetting", "nll_rise", _PLAIN),
    "kept": ("forgetting", "probe", _PLAIN),
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def retains(row: Row) -> bool:
    """Whether a row kept what the base could do: by the probe, or by the loss on retention text."""
    forgetting = row.get("forgetting") or {}
    if "probe" in forgetting:
        return bool(forgetting["probe"] >= KEPT)
    return bool(forgetting.get("nll_rise", 0.0) <= ROSE)


_FLAGS: dict[str, Callable[[Row], bool]] = {
    "mergeable": lambda row: bool(row["cost"].get("merges")),
    "swappable": lambda row: bool(row["cost"].get("swappable")),
    "retain": retains,
}


@dataclass(frozen=True)
class Need:
    """One requirement, as it was written; `quantity` is what it is about: memory, artifact, ..., mergeable, retain."""

    text: str
    holds: Callable[[Row], bool]
    quantity: str = ""

    @classmethod
    def read(cls, text: str) -> Need:
        """From `memory<8GB` or `mergeable`.

        Raises:
            SettingError: no such quantity, unit or flag.
        """
        words = text.strip()
        if words in _FLAGS:
            return cls(words, _FLAGS[words], words)
        found = re.fullmatch(r"(\w+)\s*(<=|>=|<|>)\s*([\d.]+)\s*([A-Za-z]*)", words)
        if found is None or found[1] not in _QUANTITIES or found[3].count(".") > 1 or found[3] == ".":
            raise SettingError(
                f'--need is "{text}" but must be one of {", ".join(_FLAGS)}, or compare one of '
                f"{', '.join(_QUANTITIES)} with a number, as in memory<8GB"
            )
        group, name, units = _QUANTITIES[found[1]]
        if found[4] not in units:
            raise SettingError(f'--need is "{text}", but its unit must be one of {", ".join(filter(None, units))}')
        limit, compare = float(found[3]) * units[found[4]], _COMPARE[found[2]]
        holds = lambda row: (row.get(group) or {}).get(name) is not None and compare(row[group][name], limit)  # noqa: E731
        return cls(words, holds, found[1])
