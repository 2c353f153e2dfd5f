"""One GGUF file, for llama.cpp and what is built on it: weights, hyper-parameters and tokenizer.

Names of tensors are those of the `gguf` package. Architectures whose rotary pairs llama.cpp expects interleaved have
the rows of queries and keys reordered; weights that are stored (in, out) are transposed. What the file cannot express,
such as scaled rotary positions or a sliding window, is refused. It is read back by the reader of transformers.

With `q8_0`, matrices are stored as blocks of 32 integers of eight bits with a scale each, as llama.cpp does it; norms,
biases and position embeddings stay in float32, and matrices whose rows are no multiple of 32 are stored in float16.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewise.core.errors import TechniqueError
from tunewise.core.extras import require
from tunewise.engine.anatomy import is_transposed
from tunewise.export.format import ExportOptions, Format, Written, not_in_weights
from tunewise.export.formats._gguf_tokens import add_tokens, vocabulary
from tunewise.export.readers import CausalReader, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base

FILE = "model.gguf"
_POSITION_EMBEDDINGS = "wpe.weight"  # GPT-2's; the other models' positions are rotary
_BLOCK = 32  # weights that share a scale
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class _Family:
    """How GGUF calls a kind of model, and the settings that a model must have because the file cannot express others.

    `interleaved` tells whether llama.cpp expects rotary pairs side by side; `required` are settings with the one value
    that llama.cpp implements. `norms_from_one` tells whether the model multiplies by 1 + w where llama.cpp multiplies
    by what the file holds. `full_every` is for models whose attention slides over a window but in one of so many
    layers, as llama.cpp knows by itself.
    """

    name: str
    activation: str
    interleaved: bool = False
    required: tuple[tuple[str, object], ...] = ()
    norms_from_one: bool = False
    full_every: int = 0


_LLAMA_SETTINGS = (("attention_bias", False), ("mlp_bias", False))
_GPT2_SETTINGS = (
    ("scale_attn_weights", True),
    ("scale_attn_by_inverse_layer_idx", False),
    ("add_cross_attention", False),
)
_GEMMA3_SETTINGS = (
    ("attention_bias", False),
    ("attn_logit_softcapping", None),
    ("final_logit_softcapping", None),
    ("use_bidirectional_attention", False),
)
_LOCAL_THETA = 10_000.0  # of Gemma 3's layers with a window, as llama.cpp has it
_OVERLOOKED = {  # settings that the reader of transformers leaves at their defaults, and the keys of a file for them
    "gpt2": {"n_positions": "context_length"},
    "qwen3": {"head_dim": "attention.key_length"},
    "gemma2": {"query_pre_attn_scalar": "attention.key_length"},
    "gemma3": {"query_pre_attn_scalar": "attention.key_length"},
}
_FAMILIES = {
    "llama": _Family("llama", "silu", True, _LLAMA_SETTINGS),
    "mistral": _Family("llama", "silu", True),
    "qwen2": _Family("qwen2", "silu"),
    "qwen3": _Family("qwen3", "silu", required=(("attention_bias", False),)),
    "gpt2": _Family("gpt2", "gelu_new", required=_GPT2_SETTINGS),
    "phi3": _Family("phi3", "silu"),
    "gemma2": _Family(
        "gemma2", "gelu_pytorch_tanh", required=(("attention_bias", False),), norms_from_one=True, full_every=2
    ),
    "gemma3_text": _Family("gemma3", "gelu_pytorch_tanh", required=_GEMMA3_SETTINGS, norms_from_one=True, full_every=6),
}
_NOT_IN_LLAMA_CPP = ("opt", "gpt_neo")  # it has no architecture for them


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
        return Written()

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

        tensor, transposed = base.model.get_parameter(name).detach(), _is_transposed(base, name)
        values = (tensor.T if transposed else tensor).cpu().float().contiguous()
        kind = gguf.GGMLQuantizationType[self.kind_of(name, values, options)]
        stored = gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), kind), kind)
        rounded = torch.from_numpy(stored.copy()).view(values.shape)
        return (rounded.T if transposed else rounded).to(tensor)

    def read(self, folder: Path, base: Base) -> Reader:
        """Read with transformers, and pass on what the file holds and its reader does not take from there."""
        from gguf import GGUFReader

        file: Any = GGUFReader(folder / FILE)
        architecture = str(file.get_field("general.architecture").contents())
        overlooked: dict[str, Any] = {
            setting: file.get_field(f"{architecture}.{key}").contents()
            for setting, key in _OVERLOOKED.get(architecture, {}).items()
        }
        if architecture == "gemma3":
            full = {"rope_type": "default", "rope_theta": float(file.get_field("gemma3.rope.freq_base").contents())}
            window = {"rope_type": "default", "rope_theta": _LOCAL_THETA}
            overlooked["rope_parameters"] = {"full_attention": full, "sliding_attention": window}
        if architecture == "phi3":
            overlooked["pad_token_id"] = base.model.config.pad_token_id  # else an id that a small vocabulary lacks
        with redirect_stderr(StringIO()):  # it shows a progress bar of its own
            return CausalReader.from_folder(folder, base, {"gguf_file": FILE, **overlooked}, {"gguf_file": FILE})


def model_problem(config: Any) -> str | None:
    """Return why GGUF cannot express a model of this configuration, or None."""
    family = _FAMILIES.get(config.model_type)
    if config.model_type in _NOT_IN_LLAMA_CPP:
        return f"llama.cpp does not run models of type {config.model_type}"
    if family is None:
        return f"models of type {config.model_type} are not supported, only {', '.join(_FAMILIES)}"
    activation = next(
        name
        for key in ("hidden_activation", "hidden_act", "activation_function")
        if (name := getattr(config, key, None))
    )
    if activation != family.activation:
        return f"its activation is {activation}, not {family.activation}"
    for name, value in family.required:
        if getattr(config, name, value) != value:
            return f"{name} is {getattr(config, name)}, which the file cannot express"
    for rope in _ropes(config):
        if rope.get("rope_type", "default") != "default":
            return f"its rotary positions are scaled ({rope['rope_type']}), which is not supported"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            return "only a part of each head has rotary positions, which is not supported"
    return _window_problem(config, family)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the settings of rotary positions: one set, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return list(rope.values()) if all(isinstance(value, dict) for value in rope.values()) else [rope]


def _window_problem(config: Any, family: _Family) -> str | None:
    """Return why the file cannot express how far the layers look, or None."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if not family.full_every:
        if window and window < config.max_position_embeddings:
            return f"its attention slides over {window} tokens, which the file cannot express"
        return None
    full = [(number + 1) % family.full_every == 0 for number in range(config.num_hidden_layers)]
    if [kind == "full_attention" for kind in config.layer_types] != full:
        return f"not one layer of {family.full_every} sees everything, as the file would say"
    if config.query_pre_attn_scalar != config.head_dim:
        return f"its scores are scaled by {config.query_pre_attn_scalar} and not the size of a head ({config.head_dim})"
    theta = (
        (getattr(config, "rope_parameters", None) or {}).get("sliding_attention", {}).get("rope_theta", _LOCAL_THETA)
    )
    if theta != _LOCAL_THETA:
        return f"the rotary base of its layers with a window is {theta:g}, which the file cannot express"
    return None


def write_file(chosen: GgufFormat, model: PreTrainedModel, base: Base, path: Path, options: ExportOptions) -> None:
    """Write a merged model to a GGUF file, in the types that the format has for its tensors.

    Raises:
        TechniqueError: a tensor has no name in GGUF.
    """
    import gguf

    config = model.config
    family = _FAMILIES[config.model_type]
    writer = gguf.GGUFWriter(path, family.name)
    _add_settings(writer, base, config, options)
    add_tokens(writer, base)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    names = gguf.get_tensor_name_map(arch, len(base.anatomy.blocks))
    heads, groups, _ = base.anatomy.heads
    for name, parameter in model.named_parameters():  # without a tied head: readers use the embeddings
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise TechniqueError(f"the model cannot be exported to gguf: there is no name for {name}; use merged")
        values = parameter.detach().cpu().float()
        if _is_transposed(base, name):
            values = values.T
        for part, count in (("attn_q.", heads), ("attn_k.", groups)):
            if family.interleaved and part in gguf_name:
                values = _interleaved(values, count)
        if family.norms_from_one and gguf_name.endswith("norm.weight"):
            values = values + 1
        kind = gguf.GGMLQuantizationType[chosen.kind_of(name, values, options)]
        writer.add_tensor(gguf_name, gguf.quants.quantize(values.contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _is_transposed(base: Base, name: str) -> bool:
    module, attribute = base.anatomy.owner(name)
    return attribute == "weight" and is_transposed(module)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Order the rows of each head as 0, c/2, 1, c/2 + 1, ...: rotary pairs side by side, not half a head apart."""
    pairs = weight.view(heads, 2, len(weight) // heads // 2, *weight.shape[1:])  # (heads, 2, c/2, in)
    return pairs.transpose(1, 2).reshape(weight.shape)


def _add_settings(writer: Any, base: Base, config: Any, options: ExportOptions) -> None:
    import gguf

    heads, groups, size = base.anatomy.heads
    writer.add_name(Path(base.name).name)
    writer.add_context_length(base.anatomy.context)
    writer.add_embedding_length(base.anatomy.width)
    writer.add_block_count(len(base.anatomy.blocks))
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * base.anatomy.width
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_vocab_size(base.anatomy.vocabulary)
    file_type = {torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}.get(options.dtype, "ALL_F32")
    file_type = f"MOSTLY_{options.quantised.upper()}" if options.quantised else file_type
    writer.add_file_type(gguf.LlamaFileType[file_type])
    if options.quantised:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if not base.anatomy.rotary:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_freq_base(float(_ropes(config)[-1].get("rope_theta", 10_000.0)))  # that of layers without a window
    if _FAMILIES[config.model_type].full_every:
        writer.add_sliding_window(config.sliding_window)
    for cap, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, cap, None) is not None:
            add(getattr(config, cap))


FORMAT = GgufFormat()
