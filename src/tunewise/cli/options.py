"""What the commands have in common: their options, and the words of options as tasks, recipes, settings and bases.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.core.errors import SettingError

if TYPE_CHECKING:
    pass


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
