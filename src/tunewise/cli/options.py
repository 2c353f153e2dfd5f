"""What the commands have in common: their options, and the words of options as tasks, recipes, settings and bases.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.cli.console import quiet
from tunewise.core.errors import SettingError

if TYPE_CHECKING:
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base


COMPARED = "base,icl,rag,full,last_layers,bitfit,prompt_tuning,lora"


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the settings of a YAML file the defaults of this command's options."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingError(f"{path}: must hold settings, one `name: value` a line")
    known = {
        word.lstrip("-").replace("-", "_"): str(parameter.name)
        for parameter in context.command.params
        for word in (*parameter.opts, str(parameter.name))
        if parameter.name != "config" and len(word) > 2
    }
    defaults: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).replace("-", "_")
        if key not in known:
            raise SettingError(f'{path}: there is no setting "{name}" here; there are {", ".join(sorted(known))}')
        key = known[key]
        if isinstance(value, dict):
            value = [f"{k}={json.dumps(v)}" if key == "sets" else f"{k}={v}" for k, v in value.items()]
            value = value if key == "sets" else ",".join(value)
        defaults[key] = ",".join(map(str, value)) if isinstance(value, list) and key != "sets" else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder or Hub id of a causal language model; world: the one shipped.")
]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help="File, folder of splits, Hub id or world:TASK; path#500 takes a sample of 500."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Columns = Annotated[
    str | None,
    typer.Option(help="Names of the data's columns, e.g. prompt=q,completion=a or text=review,label=stars."),
]
Template = Annotated[str | None, typer.Option(help='Text around a prompt, e.g. "Review: {prompt}\\nSentiment:".')]
Metric = Annotated[
    str | None, typer.Option(help="exact_match, f1, rouge_l, sentence_bleu, or your own path.py:function.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="A technique's setting, e.g. lora.r=8 (may be repeated).")
]
Sources = Annotated[str | None, typer.Option(help="Data of other tasks to learn from first, joined by commas (mpt).")]
Knowledge = Annotated[
    str | None, typer.Option(help="Documents to search: folder, file, index or qdrant://host:port/name (rag).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with any of these settings.", callback=read_config, is_eager=True),
]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit of the model.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights in memory: float32, bfloat16, float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the best there is.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest sequence in tokens; default: the model's context.")]
BatchSize = Annotated[int, typer.Option("--per-device-train-batch-size", "--batch-size", help="Examples of one pass.")]
Accumulate = Annotated[
    int, typer.Option("--gradient-accumulation-steps", "--accumulate", help="Passes of one optimiser step.")
]
Schedule = Annotated[str, typer.Option("--lr-scheduler-type", help="linear, cosine, constant, ...")]
SaveSteps = Annotated[int, typer.Option(help="Optimiser steps between checkpoints.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 (weights and updates stay float32).")]
Recompute = Annotated[
    bool,
    typer.Option("--gradient-checkpointing", help="Compute activations again instead of keeping them: less memory."),
]
Replay = Annotated[float, typer.Option(help="Against forgetting: share of the loss that is remembered text's.")]
KlToBase = Annotated[float, typer.Option(help="Against forgetting: weight of the divergence from the base there.")]
L2Sp = Annotated[
    float, typer.Option(help="Against forgetting: weight of the squared distance from the base's weights.")
]
Remember = Annotated[
    str | None, typer.Option(help="Text file to remember, for --replay and --kl-to-base; default: the base's own.")
]
RetentionFile = Annotated[
    str | None,
    typer.Option("--retention", help="Text the model should not forget; default: text it writes itself."),
]


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


def train_arguments(steps: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `fit` and `compare` that say how to train, as arguments of `TrainSettings`."""
    same = ("lr_scheduler_type", "save_steps", "bf16", "gradient_checkpointing", "replay", "kl_to_base", "l2_sp")
    return {
        "max_steps": steps,
        "per_device_train_batch_size": given["batch_size"],
        "gradient_accumulation_steps": given["accumulate"],
        "eval_steps": given.get("eval_steps", 0),
        **{name: given[name] for name in same},
    }


def load_model(name: str, revision: str | None, dtype: str, device: str | None, max_length: int | None) -> Base:
    """The base that `--model` and its companions name."""
    quiet()
    from tunewise.engine.model import load_base

    return load_base(name, revision=revision, dtype=dtype, device=device, max_length=max_length)


def read_texts(path: str | None) -> list[str] | None:
    """The lines of a text file, or of the shipped world's (`world:text`); None where none is given."""
    if path is None:
        return None
    if path == "world:text":
        from tunewise.data.world import retention

        return list(retention())
    try:
        lines = [line for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise SettingError(f"{path}: holds no text; give a file with text that the model should not forget")
    return lines
