"""Loads a base: safetensors only, no remote code, every parameter frozen, fingerprinted.

`name` is a local folder or a Hub id (`org/name`), found through the Hugging Face cache and environment variables.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import torch

from tunewise.core.errors import ModelError
from tunewise.core.text import listed, show
from tunewise.engine.anatomy import Anatomy
from tunewise.engine.configuration import ends_of, on_this_machine, path_of, require_fast
from tunewise.engine.context import require_divisible
from tunewise.engine.device import has_bf16_arithmetic
from tunewise.engine.label_tokens import LabelTokens
from tunewise.engine.memory import release_unused_memory
from tunewise.engine.model_files import check_checkpoint, file_of, read_configuration, require_floats
from tunewise.engine.ranks import Ranks
from tunewise.engine.sharding import INSTEAD, ShardedModel, distribution
from tunewise.engine.shards import local, whole
from tunewise.engine.vocabulary import require_embeddings, rows_requested

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
AUTO = "auto"  # the type that `weights_dtype` chooses
_NARROW = 512  # models of smaller widths are quick in float32, and give the same numbers on every machine


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
    `embedding_rows` is the number of rows that `resize_embeddings` gave the model, or None where it was not called.
    `label_tokens` keeps what labels were tokenized to. `ranks` says which share of the work is this process's, and
    `shards` gathers the weights where each device holds a part of them. `waiting` is the device that the weights are
    still to be moved to, by a technique that packs them on the way (`place`), or None; until then they are on the CPU.
    `uses_liger` says whether the model has the kernels of `tunewise.engine.liger`.

    Examples:
        >>> base = load_base("world")
        >>> base.parameters, base.window, len(base.anatomy.blocks)
        (3049920, 512, 6)
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "model"
    revision: str | None = None
    max_length: int | None = None
    attached: list[Any] = field(default_factory=list, repr=False)
    frozen_fingerprint: str | None = field(default=None, repr=False, compare=False)
    packing: PackingTrial | None = field(default=None, repr=False, compare=False)
    embedding_rows: int | None = field(default=None, repr=False)
    label_tokens: LabelTokens = field(default_factory=LabelTokens, repr=False, compare=False)
    ranks: Ranks = field(default_factory=Ranks)
    shards: ShardedModel | None = field(default=None, repr=False, compare=False)
    waiting: torch.device | None = field(default=None, repr=False, compare=False)
    uses_liger: bool = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.model.requires_grad_(False).eval()

    @cached_property
    def anatomy(self) -> Anatomy:
        """The named parts of the model."""
        return Anatomy(self.model)

    def within(self, work: Callable[[], T]) -> T:
        """Run work that reads weights by another way than the whole model's call, and return the tensors it makes.

        Where weights are shared out, they are gathered meanwhile; all devices must do so together.
        """
        return work() if self.shards is None else self.shards.run(work)

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

    def place(self, later: Collection[torch.nn.Parameter] = ()) -> Callable[[], None]:
        """Move the weights to the device that they wait for, except those that the caller moves itself.

        Returns:
            The way back: moves them to the CPU again, where they wait as before.
        """
        device, kept = self.waiting, {id(parameter) for parameter in later}
        if device is None:
            return lambda: None
        self._move(device, kept)
        self.waiting = None

        def back() -> None:
            self._move(torch.device("cpu"), kept)
            self.waiting = device

        return back

    def _move(self, device: torch.device, kept: Collection[int]) -> None:
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if id(tensor) not in kept and not tensor.is_meta:
                tensor.data = tensor.data.to(device)

    def drop_weights(self) -> None:
        """Free the memory of the weights, once the fingerprint is taken; sizes and names stay."""
        self.freeze_fingerprint()
        torch.nn.Module.to(self.model, "meta")
        release_unused_memory()

    def release(self, keep: int = 0) -> None:
        """Detach all but the first `keep` attachments, including one that failed half-way through attaching."""
        while len(self.attached) > keep:
            self.attached[-1].detach()

    @property
    def window(self) -> int:
        """Largest number of tokens of a sequence here: the model's context, or `max_length` where that is less."""
        return min(self.max_length or self.anatomy.context, self.anatomy.context)

    @property
    def vocabulary(self) -> int:
        """Rows of the input embeddings, which may exceed the tokenizer's vocabulary."""
        return self.anatomy.vocabulary

    def resize_embeddings(self, rows: int) -> None:
        """Give input embeddings and head so many rows; new ones are the mean of the existing ones.

        The mean is taken in float64 on the CPU, so that the same base gets the same rows wherever it is loaded.

        Raises:
            ModelError: the base is no longer bare, its fingerprint was taken, or there would be many more rows than
                tokens.
        """
        most = 2 * (self.vocabulary + len(self.tokenizer))
        if not 0 < rows <= most:
            raise ModelError(
                f"{self.name}: embeddings of {rows:,} rows are asked for, and 1 to {most:,} are given, twice the rows "
                "and tokens that there are"
            )
        if self.attached or self.frozen_fingerprint is not None:
            raise ModelError(f"{self.name}: embeddings are resized before anything is attached to the model")
        rows_before = self.vocabulary
        with torch.random.fork_rng(devices=[]):  # transformers draws the new rows at random, before they are replaced
            self.model.resize_token_embeddings(rows, mean_resizing=False)
        ends = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        with torch.no_grad():
            for tensor in (getattr(end, name, None) for end in ends for name in ("weight", "bias")):
                if tensor is not None and rows > rows_before:
                    mean = tensor[:rows_before].detach().cpu().double().mean(0)
                    tensor[rows_before:] = mean.to(tensor.device, tensor.dtype)
        self.model.requires_grad_(False)
        self.embedding_rows = rows

    @property
    def generation_ends(self) -> tuple[int, ...]:
        """Tokens that generation stops at, by the model's own generation settings."""
        return ends_of(getattr(self.model, "generation_config", None) or self.model.config)

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
                raw = whole(tensor).contiguous().cpu().flatten().view(torch.uint8)
                digest.update(raw.numpy().data)
            self.frozen_fingerprint = digest.hexdigest()
        return self.frozen_fingerprint

    def generate(self, **arguments: Any) -> torch.Tensor:
        """Run Hugging Face's generation on this model and return token ids (rows, prompt + new)."""
        ids = cast(torch.Tensor, cast(Any, self.model).generate(**arguments))
        if self.shards is not None:
            self.shards.release()
        return ids

    def describe(self) -> BaseRecord:
        """Return what files record of this base."""
        return {
            "name": self.name,
            "revision": self.revision,
            "architecture": type(self.model).__name__ if self.shards is None else self.shards.architecture,
            "parameters": self.parameters,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "fingerprint": self.fingerprint,
        }


def load_base(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = AUTO,
    device: str | None = None,
    max_length: int | None = None,
    resize_embeddings: bool | int = False,
    download: bool = True,
    ranks: Ranks | None = None,
    waits: bool = False,
) -> Base:
    """Load a causal language model and its tokenizer.

    Args:
        name: folder or Hub id, or "world" for the model that is shipped with the package.
        revision: Hub branch, tag or commit.
        dtype: type of the weights in memory, one of `DTYPES`, or "auto": see `weights_dtype`.
        device: torch device; default: the one accelerate chooses.
        max_length: longest sequence in tokens; default: the model's context.
        resize_embeddings: give the model embeddings for tokens that were added to its tokenizer: True for as many rows
            as the tokenizer takes, or a number of rows; the new ones are the mean of the existing ones.
        download: whether a model that is not on this machine is downloaded; False where a file names it, and no user.
        ranks: the processes that train together; where they are sharded, each loads a part of every weight.
        waits: leave the weights on the CPU for a technique that packs them while it moves them (`Base.place`), so that
            the device needs no room for all of them.

    Raises:
        ModelError: no such model, no safetensors weights, remote code required, an unknown layout, a tokenizer with
            ids beyond the embeddings, one of these arguments is given that a sharded model cannot have, or rows of
            this model cannot be divided among ranks.

    Examples:
        >>> load_base("world", max_length=256).window
        256
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.hub import cached_file, extract_commit_hash

    if max_length is not None and max_length < 8:
        raise ModelError(f"max_length is {max_length}, and a window below 8 tokens leaves no room for examples")
    require_dtype(dtype)
    kind, ranks = _kind_of(device), ranks or Ranks()
    if ranks.sharded and (device is not None or resize_embeddings):
        option = "--device" if device is not None else "--resize-embeddings"
        raise ModelError(f"{option} cannot be given with --shard; leave it out, or {INSTEAD}")
    path = path_of(name)
    if not download and not path.exists():
        path = _downloaded_before(str(name), revision)
    source = str(path) if path.exists() else str(name)
    if not path.exists() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise ModelError(f"{name}: there is no such folder; give a model folder or a Hub id (org/name)")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name}: the folder has no config.json; give the folder of a Hugging Face model")
    folder = path
    try:
        if not path.exists():  # pinned before anything is read, so that all parts come from one commit
            config_file = cached_file(source, "config.json", revision=revision)
            revision = extract_commit_hash(str(config_file), None) or revision
            folder = Path(str(config_file)).parent
        config = read_configuration(name, source, revision)
        require_divisible(name, config, ranks)
        if path.is_dir():
            check_checkpoint(name, path, config)
        load: Any = AutoModelForCausalLM.from_pretrained  # its types do not know the second result
        with distribution(config, ranks) as part:
            model, loading = load(
                source,
                config=config,
                dtype=weights_dtype(dtype, config, kind),
                use_safetensors=True,
                revision=revision,
                trust_remote_code=False,
                output_loading_info=True,
                **_placement(part, device, kind, waits=waits),
            )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise _no_room(device, error) from error
    except Exception as error:  # transformers raises some ten types here; all of them mean "cannot be loaded"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{name}: cannot be loaded as a causal language model: {reason}") from error
    _require_whole(name, folder, model, loading)
    require_fast(name, tokenizer)
    shards = ShardedModel(model) if ranks.sharded else None
    base = Base(model, tokenizer, str(name), revision, max_length, ranks=ranks, shards=shards)
    base.check_layout()
    rows = rows_requested(tokenizer, resize_embeddings)
    if rows > base.vocabulary:
        base.resize_embeddings(rows)
    require_embeddings(name, tokenizer, base.vocabulary)
    if shards is not None:  # each part is on its device already
        base.freeze_fingerprint()  # later on, a single rank may ask for it
        return base
    if waits and kind != "cpu":
        base.waiting = torch.device(device or _default_device())
        return base
    try:
        cast(Any, model).to(device or _default_device())
    except (RuntimeError, AssertionError) as error:
        raise _no_room(device, error) from error
    return base


def _placement(part: object, device: str | None, kind: str, *, waits: bool) -> dict[str, object]:
    """Return how transformers places the weights: parts of them, or straight onto a GPU, or on the CPU for now."""
    if part is not None:
        return {"distributed_config": part}
    straight = kind == "cuda" and torch.cuda.is_available() and not waits
    return {"device_map": {"": torch.device(device or _default_device())}} if straight else {}


def _no_room(device: str | None, error: Exception) -> ModelError:
    where = f'device "{device}"' if device is not None else "the default device"
    return ModelError(f"the model cannot be put on {where}: {' '.join(str(error).split())[:200]}")


def require_dtype(name: str) -> None:
    """Refuse what is neither one of `DTYPES` nor "auto".

    Raises:
        ModelError: says what can be given.
    """
    if name not in (AUTO, *DTYPES):
        raise ModelError(f'dtype "{name}" is not one of {", ".join((AUTO, *DTYPES))}')


def weights_dtype(name: str, config: Any, kind: str) -> torch.dtype:
    """Return the type of a model's weights in memory.

    By "auto" a model that is stored in half precision is bfloat16 where devices of type `kind` compute in it at full
    speed, and everything else is float32: also what is so narrow that it is quick anyway.
    """
    if name != AUTO:
        return DTYPES[name]
    is_half = str(getattr(config, "dtype", None)).removeprefix("torch.") in ("bfloat16", "float16")
    is_wide = (getattr(config, "hidden_size", None) or _NARROW) >= _NARROW
    return torch.bfloat16 if is_half and is_wide and has_bf16_arithmetic(kind) else torch.float32


def _kind_of(device: str | None) -> str:
    return str(device).partition(":")[0] if device else _default_device().type


def _downloaded_before(name: str, revision: str | None) -> Path:
    """Return the folder of a model in the Hub's cache; raises `ModelError` if it is not there."""
    folder = on_this_machine(name, revision)
    if folder is None:
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{show(name, 300)}: there is no such folder, and no such model{at} in the Hub's cache; a model that only "
            "a file names is not downloaded"
        )
    return folder


def _require_whole(name: str | Path, folder: Path, model: Any, loading: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly those of the architecture, or are not all finite floats.

    transformers fills tensors that are missing with random numbers, and leaves out those that it does not know.
    """
    for problem, key in (
        ("lacks tensors of the architecture", "missing_keys"),
        ("holds tensors that the architecture does not have", "unexpected_keys"),
        ("holds tensors of other shapes than config.json says", "mismatched_keys"),
    ):
        if found := sorted(map(str, loading.get(key) or ())):
            file = "" if key == "missing_keys" else f" in {file_of(folder, found[0])}"
            raise ModelError(f"{name}: the checkpoint {problem} ({listed(found[:3])}{file}); download or save it again")
    require_floats(name, folder, model)
    for tensor_name, tensor in model.state_dict().items():
        part = local(tensor)
        if part.is_floating_point() and part.numel() and not all(map(math.isfinite, _extremes(part))):
            raise ModelError(
                f'{name}: {file_of(folder, tensor_name)} holds values in "{tensor_name}" that are not finite; download '
                "or save it again"
            )


def _extremes(tensor: torch.Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value; both are NaN where one value is."""
    low, high = torch.aminmax(tensor.detach())
    return float(low), float(high)


def _default_device() -> torch.device:
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device
