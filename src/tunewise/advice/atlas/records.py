"""The atlas on disk: the records of the package, those that a user added, and how a comparison becomes one."""

from __future__ import annotations

import json
import os
import re
import shlex
from functools import cache
from pathlib import Path

from tunewise.advice.atlas.schema import (
    SCHEMA,
    Cost,
    Forgetting,
    Model,
    Record,
    TaskFacts,
    read,
    record_of,
)
from tunewise.advice.features import Features
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.core.json_record import JsonRecord
from tunewise.results.schema import Comparison, Row, ScoredRow, ScoreInterval

SHIPPED = Path(__file__).parent / "measured"
HOME = "TUNEWISE_HOME"


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
    artifact_writer.write_text(path, json.dumps(record.to_json(), separators=(",", ":")) + "\n")
    return path


def comparison(folder: Path) -> Comparison:
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
    return Comparison.read(path)


def record(result: Comparison, features: Features, name: str | None, path: Path) -> Record:
    """What is kept of a comparison.

    Args:
        result: the content of its `compare.json`.
        features: of its task and model; see `tunewise.advice.features.measure`.
        name: of the record; default: MODEL.TASK.
        path: of the file, for errors.

    Raises:
        ArtifactError: something that a record needs is missing or not as it should be.
    """
    machine = result.machine
    value = {
        "schema": SCHEMA,
        "name": name or f"{_plain(result.model.name)}.{_plain(result.task.name)}",
        "model": _shared(result.model, Model),
        "task": _shared(result.task, TaskFacts),
        "features": {key: None if number is None else float(number) for key, number in features.to_json().items()},
        "budget": {
            "steps": result.budget.steps,
            "tokens": result.budget.tokens,
            "rows": rows_of(result, path),
            "search": result.budget.search,
            "seeds": result.budget.seeds,
        },
        "provenance": {
            "command": shlex.join(result.command or ()),
            "tunewise": result.tunewise,
            "created": result.created,
            "torch": machine.torch,
            "transformers": machine.transformers,
            "device": machine.device,
            "processor": machine.processor,
            "threads": machine.threads,
            "retention": result.retention.source,
            "probe": result.retention.probe,
        },
        "rows": [_row(row) for row in result.rows],
    }
    return record_of(value, path)


def rows_of(result: Comparison, path: Path) -> int:
    """Examples of one optimiser step of a comparison; raises `ArtifactError` where its settings do not say."""
    size = result.settings.get("per_device_train_batch_size")
    passes = result.settings.get("gradient_accumulation_steps")
    if not isinstance(size, int) or not isinstance(passes, int):
        raise ArtifactError(f"{path}: its settings do not say how many examples make a step; run the comparison again")
    return size * passes


def _row(row: Row) -> dict[str, object]:
    scored = row if isinstance(row, ScoredRow) and row.status == "ok" else None
    return {
        "technique": row.technique,
        "status": row.status,
        "reason": row.reason,
        "learning_rate": row.learning_rate,
        "settings": row.settings,
        "score": _shared(scored.score, ScoreInterval) if scored else None,
        "nll": scored.nll if scored else None,
        "p_value": scored.p_value if scored else None,
        "forgetting": _shared(scored.forgetting, Forgetting) if scored and scored.forgetting else None,
        "cost": _shared(scored.cost, Cost) | {"seconds": scored.spent and scored.spent.seconds} if scored else None,
    }


def _shared(record: JsonRecord, kept: type[JsonRecord]) -> dict[str, object]:
    """The fields of a record that another kind of record has too, in the order of that one."""
    return {name: getattr(record, name, None) for name in kept.names()}


def _read_all(folder: Path) -> dict[str, Record]:
    found = [read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return {each.name: each for each in found}


def _plain(name: str) -> str:
    """A name's last part, with what a file name may not have replaced."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", Path(str(name)).name).strip("-") or "unnamed"
