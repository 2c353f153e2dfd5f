"""Reads what a user requires: `memory<8GB`, `artifact<50MB`, `latency<20ms`, `mergeable`, `retain`, ..."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from tunewise.core.errors import SettingError
from tunewise.core.units import BYTES, SECONDS
from tunewise.results.schema import ScoredRow

KEPT = 0.9  # share of the base's score on the probe that a technique must keep to count as retaining it
ROSE = 0.1  # nats per token that the loss on retention text may rise, if there is no probe

_UNSCALED = {"": 1.0, "k": 1e3, "M": 1e6}
_UNITS: dict[str, dict[str, float]] = {
    "memory": BYTES,
    "artifact": BYTES,
    "train": SECONDS,
    "latency": SECONDS,
    "prompt": _UNSCALED,
    "parameters": _UNSCALED,
    "price": _UNSCALED,
    "score": _UNSCALED,
    "forgot": _UNSCALED,
    "kept": _UNSCALED,
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Holds the quantities that needs are about, measured or predicted for a row; None if unknown.

    Attributes:
        memory: peak memory while fitting, in bytes.
        artifact: bytes on disk.
        train: seconds per fit.
        latency: seconds per answer.
        prompt: tokens per request.
        parameters: number of optimised parameters.
        price: US dollars per thousand requests.
        score: mean test score.
        forgot: rise of the loss on retention text, in nats per token.
        kept: score on the probe, which the base could do.
        mergeable: whether it can be merged into the model's weights.
        swappable: whether requests to one loaded model can each use it or not.
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
        """Return the quantities that a comparison measured for a row."""
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
    """Return whether the base's abilities are kept: by the probe if there is one, else by the retention loss."""
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
    """Holds one requirement as it was written; `quantity` names what it limits: memory, ..., mergeable, retain."""

    text: str
    holds: Callable[[Measured], bool]
    quantity: str = ""

    @classmethod
    def read(cls, text: str) -> Need:
        """Read a need such as `memory<8GB` or `mergeable`.

        Raises:
            SettingError: there is no such quantity, unit or flag.
        """
        words = text.strip()
        if words in _FLAGS:
            return cls(words, _FLAGS[words], words)
        match = re.fullmatch(r"(\w+)\s*(<=|>=|<|>)\s*([\d.]+)\s*([A-Za-z]*)", words)
        if match is None or match[1] not in _UNITS or match[3].count(".") > 1 or match[3] == ".":
            raise SettingError(
                f'--need is "{text}" but must be one of {", ".join(_FLAGS)}, or compare one of '
                f"{', '.join(_UNITS)} with a number, as in memory<8GB"
            )
        name, units = match[1], _UNITS[match[1]]
        if match[4] not in units:
            raise SettingError(f'--need is "{text}", but its unit must be one of {", ".join(filter(None, units))}')
        limit, compare = float(match[3]) * units[match[4]], _COMPARE[match[2]]

        def holds(measured: Measured) -> bool:
            value: float | None = getattr(measured, name)
            return value is not None and compare(value, limit)

        return cls(words, holds, name)
