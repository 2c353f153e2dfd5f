"""Several techniques on one model at once, each on its own side of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from tunewise.contract.attachment import Attachment, strict
from tunewise.contract.study import Study
from tunewise.contract.technique import Technique
from tunewise.core.errors import ArtifactError, TechniqueError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class Composed(Technique):
    """Several techniques on one model, e.g. `icl+lora`; their sides must not collide."""

    name = "composed"
    family = "nonparametric"
    parts: tuple[Technique, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", "+".join(part.name for part in self.parts))
        object.__setattr__(self, "family", self.parts[-1].family)
        object.__setattr__(self, "trains", any(part.trains for part in self.parts))
        object.__setattr__(self, "mergeable", all(part.mergeable or part.name == "base" for part in self.parts))
        object.__setattr__(self, "identity_at_start", all(part.identity_at_start for part in self.parts))
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

    def stamp(self, task: Task) -> str:
        """The parts' stamps."""
        return "+".join(filter(None, (part.stamp(task) for part in self.parts)))

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

    def learn(self, study: Study) -> None:
        for part in self.parts:
            part.learn(study)

    def rehearse(self, study: Study) -> None:
        for part in self.parts:
            part.rehearse(study)

    def start_phase(self, phase: int) -> None:
        for part in self.parts:
            part.start_phase(min(phase, part.phases - 1))

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
        return torch.stack(found).sum() if found else super().drift()

    def moved(self) -> float | None:
        found = [far for part in self.parts if (far := part.moved()) is not None]
        return math.hypot(*found) if found else None

    def changed(self) -> list[nn.Parameter]:
        return [parameter for part in self.parts for parameter in part.changed()]

    def render(self, example: Example) -> Example:
        for part in self.parts:
            example = part.render(example)
        return example

    def sources(self, example: Example) -> list[str]:
        return [source for part in self.parts for source in part.sources(example)]

    def label_bias(self) -> Tensor | None:
        return next((bias for part in self.parts if (bias := part.label_bias()) is not None), None)

    def findings(self, validation_loss: Callable[[], float]) -> dict[str, Any]:
        return {name: value for part in self.parts for name, value in part.findings(validation_loss).items()}

    def trunk(self) -> Sequence[int]:
        trained = [part for part in self.parts if part.recipe.sides != {"prompt"}]
        return trained[0].trunk() if len(trained) == 1 else ()

    def touched(self) -> dict[str, Tensor]:
        return {name: places for part in self.parts for name, places in part.touched().items()}

    def ground(self) -> dict[str, Tensor]:
        return {name: weight for part in self.parts for name, weight in part.ground().items()}

    def state(self) -> dict[str, Tensor]:
        return self._join("state")

    def load(self, state: Mapping[str, Tensor]) -> None:
        parts = list(self._split(state))
        lost = len(state) - sum(len(own) for _, own in parts)
        if lost:
            raise ArtifactError(f"the weights hold {lost} tensors of no part of {self.recipe.name}")
        for part, own in parts:
            part.load(own)

    def memory(self) -> list[dict[str, Any]]:
        return [{"part": part.recipe.name, **row} for part in self.parts for row in part.memory()]

    def recall(self, rows: list[dict[str, Any]], style: Task) -> None:
        for part in self.parts:
            own = [row for row in rows if row.get("part") == part.recipe.name]
            part.recall([{key: value for key, value in row.items() if key != "part"} for row in own], style)

    def training_state(self) -> dict[str, Tensor]:
        return self._join("training_state")

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        strict(self.training_state(), state)
        for part, own in self._split(state):
            part.load_training_state(own)

    def merge(self) -> nn.Module:
        if not self.recipe.mergeable:
            refused = next(part for part in self.parts if not part.recipe.mergeable)
            refused.merge()
        for part in self.parts:
            merged = part.merge()
        return merged

    def detach(self) -> None:
        while self.parts:
            self.parts.pop().detach()
        super().detach()
