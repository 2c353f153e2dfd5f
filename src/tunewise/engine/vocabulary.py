"""Checks that a tokenizer's ids all have embeddings, and fingerprints what turns text into tokens.

A tokenizer smaller than the embeddings is common: they are padded to a round number of rows. A larger one means that
tokens were added to it and not to the model. Their ids would be looked up beyond the last row, or be taken for the
placeholders of virtual tokens, which begin there.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tunewise.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows the embeddings of this tokenizer's tokens take: its largest id and one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def tokens_without_embeddings(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """Say which tokens have ids beyond so many rows of embeddings; None where all have an embedding."""
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    if not beyond:
        return None
    first, token = beyond[0]
    more = f" and {len(beyond) - 1} more, up to id {beyond[-1][0]}" if len(beyond) > 1 else ""
    return f'"{token}" (id {first}){more}, where the embeddings have {rows} rows'


def require_embeddings(name: object, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer with ids beyond the embeddings.

    Args:
        name: what the model is called in the error.
        tokenizer: the tokenizer.
        rows: rows of the model's input embeddings.

    Raises:
        ModelError: names the first such token, and the remedy.
    """
    beyond = tokens_without_embeddings(tokenizer, rows)
    if beyond is not None:
        raise ModelError(
            f"{name}: its tokenizer has tokens that the model has no embedding for, {beyond}; give them embeddings "
            "with --resize-embeddings (resize_embeddings=True), or use the tokenizer that belongs to the model"
        )


def fit_configuration(
    name: object, config: Any, tokenizer: PreTrainedTokenizerBase, *, resize_embeddings: bool | int = False
) -> None:
    """Resize the vocabulary of a model without weights as requested, and require embeddings as `load_base` does.

    Args:
        name: what the model is called in the error.
        config: the model's configuration, which is changed.
        tokenizer: the tokenizer.
        resize_embeddings: as in `load_base`.

    Raises:
        ModelError: the tokenizer has ids beyond the embeddings.
    """
    text_config = config.get_text_config()
    text_config.vocab_size = max(text_config.vocab_size, rows_requested(tokenizer, resize_embeddings))
    require_embeddings(name, tokenizer, text_config.vocab_size)


def rows_requested(tokenizer: PreTrainedTokenizerBase, resize_embeddings: bool | int) -> int:
    """Return the least number of rows that `resize_embeddings` requests: a number, what the tokenizer takes, or 0."""
    return rows_needed(tokenizer) if resize_embeddings is True else int(resize_embeddings)


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the tokens and their ids, added ones included."""
    entries = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template as one text; empty where there is none, JSON where there are several by name."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return json.dumps(template, sort_keys=True)
    return template or ""
