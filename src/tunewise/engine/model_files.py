"""Checks what the files of a model ask for, before anything is built from them.

`transformers` builds as many modules as `config.json` says, takes an attention from the Hub where it names one, and
goes on to another model where an adapter lies beside it. A model that a user names may be anybody's, so that numbers
are bounded here, and no further name is followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunewise.core import artifact_reader
from tunewise.core.errors import ModelError
from tunewise.core.json_record import JsonObject
from tunewise.core.text import show

CONFIG_NAME, INDEX_NAME = "config.json", "model.safetensors.index.json"
_WEIGHTS_NAME = "model.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of types that become others without a scale
CONFIG_BYTES, INDEX_BYTES = 1 << 24, 1 << 26
_MOST_REPEATED = 1024  # layers, experts or blocks: each is a module, or a list of them in every layer
_MOST_COUNTED = 1 << 20  # labels, heads, positions
_REPEATED = re.compile(r"(num|n)_(\w+_)?(layers?|experts?|blocks?)(_\w+)?|\w*_layers|depth")
_EXPRESSION = re.compile(r"[*+?{}()\[\]|\\^$]")  # characters that mean more than themselves
_LARGEST = 1 << 48
_COUNTED = re.compile(r"(num|n)_\w+")
_IMPLEMENTATIONS = ("eager", "sdpa", "batched_mm", "grouped_mm")  # that need nothing besides torch
_VALUES_PER_BYTE = 16  # of a checkpoint, at most: 4-bit weights have two


def read_configuration(name: str | Path, source: str, revision: str | None) -> Any:
    """Read a model's configuration.

    Args:
        name: what the model is called in errors.
        source: a folder or a Hub id.
        revision: Hub branch, tag or commit.

    Raises:
        ModelError: it asks for too much, for code or for another model; the message names the field.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    file = cached_file(source, CONFIG_NAME, revision=revision)
    content = _content(name, Path(str(file)))
    for key, value in _numbers(content):
        most = _MOST_REPEATED if _REPEATED.fullmatch(key) else _MOST_COUNTED if _COUNTED.fullmatch(key) else _LARGEST
        if abs(value) > most:
            raise ModelError(f"{name}: its {CONFIG_NAME} has {show(key)} above {most:,}; use an undamaged copy of it")
    for text in _texts(content.get("quantization_config")):
        if _EXPRESSION.search(text):
            raise ModelError(
                f"{name}: its {CONFIG_NAME} has {show(text)} in quantization_config, a regular expression, and none "
                "from a file is run; use a checkpoint that names modules"
            )
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        for key in ("attn_implementation", "experts_implementation"):
            implementation = getattr(part, f"_{key}", None)
            if implementation not in (None, *_IMPLEMENTATIONS):
                raise ModelError(
                    f"{name}: its {CONFIG_NAME} has {key}={show(str(implementation))}, which may be code from the Hub, "
                    "and code that a file names is not run; remove the line"
                )
    if find_adapter_config_file(source, revision=revision) is not None:
        raise ModelError(
            f"{name}: an adapter_config.json lies beside the model, and transformers would apply that adapter; name a "
            "model without one, and load the adapter as an adaptation"
        )
    return config


def check_checkpoint(name: str | Path, folder: Path, config: Any) -> None:
    """Check that a folder's weights are files in it, and that the model is not much larger than they are.

    Raises:
        ModelError: a file lies elsewhere, or the configuration asks for more values than the files can hold.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if (folder / INDEX_NAME).is_file():
        index = artifact_reader.read_json((folder / INDEX_NAME).resolve(), limit_bytes=INDEX_BYTES)
        shards = index.get("weight_map")
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        for shard in sorted(names):
            if Path(shard).name != shard:
                raise ModelError(f"{name}: its {INDEX_NAME} names {show(shard)}, which is outside of the folder")
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    values = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if stored and values > _VALUES_PER_BYTE * stored:
        raise ModelError(
            f"{name}: its {CONFIG_NAME} describes a model of {values:.3g} values, and its weights have {stored:,} "
            "bytes; download or save it again"
        )


def require_floats(name: str | Path, folder: Path, model: Any) -> None:
    """Refuse a checkpoint whose weights are no floats; transformers would take integers and float8 for their values.

    The headers of the files are read, not the weights. A checkpoint that says how it is quantised is not looked at.

    Raises:
        ModelError: names the file, the tensor and its type.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return
    parameters = [parameter for parameter, _ in model.named_parameters()]
    for file, tensor, kind in _stored_tensors(folder):
        is_weight = tensor.endswith(".weight") or any(f".{known}".endswith(f".{tensor}") for known in parameters)
        if kind not in _FLOATS and is_weight:
            raise ModelError(
                f'{name}: {file} holds "{show(tensor, 200)}" as {kind}, where a weight is one of '
                f"{', '.join(_FLOATS)}; save the model again in one of them, or with its quantization_config"
            )


def file_of(folder: Path, tensor: str) -> str:
    """Return which file of a checkpoint holds a tensor, for errors; that of a single file where it has another name."""
    files = {stored: file for file, stored, _ in _stored_tensors(folder)}
    return files.get(tensor) or (_WEIGHTS_NAME if not (folder / INDEX_NAME).is_file() else "its checkpoint")


def _stored_tensors(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield file, name and type of every tensor of a checkpoint."""
    from safetensors import safe_open

    shards = {_WEIGHTS_NAME}
    if (folder / INDEX_NAME).is_file():
        index = artifact_reader.read_json((folder / INDEX_NAME).resolve(), limit_bytes=INDEX_BYTES)
        shards = set(map(str, index["weight_map"].values()))
    for shard in sorted(shards):
        if (folder / shard).is_file():
            with safe_open(folder / shard, framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118 (it is no dictionary)
                    yield shard, tensor, str(file.get_slice(tensor).get_dtype())


def _content(name: str | Path, path: Path) -> JsonObject:
    with path.open("rb") as file:
        raw = file.read(CONFIG_BYTES + 1)
    if len(raw) > CONFIG_BYTES:
        raise ModelError(f"{name}: its {CONFIG_NAME} has more than {CONFIG_BYTES} bytes")
    try:
        content = json.loads(raw)
    except RecursionError:
        raise ModelError(f"{name}: its {CONFIG_NAME} is nested too deeply") from None
    if not isinstance(content, dict):
        raise ModelError(f"{name}: its {CONFIG_NAME} is not a JSON object")
    return content


def _numbers(value: object, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield every whole number in a parsed file with the key that it stands under."""
    for name, each in _inside(value, key):
        yield from _numbers(each, name)
    if isinstance(value, int) and not isinstance(value, bool):
        yield key, value


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a part of a parsed file, keys included."""
    for name, each in _inside(value, ""):
        yield name
        yield from _texts(each)
    if isinstance(value, str):
        yield value


def _inside(value: object, key: str) -> Iterable[tuple[str, object]]:
    if isinstance(value, dict):
        return value.items()
    return [(key, each) for each in value] if isinstance(value, list) else ()
