"""The options that commands share: their texts, how groups of them become a command's signature, and `--config`.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

from tunewise.core.errors import SettingError

_OPTIONS: Mapping[str, ParameterInfo] = {
    "model": typer.Option(
        "--model",
        "--model-name-or-path",
        "-m",
        help="Folder or Hub id of a causal language model; world is the shipped one.",
    ),
    "data": typer.Option(
        "--data", "-d", help="File, folder of splits, Hub id or world:TASK; path#500 takes a sample of 500."
    ),
    "out": typer.Option("--out", "--output-dir", "-o", help="Folder for the results."),
    "techniques": typer.Option("--techniques", "-t", help="Technique names separated by commas, or all."),
    # DataOptions
    "columns": typer.Option(
        help="Names of the data's columns, e.g. prompt=q,completion=a or text=premise+hypothesis,label=stars."
    ),
    "template": typer.Option(
        help='Text around a prompt, e.g. "Review: {prompt}\\nSentiment:"; names of columns in braces are filled in.'
    ),
    "kind": typer.Option(
        "--kind", help="Kind of task: classification, generation or text; default: what the columns say."
    ),
    "skip_bad_rows": typer.Option(
        "--skip-bad-rows", help="Leave out rows that cannot be used, and count them, instead of refusing the data."
    ),
    "label_list": typer.Option(
        help="List the labels of a classification in each prompt: yes, no, or auto (chat models: where it helps the "
        "base on validation)."
    ),
    "metric": typer.Option(
        help="Metric: exact_match, squad_exact_match, f1, rouge_l, sentence_bleu, chrf, number, json_valid, "
        "json_match, tool_calls, judge, or your own path.py:function."
    ),
    "judge_url": typer.Option(
        help="For --metric judge: the OpenAI-compatible endpoint that answers are sent to, such as "
        "http://localhost:8000/v1; its key is read from TUNEWISE_JUDGE_KEY or OPENAI_API_KEY."
    ),
    "judge_model": typer.Option(help="For --metric judge: the model that judges."),
    # ModelOptions
    "max_length": typer.Option(help="Maximum sequence length in tokens; default: the model's context."),
    "revision": typer.Option(help="Hub branch, tag or commit of the model."),
    "dtype": typer.Option(
        help="Type of the weights in memory: float32, bfloat16, float16, or auto: bfloat16 for a model that is stored "
        "in half precision (and not tiny) where the device computes in it, else float32."
    ),
    "device": typer.Option(help="cpu, cuda, cuda:1 or mps; default: the best available."),
    "resize_embeddings": typer.Option(
        "--resize-embeddings",
        help="Give the model embeddings for tokens that were added to its tokenizer: the mean of the existing ones.",
    ),
    # TechniqueOptions
    "sets": typer.Option("--set", help="A technique's setting, e.g. lora.r=8 (may be repeated)."),
    "sources": typer.Option(help="Data of other tasks to train on first, separated by commas (for mpt)."),
    # Places
    "knowledge": typer.Option(help="Documents to search (for rag): folder, file, index or qdrant://host:port/name."),
    "embedder": typer.Option(
        help="Embedder to search by (for rag, icl): folder or Hub id of a sentence-transformers model."
    ),
    "reranker": typer.Option(help="Cross-encoder that orders what was found (for rag): folder or Hub id."),
    # TrainOptions
    "batch_size": typer.Option("--per-device-train-batch-size", "--batch-size", help="Examples per pass."),
    "accumulate": typer.Option("--gradient-accumulation-steps", "--accumulate", help="Passes per optimiser step."),
    "lr_scheduler_type": typer.Option(
        "--lr-scheduler-type", help="Learning-rate schedule: linear, cosine, constant, ..."
    ),
    "warmup_ratio": typer.Option(help="Share of the steps in which the learning rate rises from 0."),
    "warmup_steps": typer.Option(help="Steps in which the learning rate rises from 0; 0: as --warmup-ratio says."),
    "weight_decay": typer.Option(help="AdamW's weight decay of what is trained."),
    "adam_beta1": typer.Option(help="AdamW's average of gradients."),
    "adam_beta2": typer.Option(help="AdamW's average of their squares."),
    "adam_epsilon": typer.Option(help="What AdamW adds to the root of that average."),
    "max_grad_norm": typer.Option(help="Gradients are clipped to this norm; 0: not at all."),
    "logging_steps": typer.Option(help="Optimiser steps between the lines of metrics.jsonl."),
    "save_steps": typer.Option(help="Optimiser steps between checkpoints."),
    "save_total_limit": typer.Option(help="Checkpoints that are kept while it trains; a finished run needs none."),
    "eval_steps": typer.Option(
        help="Optimiser steps between validation losses; 0: a quarter of the run, or a tenth with --patience-evals."
    ),
    "patience_evals": typer.Option(
        "--patience-evals",
        "--early-stopping-patience",
        help="Stop training when the validation loss has not fallen for so many evaluations; 0: never.",
    ),
    "keep_best": typer.Option(
        "--keep-best",
        "--load-best-model-at-end",
        help="Keep the state with the lowest validation loss, not the last one; --patience-evals does so too.",
    ),
    # ComputeOptions
    "bf16": typer.Option("--bf16", help="Train in bfloat16 arithmetic also where the weights are float32."),
    "gradient_checkpointing": typer.Option(
        "--gradient-checkpointing",
        help="Recompute activations in the backward pass instead of storing them: less memory.",
    ),
    "full_determinism": typer.Option(
        "--full-determinism/--no-full-determinism",
        help="On a GPU: only operations that give the same bits from one seed. On a CPU all do.",
    ),
    "use_liger_kernel": typer.Option(
        "--use-liger-kernel",
        help="On a GPU: Liger's kernels for norms, rotary positions and gated MLPs; needs liger-kernel.",
    ),
    # RemedyOptions
    "replay": typer.Option(help="Against forgetting: share of the loss that is computed on remembered text."),
    "kl_to_base": typer.Option(
        help="Against forgetting: weight of the KL divergence from the base on remembered text."
    ),
    "l2_sp": typer.Option(help="Against forgetting: weight of the squared distance from the base's weights."),
    "remember": typer.Option(
        help="Text file to remember, for --replay and --kl-to-base; default: text sampled from the base."
    ),
    # BudgetOptions
    "budget_steps": typer.Option(
        "--budget-steps",
        "--max-steps",
        help="Optimiser steps per trial; default: three epochs, or as many as four minutes a row allow, at least 60.",
    ),
    "epochs": typer.Option(
        "--epochs", "--num-train-epochs", help="Passes over the training data per trial, instead of steps."
    ),
    "budget_tokens": typer.Option(help="Training tokens per trial, instead of steps."),
    "budget_minutes": typer.Option(
        help="Minutes for the whole comparison, instead of steps; techniques that train share them equally."
    ),
    "search": typer.Option(help="Training that a technique may spend on searching for its settings, in trials."),
    "seeds": typer.Option(help="Runs per technique, each with its own random seed."),
    "test_examples": typer.Option(
        help="Test examples that are scored; default: 500, or 200 where answers are generated."
    ),
    "validation_examples": typer.Option(help="Validation examples that settings are chosen by."),
    # ForgettingOptions
    "retention": typer.Option(
        "--retention", help="Text file that the model should not forget; default: text sampled from the base."
    ),
    "probe": typer.Option(
        help="Data of a task that the model can do already and should not forget, or lm-eval:NAME,... for tasks of the "
        "evaluation harness."
    ),
    # CompareOptions
    "need": typer.Option(
        help="What the recommended technique must meet: memory<8GB, artifact<50MB, mergeable, retain, ..."
    ),
    "price_per_hour": typer.Option(help="Price of an hour of this machine in US dollars."),
    "report_to": typer.Option(help="Log training to tensorboard, wandb, mlflow or trackio (separated by commas)."),
    "advised": typer.Option(
        "--advised",
        help="Run the techniques that could win according to advice, best first, until the best one is clear.",
    ),
}

Model = Annotated[str, _OPTIONS["model"]]
Data = Annotated[str, _OPTIONS["data"]]
Out = Annotated[Path, _OPTIONS["out"]]
Techniques = Annotated[str, _OPTIONS["techniques"]]
Device = Annotated[str | None, _OPTIONS["device"]]
BudgetSteps = Annotated[int, typer.Option(help="Optimiser steps that the times are for.")]
Retention = Annotated[str | None, _OPTIONS["retention"]]
BaseLocation = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder or Hub id of the base; default: the one that the adaptation records."),
]
AdaptationFolder = Annotated[Path, typer.Argument(help="Folder of an adaptation, or of a PEFT adapter.")]
Wide = Annotated[
    bool,
    typer.Option("--wide", help="Show all columns; those that do not fit the terminal follow in a second table."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True, kw_only=True)
class ShownOptions:
    """How a result is printed: as a table, which shows all its columns if it is wide, or as JSON."""

    wide: Wide = False
    as_json: Json = False


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the settings of a YAML file the defaults of this command's options."""
    if path is None:
        return None
    from tunewise.core.yaml_text import MOST_CHARACTERS, read_yaml

    try:
        with path.open(encoding="utf-8") as file:
            values = read_yaml(file.read(MOST_CHARACTERS + 1))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingError(f"{path}: must hold settings, one `name: value` per line")
    parameter_names = {
        word.lstrip("-").replace("-", "_"): str(parameter.name)
        for parameter in context.command.params
        for word in (*parameter.opts, str(parameter.name))
        if parameter.name != "config" and len(word) > 2
    }
    defaults: dict[str, object] = {}
    for name, value in values.items():
        key = str(name).replace("-", "_")
        if key not in parameter_names:
            raise SettingError(
                f'{path}: there is no setting "{name}" here; there are {", ".join(sorted(parameter_names))}'
            )
        key = parameter_names[key]
        if isinstance(value, dict):
            value = [f"{k}={json.dumps(v)}" if key == "sets" else f"{k}={v}" for k, v in value.items()]
            value = value if key == "sets" else ",".join(value)
        defaults[key] = ",".join(map(str, value)) if isinstance(value, list) and key != "sets" else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def option_values(context: typer.Context) -> dict[str, object]:
    """Return the values of a command's options by names that `--config` reads: Hugging Face's, where it has one.

    Options without a value are left out, and so are those that say only how a command is run or printed.
    """
    values: dict[str, object] = {}
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value is not None and parameter.name not in ("config", "as_json", "wide", "resume"):
            name = max((word.lstrip("-") for word in parameter.opts), key=len)  # theirs are the longer ones
            values[name.replace("-", "_")] = str(value) if isinstance(value, Path) else value
    return values


Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with values of any of these options.", callback=read_config, is_eager=True),
]


@dataclass(frozen=True)
class _Only:
    """Marks which fields of a group a command takes; the others keep the group's defaults."""

    names: frozenset[str]


def only(*names: str) -> _Only:
    """Have a command take only these fields of a group.

    Example: `loading: Annotated[ModelOptions, only("max_length", "revision")]`.
    """
    return _Only(frozenset(names))


def grouped_options(command: Callable[..., None]) -> Callable[..., None]:
    """Spread a command's groups of options into the signature that Typer reads, with `--config` behind them.

    A parameter whose type is a dataclass is a group. Its fields become options where the parameter stands, with their
    own names, types and defaults; fields that are dataclasses are spread in turn. The text of an option is in
    `_OPTIONS`, or in the annotation of the field.
    """
    hints = _hints(command)
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        group, names = _group(hints[name])
        spread = [parameter.replace(annotation=hints[name])] if group is None else _spread(group, names)
        parameters += (option.replace(kind=Parameter.KEYWORD_ONLY) for option in spread)
    parameters.append(Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=Config))

    @wraps(command)
    def call(**values: object) -> None:
        arguments = {}
        for name in signature(command).parameters:
            group, names = _group(hints[name])
            arguments[name] = values[name] if group is None else _build_group(group, names, values)
        command(**arguments)

    vars(call)["__signature__"] = Signature(parameters)
    call.__annotations__ = {option.name: option.annotation for option in parameters}
    return call


@cache
def _hints(annotated: Any) -> Mapping[str, Any]:
    return get_type_hints(annotated, include_extras=True)


def _group(hint: Any) -> tuple[Any, frozenset[str] | None]:
    """Return the dataclass of a parameter, or None, and which of its fields are taken (None: all)."""
    kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None, None
    names = next((mark.names for mark in marks if isinstance(mark, _Only)), None)
    if names is not None and not names <= set(_hints(kind)):
        raise TypeError(f"{kind.__name__} has no option {', '.join(sorted(names - set(_hints(kind))))}")
    return kind, names


def _spread(group: Any, names: frozenset[str] | None) -> list[Parameter]:
    """List a group's fields as parameters."""
    spread: list[Parameter] = []
    for name, parameter in signature(group).parameters.items():
        hint = _hints(group)[name]
        if names is not None and name not in names:
            continue
        inner, inner_names = _group(hint)
        if inner is not None:
            spread += _spread(inner, inner_names)
        else:
            annotation = hint if get_origin(hint) is Annotated else Annotated[hint, _OPTIONS[name]]
            spread.append(parameter.replace(annotation=annotation))
    return spread


def _build_group(group: Any, names: frozenset[str] | None, values: Mapping[str, object]) -> Any:
    """Build a group from the options' values."""
    fields: dict[str, object] = {}
    for name, hint in _hints(group).items():
        inner, inner_names = _group(hint)
        if names is None or name in names:
            fields[name] = values[name] if inner is None else _build_group(inner, inner_names, values)
    return group(**fields)
