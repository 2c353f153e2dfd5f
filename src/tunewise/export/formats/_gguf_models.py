"""How GGUF calls a kind of model, what it can say of it, and how its tensors lie in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tunewise.engine.anatomy import is_transposed

if TYPE_CHECKING:
    from tunewise.engine.model import Base
    from tunewise.export.format import ExportOptions


@dataclass(frozen=True)
class Family:
    """How GGUF calls a kind of model, and the settings that a model must have because the file cannot express others.

    `interleaved` tells whether llama.cpp expects rotary pairs side by side; `required` are settings with the one value
    that llama.cpp implements. `norms_from_one` tells whether the model multiplies by 1 + w where llama.cpp multiplies
    by what the file holds. `full_every` is for models whose attention slides over a window but in one of so many
    layers, as llama.cpp knows by itself. `partly_rotary` tells whether the file can say that only the first numbers of
    a head have rotary positions, and `by_transformers` whether transformers reads such files.
    """

    name: str
    activation: str
    interleaved: bool = False
    required: tuple[tuple[str, object], ...] = ()
    norms_from_one: bool = False
    full_every: int = 0
    partly_rotary: bool = False
    by_transformers: bool = True


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
LOCAL_THETA = 10_000.0  # of Gemma 3's layers with a window, as llama.cpp has it
FAMILIES = {
    "llama": Family("llama", "silu", True, _LLAMA_SETTINGS),
    "mistral": Family("llama", "silu", True),
    "qwen2": Family("qwen2", "silu"),
    "qwen3": Family("qwen3", "silu", required=(("attention_bias", False),)),
    "gpt2": Family("gpt2", "gelu_new", required=_GPT2_SETTINGS),
    "phi3": Family("phi3", "silu"),
    "phi": Family("phi2", "gelu_new", required=(("qk_layernorm", False),), partly_rotary=True, by_transformers=False),
    # llama.cpp computes the GELU of all its models by the hyperbolic tangent.
    "gpt_neox": Family("gptneox", "gelu", partly_rotary=True, by_transformers=False),
    "gemma": Family(
        "gemma",
        "gelu_pytorch_tanh",
        required=(("attention_bias", False),),
        norms_from_one=True,
        by_transformers=False,
    ),
    "gemma2": Family(
        "gemma2", "gelu_pytorch_tanh", required=(("attention_bias", False),), norms_from_one=True, full_every=2
    ),
    "gemma3_text": Family("gemma3", "gelu_pytorch_tanh", required=_GEMMA3_SETTINGS, norms_from_one=True, full_every=6),
}
_NOT_IN_LLAMA_CPP = ("opt", "gpt_neo")  # it has no architecture for them


def model_problem(config: Any) -> str | None:
    """Return why GGUF cannot express a model of this configuration, or None."""
    family = FAMILIES.get(config.model_type)
    if config.model_type in _NOT_IN_LLAMA_CPP:
        return f"llama.cpp does not run models of type {config.model_type}"
    if family is None:
        return f"models of type {config.model_type} are not supported, only {', '.join(FAMILIES)}"
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
        if rope.get("partial_rotary_factor", 1.0) != 1.0 and not family.partly_rotary:
            return "only a part of each head has rotary positions, which is not supported"
    return _window_problem(config, family)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the settings of rotary positions: one set, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return list(rope.values()) if all(isinstance(value, dict) for value in rope.values()) else [rope]


def _window_problem(config: Any, family: Family) -> str | None:
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
    theta = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention", {}).get("rope_theta", LOCAL_THETA)
    if theta != LOCAL_THETA:
        return f"the rotary base of its layers with a window is {theta:g}, which the file cannot express"
    return None


def to_file(base: Base, name: str, values: Tensor) -> Tensor:
    """Lay out a parameter as the file has it: (out, in), and the rows of heads in llama.cpp's order.

    Args:
        base: the model.
        name: the full name of the parameter.
        values: its values, as they are in the model.
    """
    family, (heads, groups, _) = FAMILIES[base.model.config.model_type], base.anatomy.heads
    if is_stored_transposed(base, name):
        values = values.T
    if family.interleaved and ".q_proj." in name:
        values = _interleaved(values, heads)
    if family.interleaved and ".k_proj." in name:
        values = _interleaved(values, groups)
    if _is_fused_by_head(base, name):
        values = _with_heads_of(values, heads, first="head")
    return values + 1 if family.norms_from_one and name.endswith("norm.weight") else values


def from_file(base: Base, name: str, stored: Tensor) -> Tensor:
    """Return a parameter's values from the file's, for the families that transformers does not read."""
    family, (heads, *_) = FAMILIES[base.model.config.model_type], base.anatomy.heads
    assert not family.interleaved, "transformers reads all of those"
    if family.norms_from_one and name.endswith("norm.weight"):
        stored = stored - 1
    if _is_fused_by_head(base, name):
        stored = _with_heads_of(stored, heads, first="kind")
    return stored.T if is_stored_transposed(base, name) else stored


def is_stored_transposed(base: Base, name: str) -> bool:
    """Tell whether the model keeps a weight as (in, out)."""
    module, attribute = base.anatomy.owner(name)
    return attribute == "weight" and is_transposed(module)


def _is_fused_by_head(base: Base, name: str) -> bool:
    """Tell whether a parameter holds queries, keys and values of each head together; the file has all queries first."""
    layout = base.anatomy.layout
    return layout.interleaved and f".{dict(layout.roles)['qkv']}." in name


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Order the rows of each head as 0, c/2, 1, c/2 + 1, ...: rotary pairs side by side, not half a head apart."""
    pairs = weight.view(heads, 2, len(weight) // heads // 2, *weight.shape[1:])  # (heads, 2, c/2, in)
    return pairs.transpose(1, 2).reshape(weight.shape)


def _with_heads_of(fused: Tensor, heads: int, *, first: Literal["head", "kind"]) -> Tensor:
    """Exchange the order of heads and of queries, keys and values in the rows (3 heads c, ...) of a fused weight.

    Args:
        fused: the weight, or the bias.
        heads: the number of heads.
        first: by what its rows are ordered first: by the head, or by the kind, which is queries, keys or values.
    """
    sizes = (heads, 3) if first == "head" else (3, heads)
    return fused.view(*sizes, -1, *fused.shape[1:]).transpose(0, 1).reshape(fused.shape)


def add_settings(writer: Any, base: Base, config: Any, options: ExportOptions) -> None:
    """Add the hyper-parameters of a model to a file."""
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
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_epsilon", None) or config.layer_norm_eps)
    if not base.anatomy.rotary:
        return
    writer.add_head_count_kv(groups)
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_rope_dimension_count(int(size * _ropes(config)[-1].get("partial_rotary_factor", 1.0)))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_freq_base(float(_ropes(config)[-1].get("rope_theta", 10_000.0)))  # that of layers without a window
    if FAMILIES[config.model_type].full_every:
        writer.add_sliding_window(config.sliding_window)
    for cap, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, cap, None) is not None:
            add(getattr(config, cap))
