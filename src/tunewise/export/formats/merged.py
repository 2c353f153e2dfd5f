"""A plain Hugging Face folder: the base with the change folded into its weights, tokenizer and chat template beside.

The sum of weight and change is computed in float32 or more and rounded once to the asked type. A quantised base is
dequantised first. Where only one of two tied tensors was changed, they are written as two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.export.format import Asked, Format, Written, not_in_weights
from tunewise.export.readers import Causal, Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base


class Merged(Format):
    """A Hugging Face folder."""

    name = "merged"
    summary = "a Hugging Face model folder, for transformers, vLLM and whatever reads those"

    def why_not(self, attachment: Attachment) -> str | None:
        """Whatever does not merge."""
        return not_in_weights(attachment)

    def write(self, loaded: Adaptation, folder: Path, asked: Asked) -> Written:
        """Merge and save."""
        save(loaded.attachment.merge(), loaded.attachment.base, folder, asked)
        return Written()

    def read(self, folder: Path, base: Base) -> Reader:
        """Through transformers."""
        return Causal.from_folder(folder, base)


def save(merged: nn.Module, base: Base, folder: Path, asked: Asked) -> None:
    """Write the model, its generation settings and its tokenizer."""
    cast: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    state = {}
    for name, tensor in merged.state_dict().items():
        own = tensor.to(asked.dtype) if tensor.is_floating_point() else tensor
        state[name] = cast.setdefault((tensor.data_ptr(), tuple(tensor.shape)), own)  # tied ones stay one tensor
    base.model.save_pretrained(folder, state_dict=state)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config.pop("torch_dtype", None)
    path.write_text(json.dumps({**config, "dtype": str(asked.dtype).removeprefix("torch.")}, indent=2) + "\n", "utf-8")
    base.tokenizer.save_pretrained(folder)


FORMAT = Merged()
