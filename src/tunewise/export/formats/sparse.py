"""The changed entries of the base's weights and nothing else, exactly: their places and their new values.

    weight.view(-1)[index] = value

sparse.safetensors holds `<name>.index` (flat places, rising) and `<name>.value`; sparse.json says which base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.core.errors import TechniqueError
from tunewise.export.format import Asked, Format, Written, not_in_weights
from tunewise.export.readers import Causal, Reader
from tunewise.export.weight_changes import changes

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base

_MOST = 1 / 3  # share of the model from which on a whole copy is smaller: a place takes as much as a value


class Sparse(Format):
    """Changed entries."""

    name = "sparse"
    summary = "the changed entries alone, with their places"
    on_base = True

    def why_not(self, attachment: Attachment) -> str | None:
        """Whatever does not merge, or stands on other weights than the base's."""
        if attachment.replaced_weights():
            return "it stands on a base in fewer bits, so that every entry differs from the base's"
        return not_in_weights(attachment)

    def write(self, loaded: Adaptation, folder: Path, asked: Asked) -> Written:
        """Find what differs, and store that.

        Raises:
            TechniqueError: more than a third of the entries differ, or there are tensors that the base does not have.
        """
        from safetensors.torch import save_file

        base, name = loaded.attachment.base, loaded.attachment.recipe.name
        found = changes(loaded.attachment, {})
        if found.added:
            raise TechniqueError(
                f"{name} cannot be exported to sparse: it adds {next(iter(found.added))}, which the base does not "
                "have; use merged"
            )
        tensors: dict[str, Tensor] = {}
        for path, after in found.after.items():
            places = (after != found.before[path]).flatten().nonzero()[:, 0]
            kind = torch.int32 if after.numel() < 2**31 else torch.int64
            tensors[f"{path}.index"] = places.to(kind)
            tensors[f"{path}.value"] = after.flatten()[places].to(asked.dtype)
        count = sum(len(own) for key, own in tensors.items() if key.endswith(".index"))
        if count > _MOST * base.parameters:
            raise TechniqueError(
                f"{name} cannot be exported to sparse: it changes {count:,} of {base.parameters:,} entries, and a "
                "whole model is smaller than their list; use merged"
            )
        save_file(tensors, str(folder / "sparse.safetensors"), metadata={"format": "pt"})
        facts = {"entries": count, "base": base.describe(), "technique": name}
        (folder / "sparse.json").write_text(json.dumps({"format": 1, **facts}, indent=2) + "\n", "utf-8")
        return Written((f"{count:,} of {base.parameters:,} entries are stored.",), {"entries": count})

    def read(self, folder: Path, base: Base) -> Reader:
        """The base with the entries in place."""
        return _Filled(folder, base)


class _Filled(Causal):
    def __init__(self, folder: Path, base: Base) -> None:
        from safetensors.torch import load_file

        super().__init__(base.model, base.device)
        tensors = load_file(folder / "sparse.safetensors")
        self.before: dict[str, tuple[Tensor, Tensor]] = {}
        for key in [key for key in tensors if key.endswith(".index")]:
            name = key.removesuffix(".index")
            flat = base.model.get_parameter(name).data.view(-1)
            places = tensors[key].long().to(flat.device)
            self.before[name] = places, flat[places].clone()
            flat[places] = tensors[f"{name}.value"].to(flat.device, flat.dtype)

    def close(self) -> None:
        for name, (places, values) in self.before.items():
            self.model.get_parameter(name).data.view(-1)[places] = values


FORMAT = Sparse()
