"""What an adaptation changes of the base's weights, found by merging it: for techniques of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from tunewise.contract.attachment import Attachment


@dataclass(frozen=True)
class Changes:
    """Weights before and after, by full name, of those that differ in any bit; `added` are not in the base at all."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    added: dict[str, Tensor]


def changes(attachment: Attachment, ground: Mapping[str, Tensor]) -> Changes:
    """Merge, and say what differs from the base, or from `ground` where that takes its place. Leaves the base bare."""
    base = attachment.base
    merged = {name: tensor.detach().cpu().clone() for name, tensor in attachment.merge().named_parameters()}
    base.release()
    own = {name: tensor.detach().cpu() for name, tensor in base.model.named_parameters()}
    own |= {name: tensor.detach().cpu() for name, tensor in ground.items()}
    after = {name: tensor for name, tensor in merged.items() if name in own and not tensor.equal(own[name])}
    return Changes(
        {name: own[name].clone() for name in after}, after, {n: t for n, t in merged.items() if n not in own}
    )
