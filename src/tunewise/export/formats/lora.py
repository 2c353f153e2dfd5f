"""Any change of linears' weights as a LoRA, by a singular value decomposition of what was added to each.

    W' - W = U S V,   B = U_r sqrt(S_r),   A = sqrt(S_r) V_r,   error^2 = sum_{i>r} s_i^2 / sum_i s_i^2

All weights have one rank, the smallest at which no weight's error is above the one allowed. Changes of anything but
linears' weights (norms, biases, embeddings) have no place in a plain LoRA, and are refused rather than dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.core.errors import TechniqueError
from tunewise.engine.anatomy import is_transposed
from tunewise.export.format import ExportOptions, Format, Written, not_in_weights
from tunewise.export.formats.peft import write_adapter
from tunewise.export.readers import Reader, adapter_reader
from tunewise.export.weight_changes import find_weight_changes
from tunewise.techniques.building.peft_lora import Factors, portable

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base

# An error of a weight's change shows in the logits as at most so many times its share of what training moved.
_AMPLIFICATION = 4.0


class LoraFormat(Format):
    """Writes a plain LoRA."""

    name = "lora"
    summary = "a plain LoRA of PEFT's, approximating any change of linears' weights"
    on_base = True

    def why_not(self, attachment: Attachment) -> str | None:
        """Refuse what is not a change of weights, and what changes no linear's weight."""
        if reason := not_in_weights(attachment):
            return reason
        if not attachment.recipe.sides and not getattr(attachment, "parts", ()):
            return "it changes nothing"
        parts = getattr(attachment, "parts", ())
        sides = attachment.recipe.sides | {side for part in parts for side in part.recipe.sides}
        return None if "weights" in sides else f"it changes the {' and '.join(sorted(sides))} and no linear's weight"

    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Decompose what was added to each weight, and write the factors as an adapter.

        Raises:
            TechniqueError: something else than linears' weights was changed, or nothing was.
        """
        attachment = loaded.attachment
        base, name = attachment.base, attachment.recipe.name
        replaced_weights = {key: tensor.clone() for key, tensor in attachment.replaced_weights().items()}
        changes = find_weight_changes(attachment, replaced_weights)
        linears = {f"{path}.weight": (path, module) for path, _, module in base.anatomy.linears()}
        others = sorted({*changes.after, *changes.added} - set(linears))
        if others:
            raise TechniqueError(
                f"{name} cannot be exported to lora: it changes {len(others)} tensors that are not a linear's weight "
                f"({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}), which a LoRA cannot hold; use merged"
            )
        if not changes.after:
            raise TechniqueError(f"{name} cannot be exported to lora: it changes no weight")
        decompositions = {}  # (U, S, V) of each linear's change by path
        for key, after in changes.after.items():
            path, module = linears[key]
            delta = after.double() - changes.before[key].double()
            delta = delta.T if is_transposed(module) else delta  # (out, in)
            decompositions[path] = torch.linalg.svd(delta, full_matrices=False)
        rank = options.rank or max(_smallest_rank(s, options.error) for _, s, _ in decompositions.values())
        worst = max(_truncation_error(s, rank) for _, s, _ in decompositions.values())
        updates, modules = {}, {}
        for path, (u, s, v) in decompositions.items():  # (out, k), (k,), (k, in) with k = min(out, in)
            root = s[:rank].sqrt()
            updates[path] = Factors((root[:, None] * v[:rank]).float(), (u[:, :rank] * root).float(), 1.0)
            modules[path] = base.model.get_submodule(path)
        write_adapter(*portable(updates, base, modules), folder, options)
        note = f"rank {rank}: the largest relative error of a weight's change is {worst:.2g}."
        return Written((note,), {"rank": rank, "error": worst}, _AMPLIFICATION * worst)

    def read(self, folder: Path, base: Base) -> Reader:
        """Read with PEFT, on the base."""
        return adapter_reader(folder, base)


def _truncation_error(s: Tensor, rank: int) -> float:
    """Return the relative Frobenius error of keeping the first `rank` of the singular values `s`."""
    return float((s[rank:].square().sum() / s.square().sum().clamp(min=1e-300)).sqrt())


def _smallest_rank(s: Tensor, error: float) -> int:
    """Return the smallest rank whose truncation error is at most `error`."""
    return next(rank for rank in range(1, len(s) + 1) if _truncation_error(s, rank) <= error or rank == len(s))


FORMAT = LoraFormat()
