"""What an adaptation changes of the base's weights, found by merging it: for techniques of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from tunewise.contract.attachment import Attachment


@dataclass(frozen=True)
class WeightChanges:
    """Weights before and after, by full name, of those that differ in any bit; `added` are not in the base at all."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    added: dict[str, Tensor]


def find_weight_changes(attachment: Attachment, replaced_weights: Mapping[str, Tensor]) -> WeightChanges:
    """Merge an attachment and compare the weights with the base's; the base is left bare.

    Args:
        attachment: the trained attachment.
        replaced_weights: weights, by full name, that take the place of the base's in the comparison (those of a base
            in fewer bits).
    """
    base = attachment.base
    merged = {name: tensor.detach().cpu().clone() for name, tensor in attachment.merge().named_parameters()}
    base.release()
    bare = {name: tensor.detach().cpu() for name, tensor in base.model.named_parameters()}
    bare |= {name: tensor.detach().cpu() for name, tensor in replaced_weights.items()}
    after = {name: tensor for name, tensor in merged.items() if name in bare and not tensor.equal(bare[name])}
    before = {name: bare[name].clone() for name in after}
    return WeightChanges(before, after, {name: tensor for name, tensor in merged.items() if name not in bare})
