"""What a technique is: an immutable recipe (`Technique`) and that recipe living on one model (`Attachment`).

A technique file defines one frozen dataclass and the attachment that it makes; the registry finds it, the command
line lists it, the contract tests run over it. Everything in `Attachment` has a default, so that a file writes only
what its technique needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tunewise.contract.learning_rates import REFERENCE_WIDTH
from tunewise.contract.settings import checked
from tunewise.core.errors import TechniqueError
from tunewise.core.json_record import JsonObject

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunewise.contract.attachment import Attachment
    from tunewise.data.task import Task
    from tunewise.engine.model import Base

FAMILIES = ("nonparametric", "full", "partial", "additive", "reparametrized")


@dataclass(frozen=True)
class Citation:
    """Where a technique comes from.

    Examples:
        >>> all_techniques()["lora"].citation.title
        'LoRA: Low-Rank Adaptation of Large Language Models'
    """

    title: str
    authors: str
    year: int
    url: str
    equation: str = ""


class _Fact:
    """The descriptor that `fact` puts into a class."""

    def __init__(self, default: Any, decide: Callable[[Any], Any]) -> None:
        self.default, self.decide, self.__doc__ = default, decide, decide.__doc__

    def __get__(self, recipe: Any, owner: type | None = None) -> Any:
        return self.default if recipe is None else self.decide(recipe)


def fact(default: Any) -> Callable[[Callable[[Any], Any]], Any]:
    """Let settings decide a class fact: a recipe takes it from the decorated method; the class itself has `default`."""
    return lambda decide: _Fact(default, decide)


@dataclass(frozen=True, kw_only=True)
class Technique(ABC):
    """A recipe: hashable, JSON-able settings and class facts; holds no tensors.

    Facts: `sides` are the sides of the model that it changes (two techniques that share one cannot compose);
    `needs` says what a model or task must have; `reference_rate` is the default learning rate at width 4096 and
    `width_exponent` how it grows for narrower models, rate * (4096 / width) ** exponent (Yang et al. 2022, Tensor
    Programs V, gives 1 for Adam on hidden weights); `search_grid` multiplies it in a search;
    where `chooses` is True, `prepare` makes choices on validation, within an allowance that the budget sets;
    `late_settings` can still be changed when an adaptation is loaded; where `seeded` is False, all seeds give the same;
    `place_settings` name something outside of the adaptation (a model, documents, data): where they stand in a file
    they are left out when it is loaded, and a user gives them anew;
    what `prepare` reads does not depend on the settings in `unread_settings`, so that it is read once for all of them;
    `needs_whole_weights` says in a clause why it cannot be trained on weights that are shared out over devices (`fit
    --shard`), and is empty where it can; `needs_whole_rows` says the same of rows that devices compute together (`fit
    --context`);
    where `packs_weights` is True, it makes the base's weights smaller while it is attached, and can be attached before
    they are on the device (`Base.place`);
    `example_settings` are those without which it cannot be tried, as in the tests of the contract;
    where `adapts` is False, it is the base itself, whose figures the others are compared with;
    `differs` says in a few words what of it is not exactly the paper's, and becomes part of the row's label.
    A fact that depends on the settings is a method under `fact`.

    Examples:
        >>> recipe = make("lora", {"lora": {"r": 8}})
        >>> recipe.r, recipe.family, recipe.trains
        (8, 'reparametrized', True)
    """

    name: ClassVar[str]
    family: ClassVar[str]
    citation: ClassVar[Citation | None] = None
    equation: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    sides: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[str] = ""
    trains: ClassVar[bool] = True
    chooses: ClassVar[bool] = False
    seeded: ClassVar[bool] = True
    adapts: ClassVar[bool] = True
    differs: ClassVar[str] = ""
    mergeable: ClassVar[bool] = False
    identity_at_start: ClassVar[bool] = True
    packs_weights: ClassVar[bool] = False
    needs_whole_weights: ClassVar[str] = "it has not been tried on parts of weights"
    needs_whole_rows: ClassVar[str] = "it has not been tried on parts of rows"
    reference_rate: ClassVar[float] = 0.0
    width_exponent: ClassVar[float] = 0.0
    example_settings: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    late_settings: ClassVar[frozenset[str]] = frozenset()
    place_settings: ClassVar[frozenset[str]] = frozenset()
    unread_settings: ClassVar[frozenset[str]] = frozenset({"learning_rate"})
    search_grid: ClassVar[tuple[float, ...]] = (1.0, 3.0, 1 / 3, 10.0, 0.1)

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, checked(self.name, item, getattr(self, item.name)))

    @property
    def only_prompts(self) -> bool:
        """Tell whether it does nothing but write into prompts: other text is read as the bare base reads it."""
        return self.sides == {"prompt"} and not self.trains

    @abstractmethod
    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put this recipe on a base whose parameters are all frozen; all randomness comes from `generator`."""

    def resolved(self, base: Base) -> Self:
        """Return the same recipe with the learning rate for this base filled in."""
        if not self.trains or getattr(self, "learning_rate", 0.0) is not None:
            return self
        return self.with_rate(self.default_rate(base))

    def default_rate(self, base: Base) -> float:
        """Return the learning rate for this base where none is given."""
        return self.reference_rate * (REFERENCE_WIDTH / base.anatomy.width) ** self.width_exponent

    def search(self, count: int) -> list[Self]:
        """Return `count` recipes around this resolved one, itself first, that differ in learning rate."""
        if not self.trains:
            return [self]
        rate: float = getattr(self, "learning_rate")  # noqa: B009 (only techniques that train have it)
        return [self.with_rate(rate * factor) for factor in self.search_grid[:count]]

    def varied(self, held: Collection[str] = ()) -> list[Self]:
        """Return variants of this recipe, each with one searched setting changed; those in `held` ("lora.r") stay."""
        return [
            replace(self, **{item.name: value})
            for item in fields(self)
            for value in item.metadata.get("search", ())
            if f"{self.name}.{item.name}" not in held and value != getattr(self, item.name)
        ]

    def with_rate(self, rate: float) -> Self:
        """Return the same recipe with this learning rate, rounded to three digits."""
        return replace(self, **{"learning_rate": float(f"{rate:.3g}")})

    def lacks(self, base: Base, task: Task) -> str:
        """Say in a sentence what a model and a task lack for this recipe; empty where nothing is known to be missing.

        It is for advice before anything runs: `base` may come without its weights.
        """
        return ""

    def places_to_answer(self) -> dict[str, str]:
        """Return those of `place_settings`, by name, that the recipe uses when it answers, and not before alone."""
        return {}

    def files_fingerprint(self, task: Task) -> str:
        """Return a fingerprint of the files that the recipe reads besides the task's; empty where it reads none."""
        return ""

    def preparation(self) -> JsonObject:
        """Return name and settings without those that what `prepare` reads does not depend on."""
        return {"technique": self.name, "settings": without(plain(self), self.unread_settings)}

    def rows_before_training(self, available: int) -> float:
        """Return how many rows a training would read in the time of `prepare`, besides choices within an allowance.

        Args:
            available: the training examples of the task.
        """
        return 0.0

    def why_not_mergeable(self) -> str:
        """Say in a sentence why this recipe cannot be merged; asked where it is not `mergeable`."""
        return f"{self.name} cannot be merged into the base's weights; keep the adaptation"

    def require_shards(self) -> None:
        """Refuse to be trained on weights that are shared out over devices, if whole ones are needed.

        Raises:
            TechniqueError: says why, and what to do.
        """
        if self.needs_whole_weights:
            raise TechniqueError(
                f"{self.name} needs whole weights ({self.needs_whole_weights}); use --devices without --shard, where "
                "every device holds all of them"
            )

    def require_context(self) -> None:
        """Refuse to be trained on rows that devices compute together, if whole ones are needed.

        Raises:
            TechniqueError: says why, and what to do.
        """
        if self.needs_whole_rows:
            raise TechniqueError(
                f"{self.name} needs whole rows ({self.needs_whole_rows}); use --devices without --context, where every "
                "device computes rows of its own"
            )

    def to_json(self) -> dict[str, Any]:
        """Return name and settings as JSON."""
        return {"technique": self.name, "settings": plain(self)}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        """Return the recipe of a PEFT adapter of this kind, or None if it is of another kind."""
        return None


def without(settings: JsonObject, names: Collection[str]) -> JsonObject:
    """Return the settings of other names than these."""
    return {name: value for name, value in settings.items() if name not in names}


def plain(recipe: Technique) -> dict[str, Any]:
    """Return the settings as JSON gives them back, with lists in place of tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
