"""Lists how Hugging Face causal language models are laid out: where blocks, norms and linears of each family are.

A family that is built like none of these gets a layout here; `anatomy.py` looks everything else up by it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArchitectureLayout:
    """Names the paths of one model family: `blocks` and `final_norm` from the model, `roles` from a block.

    A fused `qkv` holds queries, keys and values one after the other, or interleaved by head.
    """

    name: str
    blocks: str
    final_norm: str
    roles: tuple[tuple[str, str], ...]
    interleaved: bool = False

    @property
    def inner(self) -> str:
        """The path of what holds the blocks; OPT calls its decoder itself, and not the model around it."""
        return self.blocks.rpartition(".")[0]


def _roles(prefix: str, attention: str, feed_forward: str) -> tuple[tuple[str, str], ...]:
    """Parse the `q=q_proj` pairs of the attention (below `prefix`) and of the feed-forward."""
    pairs = [(role, f"{prefix}.{path}") for role, path in (item.split("=") for item in attention.split())]
    feed_forward_pairs = [(role, path) for role, path in (item.split("=") for item in feed_forward.split())]
    return tuple(pairs + feed_forward_pairs)


_QKV = "q=q_proj k=k_proj v=v_proj"
LAYOUTS = (
    ArchitectureLayout(
        "Llama, Mistral, Qwen2, Qwen3, Gemma",
        "model.layers",
        "model.norm",
        _roles("self_attn", f"{_QKV} o=o_proj", "gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj"),
    ),
    ArchitectureLayout(
        "Phi-3",
        "model.layers",
        "model.norm",
        _roles("self_attn", "qkv=qkv_proj o=o_proj", "gate_up=mlp.gate_up_proj down=mlp.down_proj"),
    ),
    ArchitectureLayout(
        "Phi",
        "model.layers",
        "model.final_layernorm",
        _roles("self_attn", f"{_QKV} o=dense", "up=mlp.fc1 down=mlp.fc2"),
    ),
    ArchitectureLayout(
        "GPT-2",
        "transformer.h",
        "transformer.ln_f",
        _roles("attn", "qkv=c_attn o=c_proj", "up=mlp.c_fc down=mlp.c_proj"),
    ),
    ArchitectureLayout(
        "GPT-NeoX",
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        _roles("attention", "qkv=query_key_value o=dense", "up=mlp.dense_h_to_4h down=mlp.dense_4h_to_h"),
        interleaved=True,
    ),
    ArchitectureLayout(
        "GPT-Neo",
        "transformer.h",
        "transformer.ln_f",
        _roles("attn.attention", f"{_QKV} o=out_proj", "up=mlp.c_fc down=mlp.c_proj"),
    ),
    ArchitectureLayout(
        "OPT",
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
        _roles("self_attn", f"{_QKV} o=out_proj", "up=fc1 down=fc2"),
    ),
)
# Norms between a sublayer and its residual, by the role of the sublayer's last linear. Llama too calls the norm before
# its feed-forward `post_attention_layernorm`, so a block has these norms only if it has both.
POST_NORMS = (
    {"o": "post_attention_layernorm", "down": "post_feedforward_layernorm"},  # Gemma 2 and 3, OLMo 2
    {"o": "post_self_attn_layernorm", "down": "post_mlp_layernorm"},  # GLM-4
)
