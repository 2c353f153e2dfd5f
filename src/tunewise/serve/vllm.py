"""Another server in tunewise's place: the command that starts vLLM on the adaptations' own PEFT files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewise.core import artifact_writer
from tunewise.core.addresses import shipped_model
from tunewise.core.errors import SettingError

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank can be


def vllm_command(folders: Mapping[str, Path], model: str | None, host: str, port: int) -> list[str]:
    """`vllm serve` for these adaptations.

    Raises:
        SettingError: one of them is none that vLLM can serve, or they are not of one base.
    """
    bases, ranks = set[tuple[Any, ...]](), [1]
    for name, folder in folders.items():
        config, facts = _adapter(name, folder)
        ranks.append(max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())]))
        base = facts.get("base", {"name": config.get("base_model_name_or_path")})
        bases.add(tuple(base.get(key) for key in ("name", "revision", "dtype", "max_length")))
    if len(bases) != 1:
        raise SettingError(f"the adaptations were made on {len(bases)} different bases; serve those of one")
    recorded, revision, dtype, length = bases.pop()
    rank = next((size for size in _RANKS if size >= max(ranks)), None)
    if rank is None:
        raise SettingError(f"vLLM serves ranks up to {_RANKS[-1]}, and one here has {max(ranks)}; leave --engine out")
    source = shipped_model(str(model or recorded)) or model or recorded
    command = ["vllm", "serve", str(source), "--host", host, "--port", str(port)]
    command += ["--served-model-name", Path(str(model or recorded)).name]
    command += ["--revision", revision] if revision and not model else []
    command += ["--dtype", dtype] if dtype else []
    command += ["--max-model-len", str(length)] if length else []
    command += ["--enable-lora", "--max-loras", str(len(folders)), "--max-lora-rank", str(rank)]
    return [*command, "--lora-modules", *(f"{name}={folder}" for name, folder in folders.items())]


def _adapter(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The PEFT configuration and the record of an adaptation that vLLM can serve."""
    if (folder / "manifest.json").exists():
        stored = artifact_writer.read(folder)
        facts = stored.json("adaptation.json")
        config = stored.json("adapter_config.json") if "adapter_config.json" in stored.names else {}
    else:
        facts, config = {}, artifact_writer.read_json((folder / "adapter_config.json").resolve())
    technique = facts.get("technique") or str(config.get("peft_type")).lower()
    reason = None
    if config.get("peft_type") != "LORA":
        reason = "it serves LoRA alone"
    elif config.get("use_dora"):
        reason = "it serves no DoRA"
    elif config.get("modules_to_save") or config.get("bias", "none") != "none":
        reason = "it takes neither biases nor whole modules from an adapter"
    if reason:
        raise SettingError(f"vLLM cannot serve {name} ({technique}): {reason}; leave --engine out")
    return config, facts
