"""Many adaptations on one loaded base, of which one at a time is active.

An attachment puts hooks, attributes and modules into the base's modules, and may change values of the base's own
parameters. Each adaptation is attached and loaded once, on the bare base; what its modules then hold is stored in a
slot and taken off the base again. Activating the slot puts the very same objects back, so that its outputs are those of
the adaptation alone, whatever the technique is. Parameters whose values it changes exist twice, and their storages are
exchanged: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tunewise.techniques.peft_bridge import shallow

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.engine.model import Base

Attributes: TypeAlias = dict[str, object]  # the `vars()` of a module, or of the model's configuration


@dataclass
class Slot:
    """One adaptation of a pool, with what the base holds while it is active.

    `changed_modules` are the base's modules (or its configuration) whose attributes differ, each with its attributes
    here. `swapped_tensors` are the base's parameters whose values differ, each with its tensor here and its tensor in
    the bare base.
    """

    adaptation: Adaptation
    changed_modules: list[tuple[object, Attributes]]
    swapped_tensors: list[tuple[nn.Parameter, Tensor, Tensor]]
    max_length: int | None

    @property
    def nbytes(self) -> int:
        """Count the bytes of the base's parameters that exist a second time for this adaptation."""
        return sum(adapted.nbytes for _, adapted, _ in self.swapped_tensors)


class AdaptationPool:
    """The adaptations of one base; `activate` makes one of them the base's."""

    def __init__(self, base: Base) -> None:
        base.freeze_fingerprint()
        self.base, self.slots = base, dict[str, Slot]()
        modules = [*base.model.modules(), base.model.config]
        self._bare_attributes = {id(module): (module, shallow(vars(module))) for module in modules}
        self._parameters = list(base.model.parameters())
        self._active: Slot | None = None
        self.switches = 0

    def add(self, name: str, load: Callable[[Base], Adaptation]) -> Slot:
        """Load an adaptation and keep it under a name; if `load` raises, the base is left bare.

        An adaptation that changes the base's parameters is loaded twice: first to learn which it changes, then onto
        copies of these alone.
        """
        self.deactivate()
        pool_max_length = self.base.max_length
        try:
            stamps = [_version_stamp(parameter) for parameter in self._parameters]
            adaptation = load(self.base)
            declared = set(map(id, adaptation.attachment.changed()))
            changed = [
                parameter
                for parameter, stamp in zip(self._parameters, stamps, strict=True)
                if _version_stamp(parameter) != stamp or id(parameter) in declared
            ]
            record = adaptation.record
            max_length = record.base.max_length if record is not None else pool_max_length
            bare_tensors = [parameter.data for parameter in changed]
            if changed or max_length != pool_max_length:
                self.base.release()
                bare_tensors = [parameter.data for parameter in changed]
                for parameter in changed:
                    parameter.data = parameter.data.clone()
                self.base.max_length = max_length
                adaptation = load(self.base)
            swapped = [(parameter, parameter.data, bare) for parameter, bare in zip(changed, bare_tensors, strict=True)]
            self._active = slot = Slot(adaptation, self._changed_modules(), swapped, max_length)
            for parameter in self.base.model.parameters():
                parameter.requires_grad_(False)
        except BaseException:
            self.base.release()
            raise
        finally:
            self.base.max_length = pool_max_length
        self.slots[name] = slot
        self.deactivate()
        return slot

    def activate(self, name: str) -> Slot:
        """Put an adaptation onto the base, after taking off the one that is active."""
        slot = self.slots[name]
        if self._active is not slot:
            self.deactivate()
            for module, attributes in slot.changed_modules:
                _set_attributes(module, attributes)
            for parameter, adapted, _ in slot.swapped_tensors:
                parameter.data = adapted
            self.base.attached[:] = [slot.adaptation.attachment]
            self._active, self.switches = slot, self.switches + 1
        return slot

    def deactivate(self) -> None:
        """Take the active adaptation off the base, and remember what its modules hold by now."""
        if self._active is None:
            return
        slot, self._active = self._active, None
        for module, attributes in slot.changed_modules:
            attributes.clear()
            attributes.update(vars(module))
            if id(module) in self._bare_attributes:
                _set_attributes(module, shallow(self._bare_attributes[id(module)][1]))
        for parameter, _, bare in slot.swapped_tensors:
            parameter.data = bare
        self.base.attached.clear()

    def _changed_modules(self) -> list[tuple[object, Attributes]]:
        """Find the bare base's modules whose attributes differ now, each with its present attributes."""
        return [
            (module, dict(vars(module)))
            for module, bare in self._bare_attributes.values()
            if not _same_attributes(vars(module), bare)
        ]


def _set_attributes(module: object, attributes: Attributes) -> None:
    vars(module).clear()
    vars(module).update(attributes)


def _same_attributes(now: Attributes, before: Attributes) -> bool:
    return now.keys() == before.keys() and all(_same_objects(now[key], before[key]) for key in now)


def _same_objects(now: object, before: object) -> bool:
    """Tell whether two attributes are one object, or tables of the same objects in the same order."""
    if isinstance(now, dict) and isinstance(before, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in now)
    return now is before


def _version_stamp(parameter: Tensor) -> tuple[int, int, int]:
    """Return what changes when a parameter is written to in place, or gets another storage."""
    return parameter.data_ptr(), parameter.numel(), parameter._version
