"""What is asked of advice: the needs beside a good score, and the situation that they are asked in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tunewise.advice.features import Features
from tunewise.contract.technique import Technique
from tunewise.core.errors import SettingError
from tunewise.results.needs import Need

PlanRow = Mapping[str, Any]


Candidate = Technique | type[Technique]  # a recipe, or a technique as it is by default


Planner = Callable[[float | None], Sequence[PlanRow]]  # what fits into so many bytes (None: into this machine)


_FORESEEN = ("memory", "artifact", "train", "prompt", "parameters", "forgot", "mergeable", "swappable", "retain")


_PLANNED = ("memory", "artifact", "train", "parameters")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user needs beside a good score."""

    memory: float | None = None  # bytes
    time: float | None = None  # seconds of training
    requests_per_day: float = 1000.0
    tenants: int = 1
    needs: tuple[str, ...] = ()
    forget_nothing: bool = False
    documents_change: bool = False

    def __post_init__(self) -> None:
        for name in ("memory", "time", "requests_per_day", "tenants"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingError(f"{name.replace('_', '-')} is {value:g} but must be more than 0")
        for need in self.wanted:
            if need.quantity not in _FORESEEN:
                raise SettingError(
                    f"--need {need.text}: {need.quantity} cannot be foreseen; give it to tunewise compare, which "
                    "measures it"
                )

    @cached_property
    def wanted(self) -> tuple[Need, ...]:
        """The needs, read."""
        return tuple(Need.read(text) for text in self.needs)

    @property
    def planned(self) -> list[str]:
        """What is asked that only a plan can answer."""
        limits = [name for name in ("memory", "time") if getattr(self, name) is not None]
        return [need.text for need in self.wanted if need.quantity in _PLANNED] + limits

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return {
            "memory": self.memory,
            "time": self.time,
            "requests_per_day": self.requests_per_day,
            "tenants": self.tenants,
            "needs": list(self.needs),
            "forget_nothing": self.forget_nothing,
            "documents_change": self.documents_change,
        }


@dataclass(frozen=True)
class Situation:
    """One question: the features, what is asked, and the plan for it."""

    features: Features
    asked: Asked
    plan: Mapping[str, PlanRow] = field(default_factory=dict)
