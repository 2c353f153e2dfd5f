"""Many adaptations on one loaded base, of which it wears one at a time.

An attachment puts hooks, attributes and modules into the base's modules, and may change values of the base's own
parameters. Each adaptation is attached and loaded once, on the bare base; what its modules then hold is kept and taken
off again. Wearing it puts the very same objects back, so its outputs are those of the adaptation alone, whatever the
technique is. Parameters whose values it changes exist twice, and their storages are exchanged: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewise.techniques.peft_bridge import shallow

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.engine.model import Base


@dataclass
class Outfit:
    """An adaptation with what the base holds while it wears it.

    `holds` are the attributes of changed modules; `tensors` the base's parameters that have other values here, each
    with its tensor here and its tensor in the bare base.
    """

    adaptation: Adaptation
    holds: list[tuple[Any, dict[str, Any]]]
    tensors: list[tuple[nn.Parameter, Tensor, Tensor]]
    max_length: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of the base's parameters that exist a second time for it."""
        return sum(own.nbytes for _, own, _ in self.tensors)


class Wardrobe:
    """The adaptations of one base; `wear` puts one on."""

    def __init__(self, base: Base) -> None:
        base.freeze_fingerprint()
        self.base, self.outfits = base, dict[str, Outfit]()
        places = [*base.model.modules(), base.model.config]
        self._bare = {id(place): (place, shallow(vars(place))) for place in places}
        self._parameters = list(base.model.parameters())
        self._worn: Outfit | None = None
        self.switches = 0

    def add(self, name: str, load: Callable[[Base], Adaptation]) -> Outfit:
        """Load an adaptation and keep it under a name; what `load` raises leaves the base bare.

        One that changes the base's parameters is loaded twice: first to find which, then on copies of these alone.
        """
        self.bare()
        length = self.base.max_length
        try:
            stamps = [_stamp(parameter) for parameter in self._parameters]
            found = load(self.base)
            declared = set(map(id, found.attachment.changed()))
            wrote = [_stamp(p) != stamp or id(p) in declared for p, stamp in zip(self._parameters, stamps, strict=True)]
            changed = [p for p, own in zip(self._parameters, wrote, strict=True) if own]
            wanted = found.record["base"]["max_length"] if "base" in found.record else length
            before = [parameter.data for parameter in changed]
            if changed or wanted != length:
                self.base.release()
                before = [parameter.data for parameter in changed]
                for parameter in changed:
                    parameter.data = parameter.data.clone()
                self.base.max_length = wanted
                found = load(self.base)
            tensors = [(p, p.data, bare) for p, bare in zip(changed, before, strict=True)]
            self._worn = outfit = Outfit(found, self._differing(), tensors, wanted)
            for parameter in self.base.model.parameters():
                parameter.requires_grad_(False)
        except BaseException:
            self.base.release()
            raise
        finally:
            self.base.max_length = length
        self.outfits[name] = outfit
        self.bare()
        return outfit

    def wear(self, name: str) -> Outfit:
        """Put an adaptation on, after taking off the one that is worn."""
        outfit = self.outfits[name]
        if self._worn is not outfit:
            self.bare()
            for place, held in outfit.holds:
                _put(place, held)
            for parameter, own, _ in outfit.tensors:
                parameter.data = own
            self.base.attached[:] = [outfit.adaptation.attachment]
            self._worn, self.switches = outfit, self.switches + 1
        return outfit

    def bare(self) -> None:
        """Take off what is worn."""
        if self._worn is None:
            return
        worn, self._worn = self._worn, None
        for place, held in worn.holds:
            held.clear()
            held.update(vars(place))
            if id(place) in self._bare:
                _put(place, shallow(self._bare[id(place)][1]))
        for parameter, _, bare in worn.tensors:
            parameter.data = bare
        self.base.attached.clear()

    def _differing(self) -> list[tuple[Any, dict[str, Any]]]:
        """Modules of the bare base that hold something else now, with what they hold."""
        return [(place, dict(vars(place))) for place, held in self._bare.values() if not _same(vars(place), held)]


def _put(place: Any, held: dict[str, Any]) -> None:
    vars(place).clear()
    vars(place).update(held)


def _same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return now.keys() == before.keys() and all(_alike(now[key], before[key]) for key in now)


def _alike(now: Any, before: Any) -> bool:
    if isinstance(now, dict) and isinstance(before, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in now)
    return now is before


def _stamp(parameter: Tensor) -> tuple[int, int, int]:
    """Changes when a parameter is written to, or gets another storage."""
    return parameter.data_ptr(), parameter.numel(), parameter._version
