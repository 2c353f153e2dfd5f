"""Names and paths as objects: world:reviews a task, Qwen/Qwen3-0.6B a base, lora.r=8 a recipe's setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewise.core.addresses import shipped
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet

if TYPE_CHECKING:
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base


COMPARED = "base,icl,rag,full,last_layers,bitfit,prompt_tuning,lora"


def read_task(data: str, columns: str | None, template: str | None, metric: str | None) -> Task:
    """The task that `--data` and its companions name."""
    from tunewise.data.task import Task
    from tunewise.fitting.metrics import find

    if metric is not None and metric != "accuracy":
        find(metric)
    text = template.replace("\\n", "\n") if template else None
    task = Task.read(data, columns=pairs(columns), template=text, metric=metric)
    if metric == "accuracy" and task.kind != "classification":
        raise SettingError(f"accuracy is for labels, and {data} is a {task.kind} task; use exact_match or f1")
    return task


def pairs(columns: str | None) -> dict[str, str] | None:
    """`--columns` as {standard name: the data's own}."""
    if not columns:
        return None
    pairs = [item.partition("=") for item in columns.split(",")]
    if any(not name or not own for name, _, own in pairs):
        raise SettingError(f'--columns is "{columns}" but must look like prompt=q,completion=a')
    return {name.strip(): own.strip() for name, _, own in pairs}


def settings_of(sets: list[str] | None) -> dict[str, dict[str, Any]]:
    """`--set technique.setting=value` as {technique: {setting: value}}."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for item in sets or []:
        where, equals, value = item.partition("=")
        technique, dot, name = where.strip().partition(".")
        if not equals or not dot or not name:
            raise SettingError(f'--set is "{item}" but must look like lora.r=8')
        try:
            found.setdefault(technique, {})[name] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise SettingError(f"--set {item}: the value cannot be read") from error
    return found


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def recipes_of(
    names: str,
    chosen: dict[str, dict[str, Any]],
    sources: str | None = None,
    default_sources: Sequence[str] = (),
    knowledge: str | None = None,
) -> list[Technique]:
    """Recipes of comma-separated names, or of "all".

    `sources` are for those that learn from other tasks, `knowledge` for those that search documents.
    """
    quiet()
    from tunewise.techniques.registry import all_techniques, make

    known = all_techniques()
    wanted = list(known) if names == "all" else [n.strip() for n in names.split(",") if n.strip()]
    used = {part for name in wanted for part in name.split("+")}
    for technique in chosen:
        if technique not in used:
            raise SettingError(f'--set names "{technique}", which is not among {", ".join(sorted(used))}')
    for name in _takers(used, "sources", sources, "learn from other tasks first"):
        names_of = sources.split(",") if sources else default_sources
        if names_of:
            chosen.setdefault(name, {}).setdefault("sources", [s.strip() for s in names_of if s.strip()])
    for name in _takers(used, "knowledge", knowledge, "search documents"):
        if knowledge:
            chosen.setdefault(name, {}).setdefault("knowledge", knowledge)
    return [make(name, chosen) for name in wanted]


def _takers(used: set[str], setting: str, given: str | None, what: str) -> list[str]:
    """Those of the used techniques that have a setting; an option that none of them takes is refused."""
    from dataclasses import fields

    from tunewise.techniques.registry import all_techniques

    known = all_techniques()
    takers = [n for n in sorted(used) if n in known and setting in {item.name for item in fields(known[n])}]
    if given and not takers:
        raise SettingError(f"--{setting} is for techniques that {what}, and none of these does")
    return takers


def load_model(name: str, revision: str | None, dtype: str, device: str | None, max_length: int | None) -> Base:
    """The base that `--model` and its companions name."""
    quiet()
    from tunewise.engine.model import load_base

    return load_base(name, revision=revision, dtype=dtype, device=device, max_length=max_length)


def read_texts(path: str | None) -> list[str] | None:
    """The lines of a text file, or of the shipped world's (`world:text`); None where none is given."""
    if path is None:
        return None
    address = shipped(path)
    if address is not None and address[1] == "text":
        return list(address[0].retention())
    try:
        lines = [line for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise SettingError(f"{path}: holds no text; give a file with text that the model should not forget")
    return lines
