"""Several techniques on one model at once, each on its own side of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tunewise.contract.attachment import Attachment, CitedText, Findings, ParamGroup, StoredRow, strict
from tunewise.contract.study import Study
from tunewise.contract.technique import Technique, fact
from tunewise.core.errors import ArtifactError, TechniqueError
from tunewise.core.json_record import JsonObject

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base

TensorType = TypeVar("TensorType", bound="Tensor")


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
        """Take the last part's family."""
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

    @fact(default=False)
    def chooses(self) -> bool:
        """Say whether a part makes choices on validation before training."""
        return any(part.chooses for part in self.parts)

    @fact(default=True)
    def seeded(self) -> bool:
        """Say whether a part is not the same for every seed."""
        return any(part.seeded for part in self.parts)

    @fact(default=False)
    def mergeable(self) -> bool:
        """Say whether all parts can be merged."""
        return all(part.mergeable for part in self.parts)

    @fact(default=Technique.needs_whole_weights)
    def needs_whole_weights(self) -> str:
        """Join the reasons of the parts that cannot be trained on parts of weights."""
        return "; ".join(f"{part.name}: {why}" for part in self.parts if (why := part.needs_whole_weights))

    @fact(default=Technique.needs_whole_rows)
    def needs_whole_rows(self) -> str:
        """Join the reasons of the parts that cannot be trained on parts of rows."""
        return "; ".join(f"{part.name}: {why}" for part in self.parts if (why := part.needs_whole_rows))

    @fact(default=False)
    def packs_weights(self) -> bool:
        """Say whether the part that is attached first packs the weights."""
        return self.parts[0].packs_weights

    @fact(default=True)
    def identity_at_start(self) -> bool:
        """Say whether no part changes anything before it is trained."""
        return all(part.identity_at_start for part in self.parts)

    @fact(default=Technique.search_grid)
    def search_grid(self) -> tuple[float, ...]:
        """Take the shortest grid of the parts that train: a search goes through all of them in step."""
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
        return _ComposedAttachment(base, self, generator)

    def resolved(self, base: Base) -> Self:
        """Resolve all parts."""
        return replace(self, parts=tuple(part.resolved(base) for part in self.parts))

    def search(self, count: int) -> list[Self]:
        """Search all parts in step."""
        if not self.trains:
            return [self]
        lists = [part.search(count) for part in self.parts]
        length = min(len(recipes) for recipes, part in zip(lists, self.parts, strict=True) if part.trains)
        return [
            replace(self, parts=tuple(recipes[i if len(recipes) > i else 0] for recipes in lists))
            for i in range(length)
        ]

    def with_rate(self, rate: float) -> Self:
        """Return the same composition with this learning rate in the part that trains.

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
        """Vary each part, with the others as they are."""
        return [
            replace(self, parts=tuple(new if place == varied_place else part for place, part in enumerate(self.parts)))
            for varied_place, varying in enumerate(self.parts)
            if varying.trains
            for new in varying.varied(held)
        ]

    def lacks(self, base: Base, task: Task) -> str:
        """Return what the first part lacks that lacks something."""
        return next(filter(None, (part.lacks(base, task) for part in self.parts)), "")

    def preparation(self) -> JsonObject:
        """Return the name, and of each part the settings that what it reads depends on."""
        return {"technique": self.name, "settings": {part.name: part.preparation()["settings"] for part in self.parts}}

    def rows_before_training(self, available: int) -> float:
        """Add up the parts' rows."""
        return sum(part.rows_before_training(available) for part in self.parts)

    def files_fingerprint(self, task: Task) -> str:
        """Join the parts' fingerprints."""
        return "+".join(filter(None, (part.files_fingerprint(task) for part in self.parts)))

    def why_not_mergeable(self) -> str:
        """Say why the first part that cannot be merged cannot be."""
        return next(part for part in self.parts if not part.mergeable).why_not_mergeable()

    def to_json(self) -> dict[str, Any]:
        """Return the name and the settings of each part."""
        return {"technique": self.name, "settings": {part.name: part.to_json()["settings"] for part in self.parts}}


class _ComposedAttachment(Attachment):
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
        """Join the parts' labels, or names where a part has none; empty where no part has a label."""
        if not any(part.label for part in self.parts):
            return ""
        return " + ".join(part.label or part.recipe.name for part in self.parts)

    def _join(self, tensors_of: Callable[[Attachment], dict[str, TensorType]]) -> dict[str, TensorType]:
        """Return the parts' tensors in one mapping, with names that begin with the part's: `lora.model.layers.0...`."""
        return {
            f"{part.recipe.name}.{name}": tensor for part in self.parts for name, tensor in tensors_of(part).items()
        }

    def _split(self, state: Mapping[str, Tensor]) -> Iterator[tuple[Attachment, dict[str, Tensor]]]:
        for part in self.parts:
            prefix = part.recipe.name + "."
            yield (
                part,
                {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)},
            )

    def params(self) -> dict[str, nn.Parameter]:
        return self._join(lambda part: part.params())

    def param_groups(self) -> list[ParamGroup]:
        return [group for part in self.parts for group in part.param_groups()]

    def optimizer(self, groups: list[ParamGroup], betas: tuple[float, float]) -> torch.optim.Optimizer:
        """Return one optimiser for all parts where none has its own; else each part's over its groups, as one."""
        from tunewise.engine.optimizers import Combined

        if all(type(part).optimizer is Attachment.optimizer for part in self.parts):
            return super().optimizer(groups, betas)
        shares = [
            (part, part_groups)
            for part, part_groups in zip(self.parts, self._shares(groups), strict=True)
            if part_groups
        ]
        movers = [part.optimizer(part_groups, betas) for part, part_groups in shares]
        return movers[0] if len(movers) == 1 else Combined(movers)

    def _shares(self, groups: list[ParamGroup]) -> list[list[ParamGroup]]:
        """Return the groups of each part.

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
        shares: list[list[ParamGroup]] = [[] for _ in self.parts]
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

    def trained(self, parameter: nn.Parameter) -> nn.Parameter:
        copies = (part.trained(parameter) for part in self.parts)
        return next((copy for copy in copies if copy is not parameter), parameter)

    @property
    def complete(self) -> bool:
        return all(part.complete for part in self.parts)

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

    def round_trained(self) -> None:
        for part in self.parts:
            part.round_trained()

    def after_step(self, step: int, total: int) -> None:
        for part in self.parts:
            part.after_step(step, total)

    def penalty(self) -> Tensor | None:
        terms = [term for part in self.parts if (term := part.penalty()) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def drift(self) -> Tensor:
        drifts = []
        for part in self.parts:
            try:
                drifts.append(part.drift())
            except TechniqueError:
                continue  # a part that moves no weight
        return sum(drifts[1:], drifts[0]) if drifts else super().drift()

    def moved(self) -> float | None:
        distances = [distance for part in self.parts if (distance := part.moved()) is not None]
        return math.hypot(*distances) if distances else None

    @property
    def swappable(self) -> bool:
        return all(part.swappable for part in self.parts)

    def changed(self) -> list[nn.Parameter]:
        return [parameter for part in self.parts for parameter in part.changed()]

    def render(self, example: Example) -> Example:
        for part in self.parts:
            example = part.render(example)
        return example

    def citations(self, example: Example) -> list[CitedText]:
        return [each for part in self.parts for each in part.citations(example)]

    def label_bias(self) -> Tensor | None:
        return next((bias for part in self.parts if (bias := part.label_bias()) is not None), None)

    def findings(self, validation_loss: Callable[[], float]) -> Findings:
        return {name: value for part in self.parts for name, value in part.findings(validation_loss).items()}

    def trunk(self) -> Sequence[int]:
        trained = [part for part in self.parts if not part.recipe.sides <= {"prompt"}]
        return trained[0].trunk() if len(trained) == 1 else ()

    def changed_entries(self) -> dict[str, Tensor | None]:
        return {name: places for part in self.parts for name, places in part.changed_entries().items()}

    def replaced_weights(self) -> dict[str, Tensor]:
        return {name: weight for part in self.parts for name, weight in part.replaced_weights().items()}

    def state(self) -> dict[str, Tensor]:
        return self._join(lambda part: part.state())

    def load(self, state: Mapping[str, Tensor]) -> None:
        parts = list(self._split(state))
        unclaimed = len(state) - sum(len(part_state) for _, part_state in parts)
        if unclaimed:
            raise ArtifactError(f"the weights hold {unclaimed} tensors of no part of {self.recipe.name}")
        for part, part_state in parts:
            part.load(part_state)

    def stored_rows(self) -> list[StoredRow]:
        return [{"part": part.recipe.name, **row} for part in self.parts for row in part.stored_rows()]

    def load_rows(self, rows: list[StoredRow], style: Task) -> None:
        for part in self.parts:
            part_rows = [row for row in rows if row.get("part") == part.recipe.name]
            part.load_rows([{key: value for key, value in row.items() if key != "part"} for row in part_rows], style)

    def training_state(self) -> dict[str, Tensor]:
        return self._join(lambda part: part.training_state())

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        strict(self.training_state(), state)
        for part, part_state in self._split(state):
            part.load_training_state(part_state)

    def fold(self) -> None:
        for part in self.parts:
            part.merge()

    def detach(self) -> None:
        while self.parts:
            self.parts.pop().detach()
        super().detach()
