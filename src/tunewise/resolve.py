"""Turns names and options of the command line into objects: tasks, bases, recipes and training settings.

The options that several commands share stand here in groups, with the names and defaults of the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from tunewise.contract.places import USES_OF_PLACES, Places
from tunewise.core.addresses import path_at, shipped
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet

if TYPE_CHECKING:
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base
    from tunewise.engine.ranks import Ranks
    from tunewise.fitting.settings import TrainSettings


COMPARED = "base,icl,rag,full,last_layers,bitfit,prompt_tuning,lora"

TechniqueSettings = dict[str, dict[str, object]]  # {technique: {setting: value}}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options that say how a task is read from its data."""

    columns: str | None = None
    template: str | None = None
    kind: str | None = None
    skip_bad_rows: bool = False
    label_list: str = "auto"
    metric: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options that say how a base is loaded."""

    max_length: int | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    resize_embeddings: bool = False


@dataclass(frozen=True, kw_only=True)
class TechniqueOptions:
    """Options that recipes are made from, besides their names.

    `sources` are for those that learn from other tasks, `places` for those that search documents or examples.
    """

    sets: list[str] | None = None
    sources: str | None = None
    places: Places = field(default_factory=Places)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of the training loop; they are as `TrainSettings` says."""

    batch_size: int = 8
    accumulate: int = 1
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.06
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    logging_steps: int = 1
    save_steps: int = 500
    save_total_limit: int = 2
    eval_steps: int = 0
    patience_evals: int = 0
    keep_best: bool = False


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Options that say how a pass over the model is computed."""

    bf16: bool = False
    gradient_checkpointing: bool = False
    full_determinism: bool = True
    use_liger_kernel: bool = False


@dataclass(frozen=True, kw_only=True)
class RemedyOptions:
    """Options of the remedies for forgetting, and the text that they rehearse."""

    replay: float = 0.0
    kl_to_base: float = 0.0
    l2_sp: float = 0.0
    remember: str | None = None


def read_task(data: str, options: DataOptions | None = None) -> Task:
    """Read the task that `--data` names, with the options beside it."""
    from tunewise.data.task import Task
    from tunewise.fitting.judge import Judge
    from tunewise.fitting.metrics import check_references

    options = options or DataOptions()
    metric = _metric(options)
    template = options.template.replace("\\n", "\n") if options.template else None
    task = Task.read(
        data,
        columns=pairs(options.columns),
        template=template,
        metric=metric,
        kind=options.kind,
        label_list=_label_list(options.label_list),
        skip_bad_rows=options.skip_bad_rows,
    )
    if metric == "accuracy" and task.kind != "classification":
        raise SettingError(f"accuracy is for labels, and {data} is a {task.kind} task; use exact_match or f1")
    if metric is not None and Judge.of(metric) is not None and task.kind != "generation":
        raise SettingError(f"a judge compares generated answers, and {data} is a {task.kind} task; leave it out")
    references = (example.references or (example.answer,) for example in task.test)
    check_references(task.metric, (answer for answers in references for answer in answers))
    return task


def _metric(options: DataOptions) -> str | None:
    """Return the metric that is asked for by name, after checking that there is one."""
    from tunewise.fitting import judge
    from tunewise.fitting.metrics import find

    metric, url, model = options.metric, options.judge_url, options.judge_model
    if metric == judge.METRIC and url and model:
        metric = judge.Judge(model, url).name
    elif url or model:
        raise SettingError("--judge-url and --judge-model belong together, and to --metric judge")
    if metric is not None and (chosen := judge.Judge.of(metric)) is not None:
        chosen.check_installed()
    elif metric is not None and metric != "accuracy":
        find(metric)
    return metric


def _label_list(choice: str) -> bool | None:
    """Read `--label-list`; YAML hands over its own yes and no as true and false."""
    choices = {"auto": None, "yes": True, "true": True, "no": False, "false": False}
    if choice.lower() not in choices:
        raise SettingError(f'--label-list is "{choice}" but must be auto, yes or no')
    return choices[choice.lower()]


def pairs(columns: str | None) -> dict[str, str] | None:
    """Read `--columns` as {standard name: column of the data}."""
    if not columns:
        return None
    items = [item.partition("=") for item in columns.split(",")]
    if any(not name or not column for name, _, column in items):
        raise SettingError(f'--columns is "{columns}" but must look like prompt=q,completion=a')
    return {name.strip(): column.strip() for name, _, column in items}


def settings_of(sets: list[str] | None) -> TechniqueSettings:
    """Read `--set technique.setting=value` as {technique: {setting: value}}."""
    from tunewise.core.yaml_text import YamlTextError, read_yaml

    settings: TechniqueSettings = {}
    for item in sets or []:
        key, equals, value = item.partition("=")
        technique, dot, name = key.strip().partition(".")
        if not equals or not dot or not name:
            raise SettingError(f'--set is "{item}" but must look like lora.r=8')
        try:
            settings.setdefault(technique, {})[name] = _number(read_yaml(value))
        except YamlTextError as error:
            raise SettingError(f"--set {item[:80]}: the value cannot be read ({error})") from error
    return settings


def _number(value: object) -> object:
    """Convert text to a number where it is one: YAML reads 1e-4 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def recipes_of(
    names: str,
    options: TechniqueOptions | None = None,
    *,
    default_sources: Sequence[str] = (),
    learning_rate: float | None = None,
    optim: str | None = None,
) -> list[Technique]:
    """Make the recipes of comma-separated names, or of "all".

    Args:
        names: techniques, several joined by "+" to compose.
        options: their settings, other tasks and documents.
        default_sources: data of other tasks for those that learn from them, where `options.sources` names none.
        learning_rate: for every part that trains and has no rate among its settings.
        optim: the optimiser by Hugging Face's name; only AdamW is one for techniques that have no choice of it.
    """
    quiet()
    from tunewise.techniques.registry import all_techniques, make

    options = options or TechniqueOptions()
    settings = settings_of(options.sets)
    recipe_names = list(all_techniques()) if names == "all" else [n.strip() for n in names.split(",") if n.strip()]
    used = {part for name in recipe_names for part in name.split("+")}
    for technique in settings:
        if technique not in used:
            raise SettingError(f'--set names "{technique}", which is not among {", ".join(sorted(used))}')
    for name in _takers(used, "sources", options.sources, "learn from other tasks first"):
        sources = options.sources.split(",") if options.sources else default_sources
        if sources:
            settings.setdefault(name, {}).setdefault("sources", [s.strip() for s in sources if s.strip()])
    for setting, place in options.places.given().items():
        for name in _takers(used, setting, place, USES_OF_PLACES[setting]):
            settings.setdefault(name, {}).setdefault(setting, place)
    recipes = [make(name, settings) for name in recipe_names]
    if learning_rate is None and optim is None:
        return recipes
    for part in (part for recipe in recipes for part in getattr(recipe, "parts", (recipe,)) if part.trains):
        chosen = settings.setdefault(part.name, {})
        if learning_rate is not None:
            chosen.setdefault("learning_rate", learning_rate)
        if optim is not None and (optimizer := _optimizer_of(part, optim)) is not None:
            chosen.setdefault("optimizer", optimizer)
    return [make(name, settings) for name in recipe_names]


def _optimizer_of(technique: Technique, optim: str) -> str | None:
    """Return what a technique calls an optimiser; None where it has no choice, and is trained with AdamW anyway.

    Raises:
        SettingError: no optimiser has this name, or the technique is trained with another one.
    """
    from tunewise.fitting.optimizer_names import OPTIMIZER_NAMES

    if optim not in OPTIMIZER_NAMES:
        raise SettingError(f'--optim is "{optim}" but must be one of {", ".join(OPTIMIZER_NAMES)}')
    name = OPTIMIZER_NAMES[optim]
    choices = {item.name: item.metadata.get("choices") or () for item in fields(technique)}.get("optimizer")
    if choices is None and name == "adamw":
        return None
    if name not in (choices or ("adamw",)):
        able = [theirs for theirs, ours in OPTIMIZER_NAMES.items() if ours in (choices or ("adamw",))]
        raise SettingError(f"--optim {optim} is not for {technique.name}, which takes {', '.join(able)}")
    return name


def _takers(used: set[str], setting: str, value: str | None, purpose: str) -> list[str]:
    """List the used techniques that have a setting; raise `SettingError` if a value is given and none has it."""
    from tunewise.techniques.registry import all_techniques

    classes = all_techniques()
    takers = [n for n in sorted(used) if n in classes and setting in {item.name for item in fields(classes[n])}]
    if value and not takers:
        raise SettingError(f"--{setting} is for techniques that {purpose}, and none of these does")
    return takers


def load_model(
    name: str, options: ModelOptions | None = None, ranks: Ranks | None = None, *, waits: bool = False
) -> Base:
    """Load the base that `--model` names, with the options beside it, for the ranks that train together.

    `waits` is that of `load_base`: for a technique that packs the weights before they are on the device.
    """
    quiet()
    from tunewise.engine.model import load_base

    options = options or ModelOptions()
    return load_base(
        name,
        revision=options.revision,
        dtype=options.dtype,
        device=options.device,
        max_length=options.max_length,
        resize_embeddings=options.resize_embeddings,
        ranks=ranks,
        waits=waits,
    )


def train_settings(
    max_steps: int | None,
    train: TrainOptions,
    compute: ComputeOptions | None = None,
    remedies: RemedyOptions | None = None,
) -> TrainSettings:
    """Build the settings of the training loop from the options of the command line; None is the default number."""
    from tunewise.fitting.settings import TrainSettings

    compute, remedies = compute or ComputeOptions(), remedies or RemedyOptions()
    if compute.use_liger_kernel:
        from tunewise.engine.liger import require_liger

        require_liger()
    return TrainSettings(
        max_steps=TrainSettings.max_steps if max_steps is None else max_steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_ratio=train.warmup_ratio,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        logging_steps=train.logging_steps,
        save_steps=train.save_steps,
        save_total_limit=train.save_total_limit,
        eval_steps=train.eval_steps,
        early_stopping_patience=train.patience_evals,
        load_best_model_at_end=train.keep_best,
        bf16=compute.bf16,
        gradient_checkpointing=compute.gradient_checkpointing,
        full_determinism=compute.full_determinism,
        use_liger_kernel=compute.use_liger_kernel,
        replay=remedies.replay,
        kl_to_base=remedies.kl_to_base,
        l2_sp=remedies.l2_sp,
    )


def read_texts(path: str | None) -> list[str] | None:
    """Read the lines of a text file, or of the shipped world's text (`world:text`); return None for no path."""
    if path is None:
        return None
    address = shipped(path)
    if address is not None and address[1] == "text":
        return list(address[0].retention())
    try:
        lines = [line for line in path_at(path).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise SettingError(f"{path}: holds no text; give a file with text that the model should not forget")
    return lines
