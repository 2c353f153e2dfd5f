"""Base models without their weights, built from the configuration and the tokenizer alone.

A `Sketch` is built inside `tunewise.advice.plan.ledger.fake_tensors()`, once for each technique that is measured; an
`outline` is built on torch's meta device. Neither takes memory, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.core.errors import ModelError
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import DTYPES, Base, PackingTrial, load_base, path_of
from tunewise.engine.tiny import ARCHITECTURES, tiny_base


@dataclass(frozen=True)
class Sketch:
    """Holds a model's configuration and tokenizer; `unpacked` says why its architecture cannot be packed, if so."""

    name: str
    config: Any
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    max_length: int | None
    unpacked: str | None

    def build(self) -> Base:
        """Build the bare base on fake tensors; call it inside `fake_tensors()`."""
        model = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype, trust_remote_code=False)
        return Base(
            model,
            self.tokenizer,
            self.name,
            None,
            self.max_length,
            frozen_fingerprint="sketch",  # there are no weights to hash
            packing=PackingTrial(self.unpacked),
        )


def sketch(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    max_length: int | None = None,
) -> Sketch:
    """Make the sketch of a folder, a Hub id, or "world"; only its configuration and its tokenizer are read.

    Raises:
        ModelError: they cannot be read, need remote code, or the layout of the model is not known.
    """
    if dtype not in DTYPES:
        raise ModelError(f'dtype "{dtype}" is not one of {", ".join(DTYPES)}')
    config, tokenizer = configuration(name, revision)
    model_sketch = Sketch(str(name), config, tokenizer, DTYPES[dtype], max_length, _unpacked(config.model_type))
    with fake_tensors(), readable(name):
        model_sketch.build().check_layout()
    return model_sketch


def configuration(name: str | Path, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """Read the configuration and the tokenizer of a folder, a Hub id, or "world".

    Raises:
        ModelError: there is no such model, or it needs remote code.
    """
    path = path_of(name)
    if not path.exists() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise ModelError(f"{name}: there is no such folder; give a model folder or a Hub id (org/name)")
    source, options = str(path) if path.exists() else str(name), {"revision": revision, "trust_remote_code": False}
    with readable(name):
        return AutoConfig.from_pretrained(source, **options), AutoTokenizer.from_pretrained(source, **options)


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


def _unpacked(model_type: str) -> str | None:
    """Return why an architecture cannot be packed, as a tiny model of it shows; None if it can or none is known."""
    return why_not_packed(tiny_base(model_type)) if model_type in ARCHITECTURES else None


_MOST_LOADED = 2e9  # advice loads local weights of models with fewer parameters
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def consulted(name: str, revision: str | None = None, max_length: int | None = None) -> Base:
    """Load a base for advice: with its weights if they are on this machine and not too large, else its outline.

    Raises:
        ModelError: there is no such model.
    """
    weightless = outline(name, revision, max_length)
    small = weightless.parameters < min(_MOST_LOADED, psutil.virtual_memory().available / 8)
    if small and _weights_are_local(name, revision):
        return load_base(name, revision=revision, dtype="float32", max_length=max_length)
    return weightless


def outline(name: str, revision: str | None = None, max_length: int | None = None) -> Base:
    """Build a base on the meta device: parameters have names and shapes, and no values.

    Raises:
        ModelError: there is no such model, or its layout is not known.
    """
    config, tokenizer = configuration(name, revision)
    with torch.device("meta"), readable(name):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    base = Base(model, tokenizer, name, revision, max_length)
    base.check_layout()
    return base


def _weights_are_local(name: str, revision: str | None) -> bool:
    path = path_of(name)
    if path.is_dir():
        return any(path.glob("*.safetensors"))
    cached = [
        cached_file(name, file, revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        for file in _WEIGHT_FILES
    ]
    return any(cached)
