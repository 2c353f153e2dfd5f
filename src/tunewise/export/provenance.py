"""What is known of an adaptation besides its weights: how it was made, and its row where it lies in a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewise.core import artifact_writer

_ROW = ("technique", "label", "score", "forgetting", "cost", "nll", "learning_rate", "seeds", "rank")
_TASK = ("name", "source", "kind", "metric", "train", "validation", "test")


def facts_of(folder: Path) -> dict[str, Any]:
    """As JSON: technique, settings, base, style and record; `comparison` is None where it lies in none."""
    if not (folder / "adaptation.json").is_file():  # a PEFT adapter of another program's
        config = artifact_writer.read_json((folder / "adapter_config.json").resolve())
        name = str(config.get("peft_type", "adapter")).lower()
        base = {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")}
        return {
            "technique": f"peft:{name}",
            "settings": {},
            "base": base,
            "style": {},
            "record": {},
            "comparison": None,
        }
    found = artifact_writer.read(folder).json("adaptation.json")
    kept = {name: found[name] for name in ("technique", "label", "settings", "base", "style", "record")}
    return {**kept, "comparison": _comparison(folder, found["technique"])}


def _comparison(folder: Path, technique: str) -> dict[str, Any] | None:
    """The technique's row, the base's, and what they were measured on: DIR/trials/<trial>/adaptation in DIR."""
    place = folder.absolute()
    path = place.parents[2] / "compare.json" if len(place.parents) > 2 else place / "compare.json"
    if place.parents[1].name != "trials" or not path.is_file():
        return None
    result = artifact_writer.read_json(path, limit_bytes=1 << 28)
    rows = {row["technique"]: row for row in result["rows"] if row["status"] == "ok"}
    if technique not in rows:
        return None
    kept = [{name: rows[own].get(name) for name in _ROW} for own in ("base", technique) if own in rows]
    return {
        "row": kept[-1],
        "base": kept[0] if "base" in rows else None,
        "rows": len(rows),
        "task": {name: result["task"].get(name) for name in _TASK},
        "budget": result["budget"],
        "device": result["machine"].get("device"),
        "created": result["created"],
    }
