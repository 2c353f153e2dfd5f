"""One GGUF file, for llama.cpp and what is built on it: weights, hyper-parameters and tokenizer.

Names of tensors are those of the `gguf` package. Architectures whose rotary pairs llama.cpp expects interleaved have
the rows of queries and keys reordered; weights that are stored (in, out) are transposed. What the file cannot express,
such as scaled rotary positions or a sliding window, is refused. It is read back by the reader of transformers, or by
that of the `gguf` package where transformers reads no files of such models.

With `q8_0`, matrices are stored as blocks of 32 integers of eight bits with a scale each, as llama.cpp does it; norms,
biases and position embeddings stay in float32, and matrices whose rows are no multiple of 32 are stored in float16.
"""

from __future__ import annotations

import copy
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewise.core.errors import TechniqueError
from tunewise.core.extras import require
from tunewise.engine.model import Base
from tunewise.export.format import ExportOptions, Format, Written, not_in_weights
from tunewise.export.formats._gguf_models import (
    FAMILIES,
    LOCAL_THETA,
    add_settings,
    from_file,
    is_stored_transposed,
    model_problem,
    to_file,
)
from tunewise.export.formats._gguf_tokens import add_tokens, vocabulary
from tunewise.export.readers import CausalReader, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment

FILE = "model.gguf"
_POSITION_EMBEDDINGS = "wpe.weight"  # GPT-2's; the other models' positions are rotary
_BLOCK = 32  # weights that share a scale
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_OVERLOOKED = {  # settings that the reader of transformers leaves at their defaults, and the keys of a file for them
    "gpt2": {"n_positions": "context_length"},
    "qwen3": {"head_dim": "attention.key_length"},
    "gemma2": {"query_pre_attn_scalar": "attention.key_length"},
    "gemma3": {"query_pre_attn_scalar": "attention.key_length"},
}


class GgufFormat(Format):
    """Writes a GGUF file."""

    name = "gguf"
    summary = "one GGUF file, for llama.cpp and programs built on it"
    quantised = ("q8_0",)

    def why_not(self, attachment: Attachment) -> str | None:
        """Refuse what does not merge, and models that the file cannot describe."""
        if reason := not_in_weights(attachment):
            return reason
        base = attachment.base
        return model_problem(base.model.config) or vocabulary(base).problem

    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Merge, and write the merged model."""
        require("the format gguf", "gguf")
        base = loaded.attachment.base
        model: Any = loaded.attachment.merge()
        if problem := model_problem(model.config):  # merging can add what the base does not have
            raise TechniqueError(
                f"{loaded.attachment.recipe.name} cannot be exported to gguf: {problem}; use merged, or another format"
            )
        write_file(self, model, base, folder / FILE, options)
        if FAMILIES[model.config.model_type].by_transformers:
            return Written()
        return Written(
            (
                f"transformers reads no GGUF files of {model.config.model_type} models: the tensors of the file were "
                "read back by the gguf package, and not its tokenizer.",
            )
        )

    def stored_dtype(self, name: str, tensor: Tensor, options: ExportOptions) -> torch.dtype:
        """Keep norms, biases and position embeddings in float32, as llama.cpp's own converter does."""
        in_float32 = tensor.dim() == 1 or name.endswith(_POSITION_EMBEDDINGS)
        # Everything else that is no half-precision type is written in float32.
        half = options.dtype in (torch.float16, torch.bfloat16)
        return options.dtype if half and not in_float32 else torch.float32

    def kind_of(self, name: str, values: Tensor, options: ExportOptions) -> str:
        """Return GGUF's name of the type of a tensor, whose `values` are as they stand in the file."""
        in_blocks = values.dim() == 2 and values.shape[-1] % _BLOCK == 0 and not name.endswith(_POSITION_EMBEDDINGS)
        if options.quantised and in_blocks:
            return options.quantised.upper()
        return _TYPES[self.stored_dtype(name, values, options)]

    def as_stored(self, base: Base, name: str, options: ExportOptions) -> Tensor:
        """Round as the file does: blocks lie along the rows of the file, which are a transposed weight's columns."""
        if not options.quantised:
            return super().as_stored(base, name, options)
        import gguf

        tensor, transposed = base.model.get_parameter(name).detach(), is_stored_transposed(base, name)
        values = (tensor.T if transposed else tensor).cpu().float().contiguous()
        kind = gguf.GGMLQuantizationType[self.kind_of(name, values, options)]
        stored = gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), kind), kind)
        rounded = torch.from_numpy(stored.copy()).view(values.shape)
        return (rounded.T if transposed else rounded).to(tensor)

    def read(self, folder: Path, base: Base) -> Reader:
        """Read with transformers, and pass on what the file holds and its reader does not take from there."""
        from gguf import GGUFReader

        file: Any = GGUFReader(folder / FILE)
        if not FAMILIES[base.model.config.model_type].by_transformers:
            return _tensors_read(file, base)
        architecture = str(file.get_field("general.architecture").contents())
        overlooked: dict[str, Any] = {
            setting: file.get_field(f"{architecture}.{key}").contents()
            for setting, key in _OVERLOOKED.get(architecture, {}).items()
        }
        if architecture == "gemma3":
            full = {"rope_type": "default", "rope_theta": float(file.get_field("gemma3.rope.freq_base").contents())}
            window = {"rope_type": "default", "rope_theta": LOCAL_THETA}
            overlooked["rope_parameters"] = {"full_attention": full, "sliding_attention": window}
        if architecture == "phi3":
            overlooked["pad_token_id"] = base.model.config.pad_token_id  # else an id that a small vocabulary lacks
        with redirect_stderr(StringIO()):  # it shows a progress bar of its own
            return CausalReader.from_folder(folder, base, {"gguf_file": FILE, **overlooked}, {"gguf_file": FILE})


def write_file(chosen: GgufFormat, model: PreTrainedModel, base: Base, path: Path, options: ExportOptions) -> None:
    """Write a merged model to a GGUF file, in the types that the format has for its tensors.

    Raises:
        TechniqueError: a tensor has no name in GGUF.
    """
    import gguf

    config = model.config
    family = FAMILIES[config.model_type]
    writer = gguf.GGUFWriter(path, family.name)
    add_settings(writer, base, config, options)
    add_tokens(writer, base)
    names = _names(base)
    for name, parameter in model.named_parameters():  # without a tied head: readers use the embeddings
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise TechniqueError(f"the model cannot be exported to gguf: there is no name for {name}; use merged")
        values = to_file(base, name, parameter.detach().cpu().float())
        kind = gguf.GGMLQuantizationType[chosen.kind_of(name, values, options)]
        writer.add_tensor(gguf_name, gguf.quants.quantize(values.contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _names(base: Base) -> Any:
    """Return the `gguf` package's table from a model's names of tensors to those of the file."""
    import gguf

    family = FAMILIES[base.model.config.model_type]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    return gguf.get_tensor_name_map(arch, len(base.anatomy.blocks))


def _tensors_read(file: Any, base: Base) -> Reader:
    """Read the tensors of a file into a model of the base's configuration, without its tokenizer."""
    import gguf
    from transformers import AutoModelForCausalLM

    stored, names = {str(tensor.name): tensor for tensor in file.tensors}, _names(base)
    config = copy.deepcopy(base.model.config)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=base.model.dtype, trust_remote_code=False)
    read = Base(model.to(base.device).eval(), base.tokenizer, base.name)
    for name, parameter in model.named_parameters():
        tensor = stored[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        parameter.data.copy_(from_file(read, name, values))
    return CausalReader(read)


FORMAT = GgufFormat()
