"""A base without its weights: built from its configuration and its tokenizer alone, again for each thing that is tried.

A sketch is built inside `tunewise.advice.plan.ledger.fake_tensors()`, so that a model of any size costs no memory.
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
    """What is known of a model without its weights; `unpacked` says why its architecture cannot be packed, if so."""

    name: str
    config: Any
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    max_length: int | None
    unpacked: str | None

    def build(self) -> Base:
        """The base, bare and without contents; call inside `fake_tensors()`."""
        model = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype, trust_remote_code=False)
        return Base(
            model,
            self.tokenizer,
            self.name,
            None,
            self.max_length,
            frozen_fingerprint="sketch",  # there are no weights to take one of
            packing=PackingTrial(self.unpacked),
        )


def sketch(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    max_length: int | None = None,
) -> Sketch:
    """The sketch of a folder, a Hub id, or "world"; only its configuration and its tokenizer are read.

    Raises:
        ModelError: neither can be read, remote code is wanted, or a layout that nobody knows.
    """
    if dtype not in DTYPES:
        raise ModelError(f'dtype "{dtype}" is not one of {", ".join(DTYPES)}')
    config, tokenizer = configuration(name, revision)
    found = Sketch(str(name), config, tokenizer, DTYPES[dtype], max_length, _unpacked(config.model_type))
    with fake_tensors(), readable(name):
        found.build().check_layout()
    return found


def configuration(name: str | Path, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """The configuration and the tokenizer of a folder, a Hub id, or "world".

    Raises:
        ModelError: there is no such model, or remote code is wanted.
    """
    path = path_of(name)
    if not path.exists() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise ModelError(f"{name}: there is no such folder; give a model folder or a Hub id (org/name)")
    source, common = str(path) if path.exists() else str(name), {"revision": revision, "trust_remote_code": False}
    with readable(name):
        return AutoConfig.from_pretrained(source, **common), AutoTokenizer.from_pretrained(source, **common)


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """One kind of error for what cannot be read."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # transformers raises some ten types here; all of them mean "cannot be read"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{name}: its configuration or tokenizer cannot be read: {reason}") from error


def _unpacked(model_type: str) -> str | None:
    """Why this architecture cannot be packed, found on a tiny model of it; one that has none here is taken to pack."""
    return why_not_packed(tiny_base(model_type)) if model_type in ARCHITECTURES else None


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
    base.check_layout()
    return base


def _at_hand(name: str, revision: str | None) -> bool:
    path = path_of(name)
    if path.is_dir():
        return any(path.glob("*.safetensors"))
    found = [
        cached_file(name, file, revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        for file in _WEIGHTS
    ]
    return any(found)
