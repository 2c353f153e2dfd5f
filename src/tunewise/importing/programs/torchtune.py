"""torchtune: the YAML of its recipes for full, LoRA and QLoRA fine-tuning, whose parts are named by `_component_`.

Names and defaults are those of torchtune 0.6 (https://pytorch.org/torchtune), whose command line names the recipe; the
file says by the model's component what is trained.
"""

from __future__ import annotations

import re

from tunewise.core.text import show
from tunewise.importing import values
from tunewise.importing.data_source import (
    ONLY_ANSWERS,
    OTHER_SPLITS,
    OWN_TEMPLATE,
    SEVERAL,
    SYSTEM_PROMPT,
    columns,
    located,
)
from tunewise.importing.optimizers import optimizer
from tunewise.importing.programs.trainer import PUSH, RESUME, TRAINER, bf16_with_weights, cpu
from tunewise.importing.record import Outcome, Setting, left, same, took
from tunewise.importing.rules import (
    SEVERAL_DEVICES,
    Context,
    Program,
    Rule,
    accumulation,
    decides,
    learning_rate,
    leaves,
    lora,
    lora_switch,
    needless,
    not_low_rank,
    packing,
    seed,
    steps,
    takes,
)
from tunewise.importing.source import Entry, Source

_MODEL = re.compile(r"torchtune\.models\.\w+\.(?P<form>lora_|qlora_)?\w+")
_ROLES = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "output_proj": "o", "o_proj": "o"}
_FEED_FORWARD = ("gate", "up", "down")
_FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}  # in the weights of Phi-3 and Phi-4
# Builders of data sets: what they read where the file names nothing, and their columns, ours for theirs.
_DATASETS: dict[str, tuple[str, dict[str, str]]] = {
    "alpaca_dataset": ("tatsu-lab/alpaca", {}),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", {}),
    "chat_dataset": ("", {}),
    "grammar_dataset": ("liweili/c4_200m", {"prompt": "input", "completion": "output"}),
    "instruct_dataset": ("", {"prompt": "input", "completion": "output"}),
    "samsum_dataset": ("Samsung/samsum", {"prompt": "dialogue", "completion": "summary"}),
    "slimorca_dataset": ("Open-Orca/SlimOrca-Dedup", {}),
    "text_completion_dataset": ("", {}),
}
_THEIR_COLUMNS = {  # names in `column_map`, by the builder: ours for theirs
    "alpaca_dataset": {"instruction": "instruction", "input": "input", "output": "output"},
    "alpaca_cleaned_dataset": {"instruction": "instruction", "input": "input", "output": "output"},
    "samsum_dataset": {"dialogue": "prompt", "summary": "completion"},
    "slimorca_dataset": {"conversations": "conversations"},
}
_REWARDS = ("grpo_samples", "reward_functions", "ppo_epochs", "num_generations")
_PAIR = {"input": "prompt", "output": "completion"}


def _technique(source: Source) -> str:
    """Say which technique the model's component is for."""
    component = source.entry("model._component_")
    for key in _REWARDS:
        if source.value(key) is not None:
            raise source.entries[key].refusal("tunewise trains on right answers only, not on rewards")
    if source.value("teacher_model._component_") is not None:
        raise source.entries["teacher_model._component_"].refusal(
            "a model is not trained on another one's outputs here"
        )
    if source.value("loss._component_") is not None and "rlhf" in values.text(source.entries["loss._component_"]):
        raise source.entries["loss._component_"].refusal("tunewise trains on right answers only, not on preferences")
    match = _MODEL.fullmatch(values.text(component))
    if match is None:
        raise component.error("a component such as torchtune.models.llama3_1.lora_llama3_1_8b")
    if match["form"] is None:
        return "full"
    quantised = match["form"] == "qlora_" or values.is_true(source, "model.quantize_base")
    return "qlora" if quantised else "lora"


def _builder(source: Source) -> str:
    """Return the name of the data set's builder, empty where the file names none."""
    return (values.optional(values.text, source, "dataset._component_") or "").rpartition(".")[2]


def _weights(entry: Entry, context: Context) -> Outcome:
    """Take the folder of a checkpoint in the Hub's form."""
    component = values.optional(values.text, context.source, "checkpointer._component_")
    if component is not None and not component.endswith("HFCheckpointer"):
        return left("these weights are not in the Hub's form; give the model's folder or Hub id with --model")
    return took({"model": values.text(entry).rstrip("/") or "/"})


def _targets(entry: Entry, context: Context) -> Outcome:
    """Take the linears of the attention, and those of the feed-forward and the head where the file adds them."""
    if outcome := not_low_rank(context):
        return outcome
    modules = values.names(entry)
    if unknown := [name for name in modules if name not in _ROLES]:
        raise entry.error(f"of q_proj, k_proj, v_proj and output_proj, not {show(unknown[0])}")
    roles = [_ROLES[name] for name in modules]
    if values.is_true(context.source, "model.apply_lora_to_mlp"):
        roles += _FEED_FORWARD
    remark = ""
    if ".phi" in values.text(context.source.entry("model._component_")):
        roles = list(dict.fromkeys(_FUSED.get(role, role) for role in roles))
        remark = "the model's own linears compute several of these at once"
    if values.is_true(context.source, "model.apply_lora_to_output"):
        roles.append("lm_head")
    return took({f"{context.technique}.target_modules": roles}, remark)


def _dataset(entry: Entry, context: Context) -> Outcome:
    """Take the data set of a builder, with its columns."""
    source = context.source
    name = values.text(entry).rpartition(".")[2]
    if name not in _DATASETS:
        return left(f"the data of {show(name)} is not known here; give it with --data, and --columns for its names")
    its_own, mapping = _DATASETS[name]
    path = values.optional(values.text, source, "dataset.source") or its_own
    if not path:
        raise entry.refusal("dataset.source must say where the data is")
    outcome = located(
        path,
        source.value("dataset.data_files"),
        values.optional(values.text, source, "dataset.name"),
        values.optional(values.text, source, "dataset.split"),
    )
    settings: dict[str, Setting] = {}
    try:
        if source.value("dataset.column_map") is None:
            settings |= columns(mapping)
    except ValueError as error:
        return left(str(error))
    if name == "text_completion_dataset":
        settings["kind"] = "text"
    return took({**outcome.settings, **settings}, outcome.remark) if outcome.settings else outcome


def _column_map(entry: Entry, context: Context) -> Outcome:
    """Take the names of columns, which depend on the builder."""
    theirs = _THEIR_COLUMNS.get(_builder(context.source), _PAIR)
    given = entry.value
    if not isinstance(given, dict) or not all(isinstance(name, str) for pair in given.items() for name in pair):
        raise entry.error("names of columns")
    if unknown := [name for name in given if name not in theirs]:
        return left(f"{show(unknown[0])} is not a column here; say with --columns which column is which")
    try:
        return took(columns({theirs[name]: column for name, column in given.items()}))
    except ValueError as error:
        return left(str(error))


def _column(name: str) -> Rule:
    """Make the rule that takes the name of one column."""

    def rule(entry: Entry, context: Context) -> Outcome:
        try:
            settings = columns({name: values.text(entry)})
        except ValueError as error:
            return left(str(error))
        return took(settings) if settings else same("found by its name")

    return rule


def _conversations(entry: Entry, context: Context) -> Outcome:
    if values.text(entry) in ("messages", "conversations"):
        return same("found by its name")
    return _column("messages")(entry, context)


def _learns_prompts(entry: Entry, context: Context) -> Outcome:
    """Say that prompts are not learnt; `alpaca_dataset` learns them unless it is told not to."""
    if entry.value is None:
        learns_both = _builder(context.source) == "alpaca_dataset"
        return left(f"{ONLY_ANSWERS}; this data set learns both") if learns_both else same()
    return left(ONLY_ANSWERS) if values.yes_no(entry) else same()


def _epochs(entry: Entry, context: Context) -> Outcome:
    """Take the epochs, or the steps that they have where their steps are limited."""
    limit = values.optional(values.whole, context.source, "max_steps_per_epoch")
    if limit is None:
        return took({"num_train_epochs": values.number(entry)})
    return steps(context, values.whole(entry) * limit, f"{limit} steps in each epoch")


def _schedule(entry: Entry, context: Context) -> Outcome:
    """Take the schedule; without one the rate is constant."""
    if entry.value is None:
        return took({"lr_scheduler_type": "constant"})
    if values.text(entry).endswith("get_cosine_schedule_with_warmup"):
        return took({"lr_scheduler_type": "cosine"})
    return left("there is no such schedule here, so it is cosine; set lr_scheduler_type")


def _clipping(entry: Entry, context: Context) -> Outcome:
    return took({"max_grad_norm": 0.0 if entry.value is None else values.number(entry)})


def _precision(entry: Entry, context: Context) -> Outcome:
    """Take the type that is computed in; torchtune keeps all weights in it."""
    name = values.text(entry)
    if name == "bf16":
        return bf16_with_weights(Entry(entry.path, entry.key, True, entry.line), context)
    if name == "fp32":
        return same()
    return TRAINER["fp16"](Entry(entry.path, entry.key, True, entry.line), context)


def _device(entry: Entry, context: Context) -> Outcome:
    """Take the CPU; on other machines the best device is found."""
    is_cpu = values.text(entry) == "cpu"
    return cpu(Entry(entry.path, entry.key, True, entry.line), context) if is_cpu else same("the best device is found")


def _evaluations(entry: Entry, context: Context) -> Outcome:
    return took({"eval_steps": values.whole(entry)})


_WITH_DATA = needless("goes with the data set")
_WITH_TARGETS = needless("goes with lora_attn_modules")
_VALIDATION = leaves(OTHER_SPLITS)
_RULES: dict[str, Rule] = {
    "output_dir": takes("out"),
    "model._component_": decides(),
    "model.lora_attn_modules": _targets,
    "model.apply_lora_to_mlp": _WITH_TARGETS,
    "model.apply_lora_to_output": _WITH_TARGETS,
    "model.lora_rank": lora("r", values.whole),
    "model.lora_alpha": lora("lora_alpha", values.number),
    "model.lora_dropout": lora("lora_dropout", values.number),
    "model.use_dora": lora_switch("use_dora"),
    "model.quantize_base": needless("the technique says it"),
    "model.*": leaves("the model's own configuration says how it is built"),
    "checkpointer.checkpoint_dir": _weights,
    "checkpointer.adapter_checkpoint": leaves("training starts from the base; merge the adapter into it first"),
    "checkpointer.recipe_checkpoint": leaves(RESUME),
    "checkpointer.*": needless(),
    "tokenizer.max_seq_len": takes("max_length", values.whole, "a prompt that is too long loses its start"),
    "tokenizer.prompt_template": leaves(OWN_TEMPLATE),
    "tokenizer.*": needless("the tokenizer is the model's own"),
    "dataset": leaves(SEVERAL),
    "dataset._component_": _dataset,
    "dataset.source": _WITH_DATA,
    "dataset.data_files": _WITH_DATA,
    "dataset.split": _WITH_DATA,
    "dataset.name": _WITH_DATA,
    "dataset.subset": leaves("write org/name:subset and give it with --data"),
    "dataset.column_map": _column_map,
    "dataset.column": _column("text"),
    "dataset.conversation_column": _conversations,
    "dataset.conversation_style": needless("turns with role and content, or from and value, are read"),
    "dataset.train_on_input": _learns_prompts,
    "dataset.new_system_prompt": leaves(SYSTEM_PROMPT),
    "dataset.packed": packing,
    "dataset.add_eos": needless("the end of a text is learnt"),
    "dataset.split_across_pack": needless("a long text is cut into pieces of the window"),
    "dataset.filter_fn": leaves("functions of a file are never run; remove the rows from the data"),
    "dataset_val.*": _VALIDATION,
    "run_val_every_n_steps": _evaluations,
    "batch_size_val": needless(),
    "batch_size": takes("per_device_train_batch_size", values.whole),
    "gradient_accumulation_steps": accumulation,
    "epochs": _epochs,
    "max_steps_per_epoch": needless("goes with epochs"),
    "optimizer._component_": optimizer,
    "optimizer.lr": learning_rate,
    "optimizer.weight_decay": takes("weight_decay", values.number),
    "optimizer.betas": leaves("they are 0.9 and 0.999 here", [0.9, 0.999]),
    "optimizer.eps": leaves("it is 1e-8 here", 1e-8, "1e-8"),
    "optimizer.fused": needless(),
    "optimizer_in_bwd": needless("full.optimizer: lomo or adalomo frees each gradient at once"),
    "lr_scheduler._component_": _schedule,
    "lr_scheduler.num_warmup_steps": TRAINER["warmup_steps"],
    "lr_scheduler.num_cycles": leaves("schedules take no arguments here", 0.5),
    "clip_grad_norm": _clipping,
    "loss._component_": needless("the loss is the negative log-likelihood of the answers"),
    "loss.*": needless(),
    "seed": seed,
    "shuffle": leaves("the order is random", True),
    "dtype": _precision,
    "device": _device,
    "enable_activation_checkpointing": TRAINER["gradient_checkpointing"],
    "enable_activation_offloading": needless(),
    "resume_from_checkpoint": TRAINER["resume_from_checkpoint"],
    "save_adapter_weights_only": needless("an adaptation holds the adapter alone"),
    "quantizer.*": leaves("weights are not trained for quantisation; tunewise export writes GGUF"),
    "tensor_parallel_dim": leaves(SEVERAL_DEVICES, 1),
    "tensor_parallel_plan.*": leaves(SEVERAL_DEVICES),
    "context_parallel_dim": leaves(SEVERAL_DEVICES, 1),
    "data_parallel_*": needless(SEVERAL_DEVICES),
    "fsdp*": leaves(SEVERAL_DEVICES),
    "custom_sharded_layers": leaves(SEVERAL_DEVICES),
    "use_distributed_state_dict": needless(),
    "save_every_n_steps": takes("save_steps", values.whole),
    "push_to_hub": leaves(PUSH),
}
_RULES |= dict.fromkeys(
    (
        *(
            "metric_logger.*",
            "log_*",
            "profiler.*",
            "profile_memory",
            "compile",
            "compile.*",
            "collate_fn",
            "low_cpu_ram",
        ),
        *("cudnn_deterministic_mode", "enable_async_checkpointing", "keep_last_n_checkpoints", "checkpoint_dir"),
        *("base_dir", "model_dir", "model_type", "name"),
    ),
    needless(),
)

TORCHTUNE = Program(
    name="torchtune",
    word="torchtune",
    marks=frozenset(f"{part}._component_" for part in ("model", "tokenizer", "dataset", "optimizer", "checkpointer")),
    rules=_RULES,
    technique=_technique,
    defaults={
        "gradient_accumulation_steps": 1,
        "model.lora_rank": 8,
        "model.lora_alpha": 16,
        "model.lora_dropout": 0.0,
        "optimizer.weight_decay": 0.01,
        "lr_scheduler._component_": None,
        "clip_grad_norm": None,
        "dataset.train_on_input": None,
    },
    refers=True,
)
