"""Any change of linears' weights as a LoRA, by a singular value decomposition of what was added to each.

    W' - W = U S V,   B = U_r sqrt(S_r),   A = sqrt(S_r) V_r,   error^2 = sum_{i>r} s_i^2 / sum_i s_i^2

One rank for all, the smallest that keeps every weight's error below the one asked for. What is changed besides linears'
weights (norms, biases, embeddings) has no place in a plain LoRA, and is refused rather than dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunewise.core.errors import TechniqueError
from tunewise.engine.anatomy import is_transposed
from tunewise.export.format import Asked, Format, Written, not_in_weights
from tunewise.export.formats.peft import write_adapter
from tunewise.export.readers import Adapted, Reader
from tunewise.export.weight_changes import changes
from tunewise.techniques.building.peft_lora import Factors, portable

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base

_AMPLIFIED = 4.0  # an error of a weight's change shows in the logits as at most so many times its share of the effect


class Lora(Format):
    """A plain LoRA."""

    name = "lora"
    summary = "a plain LoRA of PEFT's, approximating any change of linears' weights"
    on_base = True

    def why_not(self, attachment: Attachment) -> str | None:
        """What is no change of weights, or changes other sides of the model too."""
        if reason := not_in_weights(attachment):
            return reason
        if not attachment.recipe.sides and not getattr(attachment, "parts", ()):
            return "it changes nothing"
        sides = attachment.recipe.sides | {side for p in getattr(attachment, "parts", ()) for side in p.recipe.sides}
        return None if "weights" in sides else f"it changes the {' and '.join(sorted(sides))} and no linear's weight"

    def write(self, loaded: Adaptation, folder: Path, asked: Asked) -> Written:
        """Decompose what was added to each weight.

        Raises:
            TechniqueError: something else than linears' weights was changed, or nothing.
        """
        attachment = loaded.attachment
        base, name = attachment.base, attachment.recipe.name
        ground = {key: tensor.clone() for key, tensor in attachment.replaced_weights().items()}
        found = changes(attachment, ground)
        linears = {f"{path}.weight": (path, module) for path, _, module in base.anatomy.linears()}
        others = sorted({*found.after, *found.added} - set(linears))
        if others:
            raise TechniqueError(
                f"{name} cannot be exported to lora: it changes {len(others)} tensors that are no linear's weight "
                f"({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}), which a LoRA cannot hold; use merged"
            )
        if not found.after:
            raise TechniqueError(f"{name} cannot be exported to lora: it changes no weight")
        parts = {}
        for key, after in found.after.items():
            path, module = linears[key]
            delta = after.double() - found.before[key].double()
            parts[path] = torch.linalg.svd(delta.T if is_transposed(module) else delta, full_matrices=False)
        rank = asked.rank or max(_rank(s, asked.error) for _, s, _ in parts.values())
        worst = max(_lost(s, rank) for _, s, _ in parts.values())
        updates, modules = {}, {}
        for path, (u, s, v) in parts.items():
            root = s[:rank].sqrt()
            updates[path] = Factors((root[:, None] * v[:rank]).float(), (u[:, :rank] * root).float(), 1.0)
            modules[path] = base.model.get_submodule(path)
        write_adapter(*portable(updates, base, modules), folder, asked)
        note = f"rank {rank}: the largest relative error of a weight's change is {worst:.2g}."
        return Written((note,), {"rank": rank, "error": worst}, _AMPLIFIED * worst)

    def read(self, folder: Path, base: Base) -> Reader:
        """Through PEFT, on the base."""
        return Adapted(folder, base)


def _lost(s: torch.Tensor, rank: int) -> float:
    """Relative Frobenius error of the first `rank` singular values."""
    return float((s[rank:].square().sum() / s.square().sum().clamp(min=1e-300)).sqrt())


def _rank(s: torch.Tensor, error: float) -> int:
    """The smallest rank with no larger error."""
    return next(rank for rank in range(1, len(s) + 1) if _lost(s, rank) <= error or rank == len(s))


FORMAT = Lora()
