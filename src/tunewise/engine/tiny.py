"""Builds tiny random models, one per architecture, and a tiny task, for tests of techniques."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tunewise.core.seeds import generator
from tunewise.data.task import Example, Message, Task
from tunewise.engine.model import Base

_SMALL: dict[str, object] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {
    **_SMALL,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
_CONTEXT = {"max_position_embeddings": 256}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": {**_LLAMA, "tie_word_embeddings": False},
    "llama-tied": {**_LLAMA, "tie_word_embeddings": True, "model_type": "llama"},
    "mistral": {**_LLAMA, "sliding_window": 16},
    "qwen2": {**_LLAMA, "use_sliding_window": False},
    "qwen3": {**_LLAMA, "tie_word_embeddings": True},
    "gemma": {**_LLAMA},
    "gemma2": {**_LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {**_LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "phi3": {**_LLAMA, "pad_token_id": 0},
    "phi": {**_SMALL, **_CONTEXT, "intermediate_size": 48, "partial_rotary_factor": 0.5},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **_NO_DROPOUT},
    "gpt_neox": {**_SMALL, **_CONTEXT, "intermediate_size": 48, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gpt_neox-tied": {
        **_SMALL,
        **_CONTEXT,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
        "model_type": "gpt_neox",
    },
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        **_CONTEXT,
        **{"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0},
    },
    "opt": {
        **_SMALL,
        **_CONTEXT,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}
_TEXT = "the cat sat on a mat and the dog ran to town while small birds sing in old trees by day and night . "


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([_TEXT], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@cache
def _model(architecture: str, dtype: torch.dtype) -> Any:
    settings = dict(ARCHITECTURES[architecture])
    kind = str(settings.pop("model_type", architecture))
    torch.manual_seed(0)
    common = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**common, **settings}))
    # Larger than the usual initialisation, and with biases other than zero, so that nothing cancels by chance.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(0, architecture, name)) * 0.15
            parameter.copy_(parameter + noise if parameter.dim() == 1 else noise)
    return model.to(dtype)


def tiny_base(architecture: str = "llama", dtype: torch.dtype = torch.float32, device: str = "cpu") -> Base:
    """Return a fresh tiny random model of one of `ARCHITECTURES`, with a byte-level tokenizer of 320 entries."""
    model = copy.deepcopy(_model(architecture, dtype)).to(device)
    return Base(model, _tokenizer(), f"tiny-{architecture}")


def tiny_task(kind: str = "classification") -> Task:
    """Return a learnable task of twelve training, four validation and four test examples."""
    words = ["cat", "dog", "bird", "tree", "town", "mat"]

    def example(index: int) -> Example:
        word = words[index % len(words)]
        text = f"the {word} {'sat' if index % 2 else 'ran'} on a mat by day {index}"
        label = ("small" if index % 2 else "old") if kind == "classification" else f"a {word} and the {word}"
        return Example((Message("user", text),), label, (label,))

    examples = [example(index) for index in range(20)]
    labels = ("old", "small") if kind == "classification" else ()
    metric, format_ = ("accuracy", "classification") if labels else ("rouge_l", "prompt-completion")
    return Task(
        "tiny", kind, format_, tuple(examples[:12]), tuple(examples[12:16]), tuple(examples[16:]), labels, metric
    )
