"""Base models without their weights, built from the configuration and the tokenizer alone.

A `Sketch` is built inside `tunewise.advice.plan.ledger.fake_tensors()`, once for each technique that is measured; an
`outline` is built on torch's meta device. Neither takes memory, whatever the size of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.engine.configuration import UnloadedModel, path_of, read_unloaded, readable
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import AUTO, Base, PackingTrial, load_base, require_dtype, weights_dtype
from tunewise.engine.tiny import ARCHITECTURES, tiny_base
from tunewise.engine.vocabulary import fit_configuration


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
    dtype: str = AUTO,
    device_kind: str = "cpu",
    max_length: int | None = None,
    resize_embeddings: bool = False,
) -> Sketch:
    """Make the sketch of a folder, a Hub id, or "world"; only its configuration and its tokenizer are read.

    Raises:
        ModelError: they cannot be read, need remote code, the layout of the model is not known, or the tokenizer has
            ids beyond the embeddings, which `resize_embeddings` adds rows for.
    """
    require_dtype(dtype)
    unloaded = _read(name, revision, resize_embeddings)
    config, tokenizer = unloaded.config, unloaded.tokenizer
    weights = weights_dtype(dtype, config, device_kind)
    model_sketch = Sketch(str(name), config, tokenizer, weights, max_length, _unpacked(config.model_type))
    with fake_tensors(), readable(name):
        model_sketch.build().check_layout()
    return model_sketch


def _read(name: str | Path, revision: str | None, resize_embeddings: bool) -> UnloadedModel:
    """Read configuration and tokenizer, with as many embeddings as the base will have when it is loaded."""
    unloaded = read_unloaded(name, revision=revision)
    fit_configuration(name, unloaded.config, unloaded.tokenizer, resize_embeddings=resize_embeddings)
    return unloaded


def _unpacked(model_type: str) -> str | None:
    """Return why an architecture cannot be packed, as a tiny model of it shows; None if it can or none is known."""
    return why_not_packed(tiny_base(model_type)) if model_type in ARCHITECTURES else None


_MOST_LOADED = 2e9  # advice loads local weights of models with fewer parameters
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def consulted(
    name: str, revision: str | None = None, max_length: int | None = None, *, resize_embeddings: bool = False
) -> Base:
    """Load a base for advice: with its weights if they are on this machine and not too large, else its outline.

    Raises:
        ModelError: there is no such model.
    """
    weightless = outline(name, revision, max_length, resize_embeddings=resize_embeddings)
    small = weightless.parameters < min(_MOST_LOADED, psutil.virtual_memory().available / 8)
    if small and _weights_are_local(name, revision):
        return load_base(name, revision=revision, max_length=max_length, resize_embeddings=resize_embeddings)
    return weightless


def outline(
    name: str, revision: str | None = None, max_length: int | None = None, *, resize_embeddings: bool = False
) -> Base:
    """Build a base on the meta device: parameters have names and shapes, and no values.

    Raises:
        ModelError: there is no such model, its layout is not known, or its tokenizer has ids beyond the embeddings.
    """
    unloaded = _read(name, revision, resize_embeddings)
    with torch.device("meta"), readable(name):
        model = AutoModelForCausalLM.from_config(unloaded.config, trust_remote_code=False)
    base = Base(model, unloaded.tokenizer, name, revision, max_length)
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
