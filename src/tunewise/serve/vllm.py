"""vLLM in place of tunewise's own server: the command that starts it on the adaptations' PEFT files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunewise.core import artifact_writer
from tunewise.core.addresses import shipped_model
from tunewise.core.errors import SettingError

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM's --max-lora-rank takes


class _RecordedBase(NamedTuple):
    """The base that an adaptation was made on, as its files record it."""

    name: str | None
    revision: str | None
    dtype: str | None
    max_length: int | None


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
    source = shipped_model(str(model or base.name)) or model or base.name
    command = ["vllm", "serve", str(source), "--host", host, "--port", str(port)]
    command += ["--served-model-name", Path(str(model or base.name)).name]
    command += ["--revision", base.revision] if base.revision and not model else []
    command += ["--dtype", base.dtype] if base.dtype else []
    command += ["--max-model-len", str(base.max_length)] if base.max_length else []
    command += ["--enable-lora", "--max-loras", str(len(folders)), "--max-lora-rank", str(rank)]
    return [*command, "--lora-modules", *(f"{name}={folder}" for name, folder in folders.items())]


def _adapter(name: str, folder: Path) -> _Adapter:
    """Read an adaptation's PEFT configuration and its base.

    Raises:
        SettingError: vLLM cannot serve it.
    """
    if (folder / "manifest.json").exists():
        stored = artifact_writer.read(folder)
        record = stored.json("adaptation.json")
        config = stored.json("adapter_config.json") if "adapter_config.json" in stored.names else {}
    else:
        record, config = {}, artifact_writer.read_json((folder / "adapter_config.json").resolve())
    technique = record.get("technique") or str(config.get("peft_type")).lower()
    reason = None
    if config.get("peft_type") != "LORA":
        reason = "it serves LoRA alone"
    elif config.get("use_dora"):
        reason = "it serves no DoRA"
    elif config.get("modules_to_save") or config.get("bias", "none") != "none":
        reason = "it takes neither biases nor whole modules from an adapter"
    if reason:
        raise SettingError(f"vLLM cannot serve {name} ({technique}): {reason}; leave --engine out")
    base = record.get("base", {"name": config.get("base_model_name_or_path")})
    rank = max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])
    return _Adapter(_RecordedBase(*(base.get(field) for field in _RecordedBase._fields)), rank)
