"""The changed entries of the base's weights and nothing else, exactly: their positions and their new values.

    weight.view(-1)[index] = value

sparse.safetensors holds `<name>.index` (flat positions, ascending) and `<name>.value`; sparse.json names the base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.core.errors import TechniqueError
from tunewise.export.format import ExportOptions, Format, Written, not_in_weights
from tunewise.export.readers import CausalReader, Reader
from tunewise.export.weight_changes import find_weight_changes

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base

# Share of the model's entries above which the list is larger than a copy of the model, since a position takes as much
# space as a value.
_LARGEST_SHARE = 1 / 3


class SparseFormat(Format):
    """Writes the changed entries."""

    name = "sparse"
    summary = "the changed entries alone, with their places"
    on_base = True

    def why_not(self, attachment: Attachment) -> str | None:
        """Refuse what does not merge, and what was trained on other weights than the base's."""
        if attachment.replaced_weights():
            return "it was trained on a base in fewer bits, so every entry differs from the base's"
        return not_in_weights(attachment)

    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Find the entries that differ, and store them.

        Raises:
            TechniqueError: more than a third of the entries differ, or there are tensors that the base does not have.
        """
        from safetensors.torch import save_file

        base, name = loaded.attachment.base, loaded.attachment.recipe.name
        changes = find_weight_changes(loaded.attachment, {})
        if changes.added:
            raise TechniqueError(
                f"{name} cannot be exported to sparse: it adds {next(iter(changes.added))}, which the base does not "
                "have; use merged"
            )
        tensors: dict[str, Tensor] = {}
        for path, after in changes.after.items():
            index = (after != changes.before[path]).flatten().nonzero()[:, 0]  # (changed entries,)
            index_dtype = torch.int32 if after.numel() < 2**31 else torch.int64
            tensors[f"{path}.index"] = index.to(index_dtype)
            tensors[f"{path}.value"] = after.flatten()[index].to(options.dtype)
        count = sum(len(tensor) for key, tensor in tensors.items() if key.endswith(".index"))
        if count > _LARGEST_SHARE * base.parameters:
            raise TechniqueError(
                f"{name} cannot be exported to sparse: it changes {count:,} of {base.parameters:,} entries, and a "
                "whole model is smaller than their list; use merged"
            )
        save_file(tensors, str(folder / "sparse.safetensors"), metadata={"format": "pt"})
        facts = {"entries": count, "base": base.describe(), "technique": name}
        (folder / "sparse.json").write_text(json.dumps({"format": 1, **facts}, indent=2) + "\n", "utf-8")
        return Written((f"{count:,} of {base.parameters:,} entries are stored.",), {"entries": count})

    def read(self, folder: Path, base: Base) -> Reader:
        """Put the entries into the base."""
        return _SparseReader(folder, base)


class _SparseReader(CausalReader):
    """Reads with the base, whose entries are the export's until it is closed."""

    def __init__(self, folder: Path, base: Base) -> None:
        from safetensors.torch import load_file

        super().__init__(base)
        tensors = load_file(folder / "sparse.safetensors")
        self.originals: dict[str, tuple[Tensor, Tensor]] = {}  # positions and values of the base's own entries
        for key in [key for key in tensors if key.endswith(".index")]:
            name = key.removesuffix(".index")
            flat = base.model.get_parameter(name).data.view(-1)
            index = tensors[key].long().to(flat.device)
            self.originals[name] = index, flat[index].clone()
            flat[index] = tensors[f"{name}.value"].to(flat.device, flat.dtype)

    def close(self) -> None:
        for name, (index, values) in self.originals.items():
            self.model.get_parameter(name).data.view(-1)[index] = values


FORMAT = SparseFormat()
