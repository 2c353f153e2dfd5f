"""The atlas on disk: reads the records of the package and of the user, and makes a record of a comparison."""

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
from tunewise.core.lock import lock
from tunewise.results.schema import Comparison, Row, ScoredRow, ScoreInterval

SHIPPED = Path(__file__).parent / "measured"
HOME = "TUNEWISE_HOME"


def own_folder() -> Path:
    """Return the folder of the user's records: `atlas` in `TUNEWISE_HOME`, by default ~/.cache/tunewise."""
    home = os.environ.get(HOME) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunewise"
    return Path(home).expanduser() / "atlas"


def all_records() -> dict[str, Record]:
    """Read every record, by name: the package's, then the user's own, which replace those of the same name.

    Raises:
        ArtifactError: a file of the atlas is no record.
    """
    return {**shipped(), **_read_all(own_folder())}


@cache
def shipped() -> dict[str, Record]:
    """Read the records of the package, by name."""
    return _read_all(SHIPPED)


def find(name: str) -> Record:
    """Return the record of a name.

    Raises:
        SettingError: there is none.
    """
    records = all_records()
    if name not in records:
        raise SettingError(f'the atlas has no record "{name}"; it has {", ".join(records) or "none"}')
    return records[name]


def add(record: Record, folder: Path | None = None) -> Path:
    """Write a record to a folder (default: the user's own) and return the path of its file.

    Raises:
        RequestError: another process writes to the folder.
    """
    path = (folder or own_folder()) / f"{record.name}.json"
    with lock(artifact_writer.output_folder(path.parent)):
        artifact_writer.write_text(path, json.dumps(record.to_json(), separators=(",", ":")) + "\n")
    return path


def comparison(folder: Path) -> Comparison:
    """Read `compare.json` of a finished comparison.

    Raises:
        SettingError: there is none, or the comparison is not finished.
        ArtifactError: it cannot be read, or cannot be recorded.
    """
    path = folder / "compare.json"
    if not path.is_file():
        raise SettingError(f"{folder}: holds no comparison (no compare.json); give the --out of tunewise compare")
    if not (folder / "report.md").is_file():
        raise SettingError(f"{folder}: the comparison there is not finished (no report.md); run its command again")
    return Comparison.read(path)


def record(result: Comparison, features: Features, name: str | None, path: Path) -> Record:
    """Make the record of a comparison.

    Args:
        result: the content of its `compare.json`.
        features: the features of its task and model; see `tunewise.advice.features.measure`.
        name: name of the record; default: MODEL.TASK.
        path: the path of `compare.json`, for errors.

    Raises:
        ArtifactError: something that a record needs is missing or of another type.
    """
    machine = result.machine
    value = {
        "schema": SCHEMA,
        "name": name or f"{_file_name_part(result.model.name)}.{_file_name_part(result.task.name)}",
        "model": _common_fields(result.model, Model),
        "task": _common_fields(result.task, TaskFacts),
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
        "rows": [_row_json(row) for row in result.rows],
    }
    return record_of(value, path)


def rows_of(result: Comparison, path: Path) -> int:
    """Return the examples per optimizer step of a comparison.

    Raises:
        ArtifactError: its settings do not say how many.
    """
    size = result.settings.get("per_device_train_batch_size")
    passes = result.settings.get("gradient_accumulation_steps")
    if not isinstance(size, int) or not isinstance(passes, int):
        raise ArtifactError(f"{path}: its settings do not say how many examples make a step; run the comparison again")
    return size * passes


def _row_json(row: Row) -> dict[str, object]:
    scored = row if isinstance(row, ScoredRow) and row.status == "ok" else None
    return {
        "technique": row.technique,
        "status": row.status,
        "reason": row.reason,
        "learning_rate": row.learning_rate,
        "settings": row.settings,
        "score": _common_fields(scored.score, ScoreInterval) if scored else None,
        "nll": scored.nll if scored else None,
        "p_value": scored.p_value if scored else None,
        "forgetting": _common_fields(scored.forgetting, Forgetting) if scored and scored.forgetting else None,
        "cost": _common_fields(scored.cost, Cost) | {"seconds": scored.spent and scored.spent.seconds}
        if scored
        else None,
    }


def _common_fields(record: JsonRecord, target: type[JsonRecord]) -> dict[str, object]:
    """Return the fields of `target` by name, with the values that another kind of record has for them."""
    return {name: getattr(record, name, None) for name in target.names()}


def _read_all(folder: Path) -> dict[str, Record]:
    records = [read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return {record.name: record for record in records}


def _file_name_part(name: str) -> str:
    """Return the last part of a name, with characters that do not belong in a file name replaced."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", Path(str(name)).name).strip("-") or "unnamed"
