"""vLLM in place of tunewise's own server: the command that starts it on the adaptations' PEFT files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunewise.adaptation.artifact import FILE
from tunewise.adaptation.peft_adapter import read_config
from tunewise.adaptation.record import AdaptationRecord
from tunewise.core import artifact_writer
from tunewise.core.addresses import shipped_model
from tunewise.core.errors import SettingError
from tunewise.core.json_record import JsonObject
from tunewise.core.text import show
from tunewise.engine.configuration import on_this_machine

_STARTS_ON_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")  # of PEFT's init_lora_weights
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM's --max-lora-rank takes


class _RecordedBase(NamedTuple):
    """The base that an adaptation was made on, as its files record it."""

    name: str | None
    revision: str | None = None
    dtype: str | None = None
    max_length: int | None = None

    @classmethod
    def of(cls, record: AdaptationRecord) -> _RecordedBase:
        """Take the base of an adaptation."""
        base = record.base
        return cls(base.name, base.revision, base.dtype, base.max_length)

    @classmethod
    def of_peft(cls, config: JsonObject) -> _RecordedBase:
        """Take the base of a PEFT adapter."""
        return cls(config.get("base_model_name_or_path"), config.get("revision"))


@dataclass(frozen=True)
class _Adapter:
    """What vLLM must be told of one adapter."""

    base: _RecordedBase
    rank: int


def vllm_command(folders: Mapping[str, Path], model: str | None, host: str, port: int) -> list[str]:
    """Build the `vllm serve` command for adaptations.

    Args:
        folders: the adaptations' folders by name.
        model: where the base is; default: the name that the adaptations record.
        host: the address to listen on.
        port: the port to listen on.

    Raises:
        SettingError: vLLM cannot serve one of them, or they are not of one base.
    """
    adapters = [_adapter(name, folder) for name, folder in folders.items()]
    bases = {adapter.base for adapter in adapters}
    if len(bases) != 1:
        raise SettingError(f"the adaptations were made on {len(bases)} different bases; serve those of one")
    base = bases.pop()
    largest = max(1, *(adapter.rank for adapter in adapters))
    rank = next((size for size in _RANKS if size >= largest), None)
    if rank is None:
        raise SettingError(f"vLLM serves ranks up to {_RANKS[-1]}, and one here has {largest}; leave --engine out")
    command = ["vllm", "serve", _location(model, base), "--host", host, "--port", str(port)]
    command += ["--served-model-name", Path(str(model or base.name)).name.lstrip("-")]  # a name is no option
    command += ["--dtype", base.dtype] if base.dtype else []
    command += ["--max-model-len", str(base.max_length)] if base.max_length else []
    command += ["--enable-lora", "--max-loras", str(len(folders)), "--max-lora-rank", str(rank)]
    return [*command, "--lora-modules", *(f"{name}={folder}" for name, folder in folders.items())]


def _location(model: str | None, base: _RecordedBase) -> str:
    """Return where vLLM loads the base from: what is given, or the recorded one where it is on this machine.

    Raises:
        SettingError: only a file names it, and vLLM would download it.
    """
    if model is not None:
        return str(shipped_model(model) or model)
    folder = on_this_machine(base.name, base.revision) if base.name else None
    if folder is None:
        named = (
            f' that their files name, "{show(base.name, 300)}", is not on this machine'
            if base.name
            else " is not named"
        )
        raise SettingError(f"the base{named}; say with --model which one vLLM is to load")
    return str(folder.resolve())


def _adapter(name: str, folder: Path) -> _Adapter:
    """Read an adaptation's PEFT configuration and its base.

    Raises:
        ArtifactError: a file is damaged, or not as tunewise or PEFT writes it.
        SettingError: vLLM cannot serve it.
    """
    record, config = None, {}
    if (folder / "manifest.json").exists():
        stored = artifact_writer.read(folder)
        record = AdaptationRecord.of_file(stored.json(FILE), folder / FILE)
    if record is None or "adapter_config.json" in stored.names:
        config = read_config(folder)
    technique = record.technique if record is not None else str(config.get("peft_type")).lower()
    reason = None
    if config.get("peft_type") != "LORA":
        reason = "it serves LoRA alone"
    elif config.get("use_dora"):
        reason = "it serves no DoRA"
    elif config.get("init_lora_weights") not in (None, True, False, *_STARTS_ON_THE_BASE):
        reason = f"it does not change the base as init_lora_weights={config['init_lora_weights']} does"
    elif record is not None and record.base.embedding_rows:
        reason = "its base was given embeddings for added tokens"
    elif config.get("modules_to_save") or config.get("trainable_token_indices") or config.get("bias", "none") != "none":
        reason = "it takes neither biases nor modules nor tokens from an adapter"
    if reason:
        raise SettingError(f"vLLM cannot serve {name} ({show(technique)}): {reason}; leave --engine out")
    rank = max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])
    return _Adapter(_RecordedBase.of(record) if record is not None else _RecordedBase.of_peft(config), rank)
