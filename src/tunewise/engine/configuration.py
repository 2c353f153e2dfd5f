"""Reads a model's configuration and tokenizer, which is all that turning text into tokens needs; no weights are read.

`name` is a local folder or a Hub id (`org/name`), found through the Hugging Face cache and environment variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tunewise.core.addresses import path_at, shipped_model
from tunewise.core.errors import ModelError
from tunewise.engine.model_files import read_configuration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNBOUNDED = 1 << 20  # positions of a model whose configuration names no limit


class TextModel(Protocol):
    """Describes what an encoder must know of a model: a loaded base is one, and so is an `UnloadedModel`."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template where there is one."""

    @property
    def window(self) -> int:
        """Largest number of tokens of a sequence."""

    @property
    def vocabulary(self) -> int:
        """Rows of the input embeddings, which may exceed the tokenizer's vocabulary."""

    @property
    def generation_ends(self) -> tuple[int, ...]:
        """Tokens that the model's own generation settings stop at."""


@dataclass(frozen=True)
class UnloadedModel:
    """Holds a model's name, configuration and tokenizer; `max_length` limits its window."""

    name: str
    config: Any
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    generation: Any = None

    @property
    def generation_ends(self) -> tuple[int, ...]:
        """Tokens that generation stops at, by the model's generation settings or else by its configuration."""
        return ends_of(self.generation if self.generation is not None else self.config)

    @property
    def window(self) -> int:
        """Largest number of tokens of a sequence here: the model's context, or `max_length` where that is less."""
        context = context_of(self.config)
        return min(self.max_length or context, context)

    @property
    def vocabulary(self) -> int:
        """Rows of the input embeddings, which may exceed the tokenizer's vocabulary."""
        return int(self.config.vocab_size)


def read_unloaded(name: str | Path, *, revision: str | None = None, max_length: int | None = None) -> UnloadedModel:
    """Read the configuration and the tokenizer of a folder, a Hub id, or "world".

    Raises:
        ModelError: there is no such model, it needs remote code, or its tokenizer has no fast version.
    """
    from transformers import AutoTokenizer, GenerationConfig

    path = path_of(name)
    if not path.exists() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise ModelError(f"{name}: there is no such folder; give a model folder or a Hub id (org/name)")
    source, options = str(path) if path.exists() else str(name), {"revision": revision, "trust_remote_code": False}
    with readable(name):
        config = read_configuration(name, source, revision)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    require_fast(name, tokenizer)
    try:
        generation = GenerationConfig.from_pretrained(source, revision=revision or "main")
    except OSError:  # there is no such file
        generation = None
    return UnloadedModel(str(name), config, tokenizer, max_length, generation)


def ends_of(settings: Any) -> tuple[int, ...]:
    """Return the end-of-sequence tokens of a model's generation settings or configuration: one, several or none."""
    ends = getattr(settings, "eos_token_id", None)
    listed = ends if isinstance(ends, (list, tuple)) else [ends]
    return tuple(int(end) for end in listed if isinstance(end, int))


def require_fast(name: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot say which characters its tokens stand for."""
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: its tokenizer has no fast version (tokenizer.json); convert it with transformers")


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Turn every error of reading a model into a `ModelError` that names it."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # transformers raises some ten types here; all of them mean "cannot be read"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{name}: its configuration or tokenizer cannot be read: {reason}") from error


def path_of(name: str | Path) -> Path:
    """Return the folder that a model's name stands for, whether it exists or not; "world" is the shipped one."""
    return shipped_model(str(name)) or path_at(name)


def on_this_machine(name: str | Path, revision: str | None = None) -> Path | None:
    """Return the folder of a model that is here: a folder, "world", or one in the Hub's cache; nothing is downloaded.

    None where the model is not here, or not at this revision.
    """
    path = path_of(name)
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(str(name), "config.json", revision=revision)
    except HFValidationError:  # no repository has such a name
        return None
    return Path(config).parent if isinstance(config, str) else None


def context_of(config: Any) -> int:
    """Return the largest number of positions that a configuration allows."""
    return int(getattr(config, "max_position_embeddings", None) or _UNBOUNDED)
