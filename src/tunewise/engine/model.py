"""Loads a base: safetensors only, no remote code, every parameter frozen, fingerprinted.

`name` is a local folder or a Hub id (`org/name`), found through the Hugging Face cache and environment variables.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from tunewise.core.addresses import shipped_model
from tunewise.core.errors import ModelError
from tunewise.engine.anatomy import Anatomy

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class PackingTrial:
    """Holds the outcome of trying packed rows on a base: `reason` says why it cannot run them, or is None."""

    reason: str | None


class BaseRecord(TypedDict):
    """What files record of a base."""

    name: str
    revision: str | None
    architecture: str
    parameters: int
    dtype: str
    fingerprint: str


@dataclass
class Base:
    """A loaded, frozen causal language model with its tokenizer.

    The model stays in evaluation mode while techniques train: its own dropout would make what is frozen random.
    `frozen_fingerprint` is the fingerprint once it has been taken, and `packing` the outcome of trying packed rows
    once they were tried (`tunewise.engine.forward.why_not_packed`). Both are computed on the bare base when they are
    first needed. Code that builds a base without weights passes them, as neither can be computed there.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "model"
    revision: str | None = None
    max_length: int | None = None
    attached: list[Any] = field(default_factory=list, repr=False)
    frozen_fingerprint: str | None = field(default=None, repr=False, compare=False)
    packing: PackingTrial | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.model.requires_grad_(False).eval()

    @cached_property
    def anatomy(self) -> Anatomy:
        """The named parts of the model."""
        return Anatomy(self.model)

    def check_layout(self) -> None:
        """Refuse a model whose parts cannot be found now, and not after minutes of work.

        Raises:
            ModelError: no layout that is known fits it.
        """
        _ = self.anatomy

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.anatomy.embedding.weight.device

    def release(self, keep: int = 0) -> None:
        """Detach all but the first `keep` attachments, including one that failed half-way through attaching."""
        while len(self.attached) > keep:
            self.attached[-1].detach()

    @property
    def window(self) -> int:
        """Largest number of tokens of a sequence here: the model's context, or `max_length` where that is less."""
        return min(self.max_length or self.anatomy.context, self.anatomy.context)

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and bytes of all weights; computed at first use, on the bare base."""
        return self.freeze_fingerprint()

    def freeze_fingerprint(self) -> str:
        """Compute the fingerprint once, while the base is bare, so that later changes do not enter it."""
        if self.frozen_fingerprint is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.named_parameters()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                raw = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
                digest.update(raw.numpy().data)
            self.frozen_fingerprint = digest.hexdigest()
        return self.frozen_fingerprint

    def generate(self, **arguments: Any) -> torch.Tensor:
        """Run Hugging Face's generation on this model and return token ids (rows, prompt + new)."""
        return cast(torch.Tensor, cast(Any, self.model).generate(**arguments))

    def describe(self) -> BaseRecord:
        """Return what files record of this base."""
        return {
            "name": self.name,
            "revision": self.revision,
            "architecture": type(self.model).__name__,
            "parameters": self.parameters,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "fingerprint": self.fingerprint,
        }


def load_base(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    max_length: int | None = None,
) -> Base:
    """Load a causal language model and its tokenizer.

    Args:
        name: folder or Hub id, or "world" for the model that is shipped with the package.
        revision: Hub branch, tag or commit.
        dtype: type of the weights in memory, one of `DTYPES`.
        device: torch device; default: the one accelerate chooses.
        max_length: longest sequence in tokens; default: the model's context.

    Raises:
        ModelError: no such model, no safetensors weights, remote code required, or an unknown layout.
    """
    if max_length is not None and max_length < 8:
        raise ModelError(f"max_length is {max_length}, and a window below 8 tokens leaves no room for examples")
    if dtype not in DTYPES:
        raise ModelError(f'dtype "{dtype}" is not one of {", ".join(DTYPES)}')
    path = path_of(name)
    source = str(path) if path.exists() else str(name)
    if not path.exists() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise ModelError(f"{name}: there is no such folder; give a model folder or a Hub id (org/name)")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name}: the folder has no config.json; give the folder of a Hugging Face model")
    try:
        if not path.exists():  # pinned before anything is read, so that all parts come from one commit
            config_file = cached_file(source, "config.json", revision=revision)
            revision = extract_commit_hash(str(config_file), None) or revision
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            revision=revision,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises some ten types here; all of them mean "cannot be loaded"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{name}: cannot be loaded as a causal language model: {reason}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: its tokenizer has no fast version (tokenizer.json); convert it with transformers")
    try:
        cast(Any, model).to(device or _default_device())
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f'the model cannot be put on device "{device}": {" ".join(str(error).split())[:200]}'
        ) from error
    base = Base(model, tokenizer, str(name), revision, max_length)
    base.check_layout()
    return base


def path_of(name: str | Path) -> Path:
    """Return the folder that a model's name stands for, whether it exists or not; "world" is the shipped one."""
    return shipped_model(str(name)) or Path(name).expanduser()


def _default_device() -> torch.device:
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device
