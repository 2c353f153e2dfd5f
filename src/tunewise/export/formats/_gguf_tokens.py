"""Write a Hugging Face tokenizer to GGUF: byte-level BPE ("gpt2") or SentencePiece-like BPE with bytes ("llama").

llama.cpp identifies the pre-tokenizer of byte-level BPE by a name, which stands for a splitting pattern; `_PATTERNS`
holds the patterns behind the names. Anything else, such as a normalizer that changes text, is refused rather than
guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from tunewise.engine.conversation import ChatTemplate

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # GGUF's types of tokens
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: "qwen2",
}


class _Component(TypedDict):
    """A pre-tokenizer or normalizer of a `tokenizer.json`, or a sequence of them."""

    type: str
    pretokenizers: NotRequired[list[_Component]]
    normalizers: NotRequired[list[_Component]]
    add_prefix_space: NotRequired[bool]
    use_regex: NotRequired[bool]
    pattern: NotRequired[dict[str, str]]
    content: NotRequired[str]
    prepend: NotRequired[str]
    prepend_scheme: NotRequired[str]
    split: NotRequired[bool]


class _BpeModel(TypedDict):
    type: str
    vocab: dict[str, int]
    merges: list[str | list[str]]
    byte_fallback: NotRequired[bool]
    unk_token: NotRequired[str | None]


class _AddedToken(TypedDict):
    id: int
    content: str
    special: bool


class _TokenizerFile(TypedDict):
    """The parts of a `tokenizer.json` that are read here."""

    model: _BpeModel
    added_tokens: list[_AddedToken]
    pre_tokenizer: NotRequired[_Component | None]
    normalizer: NotRequired[_Component | None]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's entries in a GGUF file; `problem` says why it has none.

    `model` is "gpt2" or "llama", `pre` the name of the pre-tokenizer, and `space_prefix` whether a space is put before
    a text.
    """

    problem: str | None = None
    model: str = ""
    pre: str = "default"
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool = False


def vocabulary(base: Base) -> Vocabulary:
    """Translate the tokenizer of a base."""
    return _vocabulary(base.tokenizer.backend_tokenizer.to_str(), base.anatomy.vocabulary)


@lru_cache(maxsize=1)
def _vocabulary(tokenizer_json: str, size: int) -> Vocabulary:
    """Translate a fast tokenizer's JSON into a vocabulary of `size` tokens, those of the model's embeddings."""
    tokenizer: _TokenizerFile = json.loads(tokenizer_json)
    model = tokenizer["model"]
    if model["type"] != "BPE":
        return Vocabulary(f"its tokenizer is {model['type']}, and only BPE is supported")
    pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    ids = {**model["vocab"], **{added["content"]: added["id"] for added in tokenizer["added_tokens"]}}
    if max(ids.values()) >= size:
        return Vocabulary("its tokenizer has more tokens than the model has embeddings")
    tokens, types = [f"[PAD{index}]" for index in range(size)], [_UNUSED] * size
    for token, index in ids.items():
        is_byte = len(token) == 6 and token.startswith("<0x") and model.get("byte_fallback")
        tokens[index], types[index] = token, _BYTE if is_byte else _NORMAL
    for added in tokenizer["added_tokens"]:
        types[added["id"]] = _CONTROL if added["special"] else _USER
    unknown = model.get("unk_token")
    if unknown in ids:
        types[ids[unknown]] = _UNKNOWN
    pre = _pre_tokenizer_name(tokenizer.get("pre_tokenizer"), tokenizer.get("normalizer"))
    if pre is not None:
        return Vocabulary(None, "gpt2", pre, tokens, types, [" ".join(pair) for pair in pairs])
    prefix = _space_prefix(tokenizer.get("pre_tokenizer"), tokenizer.get("normalizer"))
    if prefix is None or types.count(_BYTE) < 256:  # llama.cpp stops at a byte that is no token
        return Vocabulary("its tokenizer splits or changes text in a way that has no name in GGUF")
    scores = [0.0 if kind in (_BYTE, _CONTROL, _UNKNOWN) else -1e6 for kind in types]
    for token, index in ids.items():
        if len(token) == 1:
            scores[index] = 0.0
    for rank, pair in reversed(list(enumerate(pairs))):  # of several pairs that make a token, the first counts
        scores[ids["".join(pair)]] = -float(rank)
    return Vocabulary(None, "llama", "default", tokens, types, [], scores, prefix)


def _pre_tokenizer_name(splitter: _Component | None, normalizer: _Component | None) -> str | None:
    """Return llama.cpp's name of a byte-level pre-tokenizer, or None where it has none."""
    parts = _components(splitter, "pretokenizers")
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    if len(parts) == 1 and parts[0].get("use_regex", True) and normalizer is None:
        return "gpt-2"
    if len(parts) != 2 or parts[0]["type"] != "Split" or parts[1].get("use_regex", True):
        return None
    name = _PATTERNS.get(parts[0]["pattern"].get("Regex", ""))
    composed = name == "qwen2" and normalizer == {"type": "NFC"}
    return name if normalizer is None or composed else None


def _space_prefix(splitter: _Component | None, normalizer: _Component | None) -> bool | None:
    """Tell whether a SentencePiece-like tokenizer puts a space before a text; None where it is no such tokenizer."""
    steps = _components(normalizer, "normalizers")
    replace: _Component = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend: _Component = {"type": "Prepend", "prepend": "\u2581"}
    if splitter is None and steps and steps[-1] == replace:
        before = steps[:-1]
        return bool(before) if before in ([], [prepend]) else None
    if not steps and splitter is not None and splitter["type"] == "Metaspace" and not splitter.get("split"):
        return {"first": True, "always": True, "never": False}[splitter["prepend_scheme"]]
    return None


def _components(component: _Component | None, key: Literal["pretokenizers", "normalizers"]) -> list[_Component]:
    """List the parts of a component that is a sequence of them, or the component itself."""
    if component is None:
        return []
    return list(component[key]) if component["type"] == "Sequence" else [component]


def add_tokens(writer: Any, base: Base) -> None:
    """Write the tokenizer's part of a GGUF file."""
    tokenizer, entries = base.tokenizer, vocabulary(base)
    writer.add_tokenizer_model(entries.model)
    writer.add_tokenizer_pre(entries.pre)
    writer.add_token_list(entries.tokens)
    writer.add_token_types(entries.types)
    if entries.model == "gpt2":
        writer.add_token_merges(entries.merges)
    else:
        writer.add_token_scores(entries.scores)
        writer.add_add_space_prefix(entries.space_prefix)
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    ids = list(tokenizer("a")["input_ids"])
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
        taught = ChatTemplate(tokenizer, base.generation_ends).ends.taught
        if taught is not None and taught != tokenizer.eos_token_id:
            writer.add_eot_token_id(taught)
