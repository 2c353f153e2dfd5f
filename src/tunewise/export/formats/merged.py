"""A plain Hugging Face folder: the base with the change folded into its weights, with tokenizer and chat template.

The sum of weight and change is computed in float32 or more and rounded once to the type of the export. A quantised base
is dequantised first. Where only one of two tied tensors was changed, they are written as two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.export.format import ExportOptions, Format, Written, not_in_weights
from tunewise.export.readers import CausalReader, Reader
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base


class MergedFormat(Format):
    """Writes a Hugging Face model folder."""

    name = "merged"
    summary = "a Hugging Face model folder, for transformers, vLLM and whatever reads those"

    def why_not(self, attachment: Attachment) -> str | None:
        """Refuse what does not merge."""
        return not_in_weights(attachment)

    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Merge, and save the merged model."""
        save(loaded.attachment.merge(), loaded.attachment.base, folder, options)
        return Written(write_ends(loaded, folder))

    def read(self, folder: Path, base: Base) -> Reader:
        """Read with transformers."""
        return CausalReader.from_folder(folder, base)


def save(merged: nn.Module, base: Base, folder: Path, options: ExportOptions) -> None:
    """Write the model, its generation settings and its tokenizer."""
    cast_tensors: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    state = {}
    for name, tensor in merged.state_dict().items():
        cast = tensor.to(options.dtype) if tensor.is_floating_point() else tensor
        # Tied tensors share storage and stay one tensor.
        state[name] = cast_tensors.setdefault((tensor.data_ptr(), tuple(tensor.shape)), cast)
    base.model.save_pretrained(folder, state_dict=state)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(options.dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    base.tokenizer.save_pretrained(folder)


def write_ends(loaded: Adaptation, folder: Path) -> tuple[str, ...]:
    """Make generation by others stop where answers were taught to end; return what a user must know of prompts.

    Other programs stop at the tokens of `generation_config.json`, which some bases lack the end of a turn in.
    """
    from transformers import GenerationConfig

    encoder = encoder_for(loaded.attachment, loaded.style)
    ends = sorted(encoder.ends.stops)
    own = getattr(loaded.attachment.base.model, "generation_config", None)
    config = GenerationConfig.from_dict(own.to_dict()) if own is not None else GenerationConfig()
    config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    config.save_pretrained(folder)
    if not encoder.opening:
        return ()
    return (
        f"Prompts were trained with {encoder.opening!r} after what the chat template writes before an answer; write it "
        "there too (for Qwen3: enable_thinking=False).",
    )


FORMAT = MergedFormat()
