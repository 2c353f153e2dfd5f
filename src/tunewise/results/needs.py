"""What a user must have: `memory<8GB`, `artifact<50MB`, `latency<20ms`, `mergeable`, `retain`, ..."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from tunewise.core.errors import SettingError
from tunewise.core.units import BYTES, SECONDS
from tunewise.results.schema import ScoredRow

KEPT = 0.9  # share of its score on what the base could do that a technique must keep to be said to retain it
ROSE = 0.1  # nats per token that the loss on retention text may rise where no such score was taken

_PLAIN = {"": 1.0, "k": 1e3, "M": 1e6}
_UNITS: dict[str, dict[str, float]] = {
    "memory": BYTES,
    "artifact": BYTES,
    "train": SECONDS,
    "latency": SECONDS,
    "prompt": _PLAIN,
    "parameters": _PLAIN,
    "price": _PLAIN,
    "score": _PLAIN,
    "forgot": _PLAIN,
    "kept": _PLAIN,
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What needs are about, of a row or of what a row is expected to be; None where it is not known.

    Attributes:
        memory: peak in bytes while fitting.
        artifact: bytes on disk.
        train: seconds of a fit.
        latency: seconds of answering one example.
        prompt: tokens of a request.
        parameters: that are optimised.
        price: US dollars of a thousand requests.
        score: mean of the test score.
        forgot: rise of the loss on retention text, in nats a token.
        kept: score on what the base could do.
        mergeable: it becomes part of the model's own weights.
        swappable: it is put on one loaded model and taken off again.
    """

    memory: float | None = None
    artifact: float | None = None
    train: float | None = None
    latency: float | None = None
    prompt: float | None = None
    parameters: float | None = None
    price: float | None = None
    score: float | None = None
    forgot: float | None = None
    kept: float | None = None
    mergeable: bool = False
    swappable: bool = False

    @classmethod
    def of(cls, row: ScoredRow) -> Measured:
        """Take what a comparison measured."""
        cost, forgetting = row.cost, row.forgetting
        return cls(
            memory=cost.peak_memory_bytes,
            artifact=cost.artifact_bytes,
            train=cost.train_seconds,
            latency=cost.seconds_per_example,
            prompt=cost.prompt_tokens,
            parameters=cost.optimised_parameters,
            price=cost.usd_per_1000_requests,
            score=row.score.mean,
            forgot=forgetting.nll_rise if forgetting is not None else None,
            kept=forgetting.probe if forgetting is not None else None,
            mergeable=bool(cost.merges),
            swappable=bool(cost.swappable),
        )


def retains(measured: Measured) -> bool:
    """Whether what the base could do is kept: by the probe, or by the loss on retention text."""
    if measured.kept is not None:
        return measured.kept >= KEPT
    return (measured.forgot or 0.0) <= ROSE


_FLAGS: dict[str, Callable[[Measured], bool]] = {
    "mergeable": lambda measured: measured.mergeable,
    "swappable": lambda measured: measured.swappable,
    "retain": retains,
}


@dataclass(frozen=True)
class Need:
    """One requirement, as it was written; `quantity` is what it is about: memory, artifact, ..., mergeable, retain."""

    text: str
    holds: Callable[[Measured], bool]
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
        if found is None or found[1] not in _UNITS or found[3].count(".") > 1 or found[3] == ".":
            raise SettingError(
                f'--need is "{text}" but must be one of {", ".join(_FLAGS)}, or compare one of '
                f"{', '.join(_UNITS)} with a number, as in memory<8GB"
            )
        name, units = found[1], _UNITS[found[1]]
        if found[4] not in units:
            raise SettingError(f'--need is "{text}", but its unit must be one of {", ".join(filter(None, units))}')
        limit, compare = float(found[3]) * units[found[4]], _COMPARE[found[2]]

        def holds(measured: Measured) -> bool:
            value: float | None = getattr(measured, name)
            return value is not None and compare(value, limit)

        return cls(words, holds, name)
