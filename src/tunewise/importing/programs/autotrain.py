"""AutoTrain: the YAML that `autotrain --config` reads, for its tasks of language models.

Names and defaults are those of AutoTrain Advanced 0.8 (https://huggingface.co/docs/autotrain/llm_finetuning).
"""

from __future__ import annotations

from tunewise.importing import values
from tunewise.importing.data_source import ONLY_ANSWERS, OWN_TEMPLATE, columns, located
from tunewise.importing.lora_targets import targets
from tunewise.importing.optimizers import optimizer
from tunewise.importing.programs.trainer import PUSH, TRAINER, bf16, schedule
from tunewise.importing.record import Outcome, left, same, took
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
    needless,
    seed,
    takes,
    trackers,
)
from tunewise.importing.source import Entry, Source

_TASKS = ("llm", "llm-sft", "llm-generic", "llm:sft", "llm:generic")
_LONGEST_BLOCK = 1024  # where the file gives none


def _technique(source: Source) -> str:
    """Say which technique a file asks for; other tasks than a language model's answers are refused."""
    task = source.entry("task")
    if values.text(task) not in _TASKS:
        raise task.refusal(f"tunewise trains language models on right answers only ({', '.join(_TASKS[:3])})")
    if not values.is_true(source, "params.peft"):
        return "full"
    bits = values.text(source.entry("params.quantization", default="int4"))
    return "qlora" if bits == "int4" else "lora"


def _quantisation(entry: Entry, context: Context) -> Outcome:
    """Say what became of quantisation, which counts with PEFT alone."""
    if context.technique == "full":
        return same("it counts with peft alone")
    if context.technique == "qlora":
        return took({**decides()(entry, context).settings, "qlora.bnb_4bit_use_double_quant": False})
    return left("the base stays in 16 or 32 bits; int4 becomes qlora") if values.text(entry) == "int8" else same()


def _data(entry: Entry, context: Context) -> Outcome:
    return located(values.text(entry), split=values.optional(values.text, context.source, "data.train_split"))


def _text_column(entry: Entry, context: Context) -> Outcome:
    """Take the column that holds texts, learnt whole, or conversations where a chat template is named."""
    name = values.text(entry)
    has_template = context.source.value("data.chat_template") not in (None, "none")
    try:
        if has_template:
            known = name in ("messages", "conversations")
            settings = {} if known else columns({"messages": name})
            remark = f"conversations; {ONLY_ANSWERS}, AutoTrain learns all turns"
            return took(settings, remark) if settings else left(remark.removeprefix("conversations; "))
        return took(columns({"text": name}, kind="text"), "plain text, learnt whole")
    except ValueError as error:
        return left(str(error))


def _chat_template(entry: Entry, context: Context) -> Outcome:
    return same("the model's own chat template is used") if entry.value in ("tokenizer", "none") else left(OWN_TEMPLATE)


def _block_size(entry: Entry, context: Context) -> Outcome:
    """Take the length of a block; -1 is the model's context, up to 1024."""
    size = values.whole(entry)
    return took({"max_length": size if size > 0 else _LONGEST_BLOCK}, "a prompt that is too long loses its start")


def _batch_size(entry: Entry, context: Context) -> Outcome:
    """Take the rows of a pass, which AutoTrain packs."""
    remark = (
        "AutoTrain packs examples into blocks, and here a batch counts examples: where N filled a block, multiply by N"
    )
    return took({"per_device_train_batch_size": values.whole(entry)}, remark)


def _precision(entry: Entry, context: Context) -> Outcome:
    """Take bf16; nothing is computed in fp16."""
    name = values.text(entry)
    flag = Entry(entry.path, entry.key, True, entry.line)
    rule = {"bf16": bf16, "fp16": TRAINER["fp16"]}.get(name)
    if rule is None and name != "none":
        raise entry.error("bf16, fp16 or none")
    return same() if rule is None else rule(flag, context)


def _checkpointing(entry: Entry, context: Context) -> Outcome:
    return same() if values.yes_no(entry) else took({"gradient_checkpointing": True})


def _evaluation(entry: Entry, context: Context) -> Outcome:
    """Say that the best state is kept where there is a validation split."""
    return took({"load_best_model_at_end": True}, "a split named validation or valid is found by its name")


_WITH_DATA = needless("goes with the data set")
_PREFERENCES = needless("belongs to another task")
_RULES: dict[str, Rule] = {
    "task": decides(),
    "base_model": takes("model"),
    "project_name": takes("out"),
    "log": trackers,
    "backend": leaves("tunewise runs on this machine", "local", "local-cli"),
    "data.path": _data,
    "data.train_split": _WITH_DATA,
    "data.valid_split": _evaluation,
    "data.chat_template": _chat_template,
    "data.column_mapping.text_column": _text_column,
    "data.column_mapping.prompt_text_column": _PREFERENCES,
    "data.column_mapping.rejected_text_column": _PREFERENCES,
    "params.peft": decides(),
    "params.quantization": _quantisation,
    "params.target_modules": targets,
    "params.lora_r": lora("r", values.whole),
    "params.lora_alpha": lora("lora_alpha", values.number),
    "params.lora_dropout": lora("lora_dropout", values.number),
    "params.merge_adapter": needless("tunewise export --to merged"),
    "params.block_size": _block_size,
    "params.model_max_length": needless("block_size limits a row"),
    "params.epochs": takes("num_train_epochs", values.number),
    "params.batch_size": _batch_size,
    "params.gradient_accumulation": accumulation,
    "params.lr": learning_rate,
    "params.scheduler": schedule,
    "params.optimizer": optimizer,
    "params.warmup_ratio": takes("warmup_ratio", values.number),
    "params.weight_decay": takes("weight_decay", values.number),
    "params.max_grad_norm": takes("max_grad_norm", values.number),
    "params.seed": seed,
    "params.mixed_precision": _precision,
    "params.disable_gradient_checkpointing": _checkpointing,
    "params.eval_strategy": needless("validation losses come after a number of steps; set eval_steps"),
    "params.add_eos_token": needless("an answer is learnt with its end"),
    "params.chat_template": _chat_template,
    "params.trainer": needless("task says it"),
    "params.log": trackers,
    "params.distributed_backend": leaves(SEVERAL_DEVICES),
    "hub.push_to_hub": leaves(PUSH),
    "hub.*": needless(),
}
_RULES |= dict.fromkeys(
    ("params.dpo_beta", "params.model_ref", "params.max_prompt_length", "params.max_completion_length"), _PREFERENCES
)
_RULES |= dict.fromkeys(
    (
        *("params.padding", "params.unsloth", "params.use_flash_attention_2", "params.logging_steps"),
        *("params.save_total_limit", "params.auto_find_batch_size", "params.push_to_hub", "params.token"),
    ),
    needless(),
)

AUTOTRAIN = Program(
    name="AutoTrain",
    word="autotrain",
    marks=frozenset(("task", "project_name", "data.path", "data.column_mapping", "params", "params.lr", "backend")),
    rules=_RULES,
    technique=_technique,
    defaults={
        "params.peft": False,
        "params.quantization": "int4",
        "params.target_modules": "all-linear",
        "params.lora_r": 16,
        "params.lora_alpha": 32,
        "params.lora_dropout": 0.05,
        "params.block_size": -1,
        "params.epochs": 1,
        "params.batch_size": 2,
        "params.gradient_accumulation": 4,
        "params.lr": 3e-5,
        "params.scheduler": "linear",
        "params.warmup_ratio": 0.1,
        "params.seed": 42,
    },
)
