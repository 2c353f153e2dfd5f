"""Several techniques on one model at once, each on its own side of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from tunewise.contract.attachment import Attachment, strict
from tunewise.contract.study import Study
from tunewise.contract.technique import Technique, fact
from tunewise.core.errors import ArtifactError, TechniqueError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class Composed(Technique):
    """Several techniques on one model, e.g. `icl+lora`; their sides must not collide."""

    parts: tuple[Technique, ...] = ()

    @fact(default="composed")
    def name(self) -> str:
        """Join the parts' names."""
        return "+".join(part.name for part in self.parts)

    @fact(default="nonparametric")
    def family(self) -> str:
        """Take the last part's."""
        return self.parts[-1].family

    @fact(default="")
    def summary(self) -> str:
        """Join the parts' summaries."""
        return "; ".join(part.summary for part in self.parts)

    @fact(default="")
    def equation(self) -> str:
        """Join the parts' equations."""
        return "; ".join(part.equation for part in self.parts)

    @fact(default=frozenset())
    def sides(self) -> frozenset[str]:
        """Unite the parts' sides."""
        return frozenset().union(*(part.sides for part in self.parts))

    @fact(default="")
    def needs(self) -> str:
        """Join what the parts need."""
        return "; ".join(dict.fromkeys(part.needs for part in self.parts if part.needs))

    @fact(default=True)
    def trains(self) -> bool:
        """Say whether a part trains."""
        return any(part.trains for part in self.parts)

    @fact(default=True)
    def seeded(self) -> bool:
        """Say whether a part is not the same for every seed."""
        return any(part.seeded for part in self.parts)

    @fact(default=False)
    def mergeable(self) -> bool:
        """Say whether all parts can be merged."""
        return all(part.mergeable for part in self.parts)

    @fact(default=True)
    def identity_at_start(self) -> bool:
        """Say whether no part changes anything before it is trained."""
        return all(part.identity_at_start for part in self.parts)

    @fact(default=Technique.search_grid)
    def search_grid(self) -> tuple[float, ...]:
        """Take the shortest of those that train: a search goes through all of them in step."""
        return min((part.search_grid for part in self.parts if part.trains), key=len, default=Technique.search_grid)

    def __post_init__(self) -> None:
        for index, part in enumerate(self.parts):
            for other in self.parts[:index]:
                shared = sorted(part.sides & other.sides)
                if shared or part.name == other.name:
                    side = shared[0] if shared else "same"
                    raise TechniqueError(f"{other.name} and {part.name} cannot compose: both change the {side}")

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach the parts in order."""
        return _Together(base, self, generator)

    def resolved(self, base: Base) -> Self:
        """All parts resolved."""
        return replace(self, parts=tuple(part.resolved(base) for part in self.parts))

    def search(self, count: int) -> list[Self]:
        """The parts' searches in step."""
        if not self.trains:
            return [self]
        lists = [part.search(count) for part in self.parts]
        length = min(len(found) for found, part in zip(lists, self.parts, strict=True) if part.trains)
        return [replace(self, parts=tuple(f[i if len(f) > i else 0] for f in lists)) for i in range(length)]

    def with_rate(self, rate: float) -> Self:
        """The same composition with this learning rate in the part that trains.

        Raises:
            TechniqueError: it is not one part that trains.
        """
        trained = [part for part in self.parts if part.trains]
        if len(trained) != 1:
            rates = "none" if not trained else f"{len(trained)} ({' and '.join(part.name for part in trained)})"
            raise TechniqueError(
                f"{self.name} has not one learning rate but {rates}; set learning_rate for each part by its name"
            )
        return replace(self, parts=tuple(part.with_rate(rate) if part.trains else part for part in self.parts))

    def varied(self, held: Collection[str] = ()) -> list[Self]:
        """Each part's, with the others as they are."""
        return [
            replace(self, parts=tuple(new if place == own else part for place, part in enumerate(self.parts)))
            for own, varying in enumerate(self.parts)
            if varying.trains
            for new in varying.varied(held)
        ]

    def lacks(self, base: Base, task: Task) -> str:
        """What the first part lacks that lacks something."""
        return next(filter(None, (part.lacks(base, task) for part in self.parts)), "")

    def files_fingerprint(self, task: Task) -> str:
        """The parts' stamps."""
        return "+".join(filter(None, (part.files_fingerprint(task) for part in self.parts)))

    def why_not_mergeable(self) -> str:
        """Say it of the first part that cannot be merged."""
        return next(part for part in self.parts if not part.mergeable).why_not_mergeable()

    def to_json(self) -> dict[str, Any]:
        """Name and the settings of each part."""
        return {"technique": self.name, "settings": {part.name: part.to_json()["settings"] for part in self.parts}}


class _Together(Attachment):
    def __init__(self, base: Base, recipe: Composed, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.parts: list[Attachment] = []
        for part in recipe.parts:
            self.parts.append(part.attach(base, generator))
        self.virtual_tokens = sum(part.virtual_tokens for part in self.parts)
        self.virtual_suffix = sum(part.virtual_suffix for part in self.parts)
        self.phases = max(part.phases for part in self.parts)

    @property
    def label(self) -> str:  # type: ignore[override]
        """The parts' labels, and the names of those that have none; empty where none has one."""
        if not any(part.label for part in self.parts):
            return ""
        return " + ".join(part.label or part.recipe.name for part in self.parts)

    def _join(self, method: str) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for part in self.parts:
            joined |= {f"{part.recipe.name}.{name}": value for name, value in getattr(part, method)().items()}
        return joined

    def _split(self, state: Mapping[str, Any]) -> Iterator[tuple[Attachment, dict[str, Any]]]:
        for part in self.parts:
            prefix = part.recipe.name + "."
            yield (
                part,
                {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)},
            )

    def params(self) -> dict[str, nn.Parameter]:
        return self._join("params")

    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups()]

    def optimizer(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
        """One for all parts where none has its own; else each part's own over its groups, as one."""
        from tunewise.engine.optimizers import Combined

        if all(type(part).optimizer is Attachment.optimizer for part in self.parts):
            return super().optimizer(groups, betas)
        shares = [(part, own) for part, own in zip(self.parts, self._shares(groups), strict=True) if own]
        movers = [part.optimizer(own, betas) for part, own in shares]
        return movers[0] if len(movers) == 1 else Combined(movers)

    def _shares(self, groups: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The groups of each part.

        Raises:
            TechniqueError: two parts would move one tensor, or a group is not one part's.
        """
        owners: dict[int, int] = {}
        for place, part in enumerate(self.parts):
            for name, parameter in part.params().items():
                other = self.parts[owners.setdefault(id(parameter), place)]
                if other is not part:
                    raise TechniqueError(
                        f"{other.recipe.name} and {part.recipe.name} cannot be trained together: both would move "
                        f"{name}, each with an optimizer of its own"
                    )
        shares: list[list[dict[str, Any]]] = [[] for _ in self.parts]
        for group in groups:
            places = {owners.get(id(parameter), -1) for parameter in group["params"]}
            if len(places) == 1 and -1 not in places:
                shares[places.pop()].append(group)
            elif places:
                raise TechniqueError(
                    f"the optimizers of {self.recipe.name} cannot be told apart: a group of parameters is not all one "
                    "part's; let param_groups() of each part name its own params() alone"
                )
        return shares

    @property
    def accumulates(self) -> bool:
        return all(part.accumulates for part in self.parts)

    def original(self, parameter: nn.Parameter) -> Tensor:
        for part in self.parts:
            with suppress(KeyError):  # another part's
                return part.original(parameter)
        return super().original(parameter)

    def prepare(self, study: Study) -> None:
        for part in self.parts:
            part.prepare(study)

    def prepare_shapes(self, study: Study) -> None:
        for part in self.parts:
            part.prepare_shapes(study)

    def start_phase(self, phase: int) -> None:
        for part in self.parts:
            if phase < part.phases:
                part.start_phase(phase)

    def before_step(self, step: int, total: int) -> None:
        for part in self.parts:
            part.before_step(step, total)

    def after_backward(self, step: int, total: int) -> None:
        for part in self.parts:
            part.after_backward(step, total)

    def after_step(self, step: int, total: int) -> None:
        for part in self.parts:
            part.after_step(step, total)

    def penalty(self) -> Tensor | None:
        terms = [term for part in self.parts if (term := part.penalty()) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def drift(self) -> Tensor:
        found = []
        for part in self.parts:
            try:
                found.append(part.drift())
            except TechniqueError:
                continue  # a part that moves no weight
        return sum(found[1:], found[0]) if found else super().drift()

    def moved(self) -> float | None:
        found = [far for part in self.parts if (far := part.moved()) is not None]
        return math.hypot(*found) if found else None

    @property
    def swappable(self) -> bool:
        return all(part.swappable for part in self.parts)

    def changed(self) -> list[nn.Parameter]:
        return [parameter for part in self.parts for parameter in part.changed()]

    def render(self, example: Example) -> Example:
        for part in self.parts:
            example = part.render(example)
        return example

    def citations(self, example: Example) -> list[str]:
        return [source for part in self.parts for source in part.citations(example)]

    def label_bias(self) -> Tensor | None:
        return next((bias for part in self.parts if (bias := part.label_bias()) is not None), None)

    def findings(self, validation_loss: Callable[[], float]) -> dict[str, Any]:
        return {name: value for part in self.parts for name, value in part.findings(validation_loss).items()}

    def trunk(self) -> Sequence[int]:
        trained = [part for part in self.parts if not part.recipe.sides <= {"prompt"}]
        return trained[0].trunk() if len(trained) == 1 else ()

    def changed_entries(self) -> dict[str, Tensor]:
        return {name: places for part in self.parts for name, places in part.changed_entries().items()}

    def replaced_weights(self) -> dict[str, Tensor]:
        return {name: weight for part in self.parts for name, weight in part.replaced_weights().items()}

    def state(self) -> dict[str, Tensor]:
        return self._join("state")

    def load(self, state: Mapping[str, Tensor]) -> None:
        parts = list(self._split(state))
        lost = len(state) - sum(len(own) for _, own in parts)
        if lost:
            raise ArtifactError(f"the weights hold {lost} tensors of no part of {self.recipe.name}")
        for part, own in parts:
            part.load(own)

    def stored_rows(self) -> list[dict[str, Any]]:
        return [{"part": part.recipe.name, **row} for part in self.parts for row in part.stored_rows()]

    def load_rows(self, rows: list[dict[str, Any]], style: Task) -> None:
        for part in self.parts:
            own = [row for row in rows if row.get("part") == part.recipe.name]
            part.load_rows([{key: value for key, value in row.items() if key != "part"} for row in own], style)

    def training_state(self) -> dict[str, Tensor]:
        return self._join("training_state")

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        strict(self.training_state(), state)
        for part, own in self._split(state):
            part.load_training_state(own)

    def fold(self) -> None:
        for part in self.parts:
            part.merge()

    def detach(self) -> None:
        while self.parts:
            self.parts.pop().detach()
        super().detach()
