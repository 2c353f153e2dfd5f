"""Trains k entries of a model's tensors and nothing else: one compact vector per tensor, with its places.

    W_eff[index] = W[index] + value

The optimiser sees the values alone, so its state grows with k and not with the model. The entries are written into
the base's own tensors after each step; a tensor's dense gradient lives only until its entries are gathered.
Weight decay is off: it would pull entries, not the model, to zero. Techniques choose the places; see `largest`.

In shapes: k_t entries of a tensor t of n_t numbers, whatever its own shape; places count through it as if it were flat.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, ParamGroup, strict
from tunewise.core.errors import ArtifactError
from tunewise.engine.device import is_fake

if TYPE_CHECKING:
    from tunewise.contract.technique import Technique
    from tunewise.engine.model import Base

_VALUE, _INDEX = ".value", ".index"


def weights_of(base: Base, recipe: Technique, roles: tuple[str, ...], first_block: int = 0) -> dict[str, nn.Parameter]:
    """Return the blocks' linear weights, by full name, from block `first_block` on; all roles when none is named."""
    base.anatomy.require_roles(f"{recipe.name}.target_modules", roles)
    below = tuple(f"{base.anatomy.block_path(index)}." for index in range(first_block))
    return {
        f"{path}.weight": module.weight  # type: ignore[misc]
        for path, _, module in base.anatomy.linears(roles)
        if not path.startswith(below)
    }


def rate_of_full(base: Base) -> float:
    """Return the default learning rate of full fine-tuning on this base, for phases that train every entry."""
    from tunewise.techniques.full import Full

    return cast(float, Full().resolved(base).learning_rate)  # a resolved recipe that trains has one


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the flat places of exactly the `count` largest scores over all tensors; of equal ones the first.

    Scores are at least zero, and are never all copied, as there is one per weight. Fake tensors have no contents (see
    `tunewise.advice.plan.ledger`); there each tensor gets its share of places.
    """
    if all(is_fake(score) for score in scores.values()):
        share = count / sum(score.numel() for score in scores.values())
        return {name: torch.arange(max(1, round(share * score.numel()))) for name, score in scores.items()}
    least = _least(scores.values(), count)
    equal = count - sum(int(torch.count_nonzero(_bits(score) > least)) for score in scores.values())
    places = {}
    for name, score in scores.items():
        bits = _bits(score).flatten()  # (n_t,)
        selected, ties = bits > least, (bits == least).nonzero()[:equal, 0]
        selected[ties] = True
        equal -= len(ties)
        places[name] = selected.nonzero()[:, 0]  # (k_t,)
    return places


def _bits(score: Tensor) -> Tensor:
    """Return integers in the order of the scores: non-negative floats are ordered like their bits."""
    return score.view(torch.int64) if score.dtype == torch.float64 else score.float().view(torch.int32)


def _least(scores: Collection[Tensor], count: int) -> int:
    """Return the bits of the `count`-th largest score, by bisection."""
    low, high = 0, max(int(_bits(score).max()) for score in scores if score.numel()) + 1
    while high - low > 1:
        middle = (low + high) // 2
        reached = sum(torch.count_nonzero(_bits(score) >= middle) for score in scores)
        low, high = (middle, high) if reached >= count else (low, middle)
    return low


class Sparse(Attachment):
    """Trains chosen entries of `eligible` tensors, from the start or after an earlier phase."""

    def __init__(self, base: Base, recipe: Technique, eligible: dict[str, nn.Parameter]) -> None:
        super().__init__(base, recipe)
        self.eligible = eligible
        self.size = sum(parameter.numel() for parameter in eligible.values())
        self._places: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._begin = len(self._undo)

    def budget(self, density: float) -> int:
        """Return the number of entries in this share of all eligible ones, at least one."""
        return max(1, round(density * self.size))

    def rewind(self) -> None:
        """Undo everything that was done to the base, to begin another phase."""
        while len(self._undo) > self._begin:
            self._undo.pop()()
        self._params, self._places, self._before = {}, {}, {}

    def choose(self, places: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None) -> None:
        """Train these entries from now on, from `values` (fp32 differences from the base) or zero."""
        self.rewind()
        for name, place in places.items():
            if len(place):
                self._take(name, place, values[name] if values else self._zeros(name, len(place)))
        self._write()

    def _zeros(self, name: str, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.promote_types(self.eligible[name].dtype, torch.float32))

    def _take(self, name: str, place: Tensor, start: Tensor) -> None:
        parameter = self.eligible[name]
        value = self.add(name + _VALUE, start)
        self._places[name] = place.to(parameter.device)
        self._before[name] = parameter.detach().flatten()[self._places[name]].clone()  # (k_t,), as value

        def restore() -> None:
            parameter.requires_grad_(False)
            parameter.grad = None
            with torch.no_grad():
                parameter.view(-1)[self._places[name]] = self._before[name]

        self._undo.append(restore)
        self.divert(parameter, lambda g: [(value, g.flatten()[self._places[name]].to(value.dtype))])

    @torch.no_grad()
    def _write(self) -> None:
        """Bring the base's tensors up to date with the values."""
        for name, place in self._places.items():
            before, value = self._before[name], self._params[name + _VALUE]
            self.eligible[name].view(-1)[place] = (before.to(value.dtype) + value).to(before.dtype)  # (k_t,)

    # The contract.

    def param_groups(self) -> list[ParamGroup]:
        """Return one group without weight decay."""
        return [{**group, "weight_decay": 0.0} for group in super().param_groups()]

    def after_step(self, step: int, total: int) -> None:
        """Write the new values into the base's tensors."""
        self._write()

    def drift(self) -> Tensor:
        """Return the squared norm of the values, which are differences from the base."""
        if not self._places:  # an earlier phase trains the tensors themselves
            return super().drift()
        return torch.stack([value.square().sum() for value in self.params().values()]).sum()

    def changed_entries(self) -> dict[str, Tensor | None]:
        """Return the chosen places."""
        return {**self._places}

    def state(self) -> dict[str, Tensor]:
        """Return values and places, or the dense tensors of an earlier phase."""
        places = {name + _INDEX: place for name, place in self._places.items()}
        return {**super().state(), **places} if self._places else super().state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state()`, whatever the places here were before."""
        names = [key.removesuffix(_INDEX) for key in state if key.endswith(_INDEX)]
        if not names:
            super().load(state)
            return
        places, values = {}, {}
        for name in names:
            if name not in self.eligible or name + _VALUE not in state:
                raise ArtifactError(f'the entries of "{name}" do not fit this technique and base')
            place, value = state[name + _INDEX], state[name + _VALUE]
            strict({name: self._zeros(name, place.numel())}, {name: value})
            size = self.eligible[name].numel()
            ordered = place.dim() == 1 and place.dtype == torch.int64 and bool((place.diff() > 0).all())
            if not ordered or (place.numel() and not 0 <= int(place[0]) <= int(place[-1]) < size):
                raise ArtifactError(f'the places in "{name}" are not ascending integers below {size}')
            places[name], values[name] = place.to(self.base.device), value.to(self.base.device)
        extra = set(state) - {name + end for name in names for end in (_VALUE, _INDEX)}
        if extra:
            raise ArtifactError(f'the weights do not fit this technique and base: "{min(extra)}" is not expected')
        self.choose({name: places[name] for name in self.eligible if name in places}, values)  # in one order always

    def fold(self) -> None:
        """Freeze the tensors; they hold the differences already."""
        for parameter in self.eligible.values():
            parameter.requires_grad_(False)
