"""The atlas on disk: the records of the package, those that a user added, and how a comparison becomes one."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tunewise.advice.atlas.schema import SCHEMA, Record, read, record_of
from tunewise.advice.features import Features
from tunewise.core import artifact_reader, artifact_writer
from tunewise.core.errors import ArtifactError, SettingError

SHIPPED = Path(__file__).parent / "measured"
HOME = "TUNEWISE_HOME"
_COSTS = (
    *("train_seconds", "seconds_per_example", "peak_memory_bytes", "optimised_parameters", "stored_parameters"),
    *("artifact_bytes", "prompt_tokens", "merges", "swappable"),
)


def own_folder() -> Path:
    """Where a user's records are: `atlas` below `TUNEWISE_HOME`, which is ~/.cache/tunewise by default."""
    home = os.environ.get(HOME) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunewise"
    return Path(home).expanduser() / "atlas"


def all_records() -> dict[str, Record]:
    """Every record by name: the package's, then the user's own, which replace those of the same name.

    Raises:
        ArtifactError: a file there is no record.
    """
    return {**shipped(), **_read_all(own_folder())}


@cache
def shipped() -> dict[str, Record]:
    """The records of the package."""
    return _read_all(SHIPPED)


def find(name: str) -> Record:
    """The record of this name.

    Raises:
        SettingError: there is none.
    """
    known = all_records()
    if name not in known:
        raise SettingError(f'the atlas has no record "{name}"; it has {", ".join(known) or "none"}')
    return known[name]


def add(record: Record, folder: Path | None = None) -> Path:
    """Write a record to a folder (default: the user's own); the path of its file."""
    path = (folder or own_folder()) / f"{record.name}.json"
    artifact_writer.output_folder(path.parent)
    artifact_writer.write_text(path, json.dumps(record.model_dump(by_alias=True), separators=(",", ":")) + "\n")
    return path


def comparison(folder: Path) -> dict[str, Any]:
    """The content of a finished comparison's `compare.json`.

    Raises:
        SettingError: there is none, or it is not finished.
        ArtifactError: it cannot be read, or is not one that can be recorded.
    """
    path = folder / "compare.json"
    if not path.is_file():
        raise SettingError(f"{folder}: holds no comparison (no compare.json); give the --out of tunewise compare")
    if not (folder / "report.md").is_file():
        raise SettingError(f"{folder}: the comparison there is not finished (no report.md); run its command again")
    return artifact_reader.read_json(path, limit_bytes=1 << 26)


def record(result: Mapping[str, Any], features: Features, name: str | None, path: Path) -> Record:
    """What is kept of a comparison.

    Args:
        result: the content of its `compare.json`.
        features: of its task and model; see `tunewise.advice.features.measure`.
        name: of the record; default: MODEL.TASK.
        path: of the file, for errors.

    Raises:
        ArtifactError: something that a record needs is missing or not as it should be.
    """
    try:
        model, task, budget, machine = (result[key] for key in ("model", "task", "budget", "machine"))
        value = {
            "schema": SCHEMA,
            "name": name or f"{_plain(model['name'])}.{_plain(task['name'])}",
            "model": {key: model[key] for key in ("name", "architecture", "parameters", "fingerprint")},
            "task": {
                **{key: task[key] for key in ("name", "source", "kind", "metric", "train", "validation", "test")},
                "fingerprint": task["fingerprint"],
            },
            "features": features.to_json(),
            "budget": {
                **{key: budget[key] for key in ("steps", "tokens", "search", "seeds")},
                "rows": rows_of(result),
            },
            "provenance": {
                "command": shlex.join(result["command"] or []),
                "tunewise": result["tunewise"],
                "created": result["created"],
                **{key: machine[key] for key in ("torch", "transformers", "device", "processor", "threads")},
                "retention": result["retention"]["source"],
                "probe": result["retention"]["probe"],
            },
            "rows": [_row(row) for row in result["rows"]],
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path}: not as tunewise writes it ({error!r})") from error
    return record_of(value, path)


def rows_of(result: Mapping[str, Any]) -> int:
    """Examples of one optimiser step of a comparison."""
    settings = result["settings"]
    return int(settings["per_device_train_batch_size"]) * int(settings["gradient_accumulation_steps"])


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        **{key: row[key] for key in ("technique", "status", "reason", "learning_rate")},
        "settings": row.get("settings", {}),
        **dict.fromkeys(("score", "nll", "p_value", "forgetting", "cost")),
    }
    if "score" not in row or row["status"] != "ok":
        return found
    forgetting = row["forgetting"] or {}
    return found | {
        "score": {key: row["score"][key] for key in ("mean", "low", "high", "per_seed")},
        "nll": row["nll"],
        "p_value": row["p_value"],
        "forgetting": {"nll_rise": forgetting["nll_rise"], "probe": forgetting.get("probe")} if forgetting else None,
        "cost": {"seconds": row["spent"]["seconds"], **{key: row["cost"][key] for key in _COSTS}},
    }


def _read_all(folder: Path) -> dict[str, Record]:
    found = [read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return {each.name: each for each in found}


def _plain(name: str) -> str:
    """A name's last part, with what a file name may not have replaced."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", Path(str(name)).name).strip("-") or "unnamed"
