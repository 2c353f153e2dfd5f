"""What advice is asked for: the user's needs beside a good score, and the situation that they are met in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

from tunewise.advice.features import Features
from tunewise.advice.plan.plan_row import PlanRow
from tunewise.contract.technique import Technique
from tunewise.core.errors import SettingError
from tunewise.results.needs import Need

Candidate = Technique | type[Technique]  # a recipe, or a technique with its default settings
# Makes the rows of a plan for a device of so many bytes; None: without a limit, so that everything fits.
Planner = Callable[[float | None], Sequence[PlanRow]]

_PREDICTED = ("memory", "artifact", "train", "prompt", "parameters", "forgot", "mergeable", "swappable", "retain")
_PLANNED = ("memory", "artifact", "train", "parameters", "prompt")


def reads_documents(candidate: Candidate) -> bool:
    """Tell whether a technique searches documents at inference, so that they may change after training."""
    parts: tuple[Candidate, ...] = getattr(candidate, "parts", ()) or (candidate,)
    return any(setting.name == "knowledge" for part in parts for setting in fields(part))


@dataclass(frozen=True, kw_only=True)
class Question:
    """Says what the user needs beside a good score.

    Attributes:
        memory: bytes of the device that training must fit into.
        time: seconds that training may take at most.
        requests_per_day: requests that will be answered per day.
        tenants: adaptations that one loaded model must serve.
        needs: what the technique must have, as `tunewise compare --need` takes it.
        forget_nothing: the model's own weights must not change.
        documents_change: the answers must follow documents that change after training.
    """

    memory: float | None = None
    time: float | None = None
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
        for need in self.parsed_needs:
            if need.quantity not in _PREDICTED:
                raise SettingError(
                    f"--need {need.text}: {need.quantity} cannot be predicted; give it to tunewise compare, which "
                    "measures it"
                )

    @cached_property
    def parsed_needs(self) -> tuple[Need, ...]:
        """Return the needs as objects that a row can be checked against."""
        return tuple(Need.read(text) for text in self.needs)

    @property
    def limits_for_a_plan(self) -> list[str]:
        """Return the limits that only a plan can check."""
        limits = [name for name in ("memory", "time") if getattr(self, name) is not None]
        return [need.text for need in self.parsed_needs if need.quantity in _PLANNED] + limits

    def to_json(self) -> dict[str, object]:
        """Return the arguments of this class."""
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
    """Holds what one answer is for: the features of the model and the task, the question, and the plan."""

    features: Features
    question: Question
    plan: Mapping[str, PlanRow] = field(default_factory=dict)  # by technique

    @classmethod
    def planned(cls, features: Features, question: Question, planner: Planner | None) -> Situation:
        """Make the plan that a question needs and return the situation with it.

        Raises:
            SettingError: the question has limits that only a plan can check, and there is no planner.
        """
        if planner is None and question.limits_for_a_plan:
            limits = ", ".join(question.limits_for_a_plan)
            raise SettingError(f"{limits}: the memory and time of a technique are not known here; give a planner")
        rows = planner(question.memory) if planner is not None else ()
        return cls(features, question, {row.technique: row for row in rows})
