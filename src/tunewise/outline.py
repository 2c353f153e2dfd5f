"""A model without its weights: what advice needs of it, from its configuration and its tokenizer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from tunewise.errors import ModelError
from tunewise.model import SHIPPED, Base, load_base

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
    path = SHIPPED if name == "world" else Path(name).expanduser()
    source = str(path) if path.exists() else name
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises some ten types here; all of them mean "cannot be read"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{name}: its configuration or tokenizer cannot be read: {reason}") from error
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
