"""A Hugging Face tokenizer in GGUF's terms: byte-level BPE ("gpt2") or SentencePiece-like BPE with bytes ("llama").

llama.cpp knows the pre-tokenizer of byte-level BPE by a name; the patterns here are those behind the names. Anything
else, such as a tokenizer with a normalizer that changes text, is refused rather than guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: "qwen2",
}


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF says of a tokenizer; `problem` is why it cannot."""

    problem: str | None = None
    model: str = ""
    pre: str = "default"
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool = False


def vocabulary(base: Base) -> Vocabulary:
    """The tokenizer of a base."""
    return _vocabulary(base.tokenizer.backend_tokenizer.to_str(), base.anatomy.vocabulary)


@lru_cache(maxsize=1)
def _vocabulary(text: str, size: int) -> Vocabulary:
    facts: dict[str, Any] = json.loads(text)
    model = facts["model"]
    if model["type"] != "BPE":
        return Vocabulary(f"its tokenizer is {model['type']}, and only BPE is written here")
    pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    known = {**model["vocab"], **{own["content"]: own["id"] for own in facts["added_tokens"]}}
    if max(known.values()) >= size:
        return Vocabulary("its tokenizer has more tokens than the model has embeddings")
    tokens, types = [f"[PAD{index}]" for index in range(size)], [_UNUSED] * size
    for token, index in known.items():
        is_byte = len(token) == 6 and token.startswith("<0x") and model.get("byte_fallback")
        tokens[index], types[index] = token, _BYTE if is_byte else _NORMAL
    for own in facts["added_tokens"]:
        types[own["id"]] = _CONTROL if own["special"] else _USER
    if model.get("unk_token") in known:
        types[known[model["unk_token"]]] = _UNKNOWN
    pre = _pre(facts.get("pre_tokenizer"), facts.get("normalizer"))
    if pre is not None:
        return Vocabulary(None, "gpt2", pre, tokens, types, [" ".join(pair) for pair in pairs])
    prefix = _space_prefix(facts.get("pre_tokenizer"), facts.get("normalizer"))
    if prefix is None or types.count(_BYTE) < 256:  # llama.cpp stops at a byte that is no token
        return Vocabulary("its tokenizer splits or changes text in a way that has no name in GGUF")
    scores = [0.0 if kind in (_BYTE, _CONTROL, _UNKNOWN) else -1e6 for kind in types]
    for token, index in known.items():
        if len(token) == 1:
            scores[index] = 0.0
    for rank, pair in reversed(list(enumerate(pairs))):  # of several pairs that make a token, the first counts
        scores[known["".join(pair)]] = -float(rank)
    return Vocabulary(None, "llama", "default", tokens, types, [], scores, prefix)


def _pre(splitter: dict[str, Any] | None, normalizer: dict[str, Any] | None) -> str | None:
    """The name of a byte-level pre-tokenizer, or None where it is none that has a name."""
    parts = _sequence(splitter, "pretokenizers")
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    if len(parts) == 1 and parts[0].get("use_regex", True) and normalizer is None:
        return "gpt-2"
    if len(parts) != 2 or parts[0]["type"] != "Split" or parts[1].get("use_regex", True):
        return None
    name = _PATTERNS.get(parts[0]["pattern"].get("Regex", ""))
    composed = name == "qwen2" and normalizer == {"type": "NFC"}
    return name if normalizer is None or composed else None


def _space_prefix(splitter: dict[str, Any] | None, normalizer: dict[str, Any] | None) -> bool | None:
    """Whether a SentencePiece-like tokenizer puts a space before a text, or None where it is none."""
    steps = _sequence(normalizer, "normalizers")
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    if splitter is None and steps and steps[-1] == replaced:
        before = steps[:-1]
        return bool(before) if before in ([], [{"type": "Prepend", "prepend": "\u2581"}]) else None
    if not steps and splitter is not None and splitter["type"] == "Metaspace" and not splitter.get("split"):
        return {"first": True, "always": True, "never": False}[splitter["prepend_scheme"]]
    return None


def _sequence(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def add_tokens(writer: Any, base: Base) -> None:
    """Write the tokenizer's part of a file."""
    tokenizer, own = base.tokenizer, vocabulary(base)
    writer.add_tokenizer_model(own.model)
    writer.add_tokenizer_pre(own.pre)
    writer.add_token_list(own.tokens)
    writer.add_token_types(own.types)
    if own.model == "gpt2":
        writer.add_token_merges(own.merges)
    else:
        writer.add_token_scores(own.scores)
        writer.add_add_space_prefix(own.space_prefix)
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    ids = list(tokenizer("a")["input_ids"])
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
