"""A model without its weights: what advice needs of it, from its configuration and its tokenizer alone."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.hub import cached_file

from tunewise.advice.plan.weightless import configuration, readable
from tunewise.engine.model import SHIPPED, Base, load_base

_LOADED = 2e9  # parameters up to which advice loads weights that are at hand
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def consulted(name: str, revision: str | None = None, max_length: int | None = None) -> Base:
    """A base to ask for advice: with its weights where they are on this machine and not too large, else in outline.

    Raises:
        ModelError: there is no such model.
    """
    outlined = outline(name, revision, max_length)
    small = outlined.parameters < min(_LOADED, psutil.virtual_memory().available / 8)
    if small and _at_hand(name, revision):
        return load_base(name, revision=revision, dtype="float32", max_length=max_length)
    return outlined


def outline(name: str, revision: str | None = None, max_length: int | None = None) -> Base:
    """A base on no device: names and shapes, no values.

    Raises:
        ModelError: there is no such model, or its layout is not known.
    """
    config, tokenizer = configuration(name, revision)
    with torch.device("meta"), readable(name):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    base = Base(model, tokenizer, name, revision, max_length)
    base.anatomy  # noqa: B018 (an unknown layout is refused here)
    return base


def _at_hand(name: str, revision: str | None) -> bool:
    path = SHIPPED if name == "world" else Path(name).expanduser()
    if path.is_dir():
        return any(path.glob("*.safetensors"))
    found = [
        cached_file(name, file, revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        for file in _WEIGHTS
    ]
    return any(found)
