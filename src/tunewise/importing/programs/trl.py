"""TRL: the file of `trl sft --config`, with the settings of `SFTConfig`, `ModelConfig` and the script's data.

Names and defaults are those of TRL 1 (https://huggingface.co/docs/trl/sft_trainer), with older names.
"""

from __future__ import annotations

from tunewise.importing import values
from tunewise.importing.data_source import ONLY_ANSWERS, OWN_TEMPLATE, SEVERAL, column, located
from tunewise.importing.lora_targets import modules_to_save, targets
from tunewise.importing.programs.trainer import FLOAT32_WEIGHTS, TRAINER, TRAINER_ALIASES, TRAINER_DEFAULTS, bf16
from tunewise.importing.record import Outcome, left, same, took
from tunewise.importing.rules import (
    NO_CODE,
    Context,
    Program,
    Rule,
    decides,
    double_quantisation,
    eight_bits,
    leaves,
    lora,
    lora_switch,
    needless,
    packing,
    quantisation_type,
    takes,
)
from tunewise.importing.source import Entry, Source

_PREFERENCES = ("beta", "loss_weights", "reward_funcs", "num_generations", "max_prompt_length", "desirable_weight")


def _technique(source: Source) -> str:
    """Say which technique a file asks for: full fine-tuning unless it uses PEFT."""
    for key in _PREFERENCES:
        if source.value(key) is not None:
            raise source.entries[key].refusal("tunewise trains on right answers only, not on preferences or rewards")
    if not values.is_true(source, "use_peft"):
        return "full"
    return "qlora" if values.is_true(source, "load_in_4bit") else "lora"


def _data(entry: Entry, context: Context) -> Outcome:
    """Take the data set, with its configuration and its split; a mixture of one replaces the script's own."""
    source = context.source
    if entry.key == "dataset_name" and source.value("datasets.path") is not None:
        return same("datasets says it")
    prefix, split = ("datasets.", "datasets.split") if "." in entry.key else ("dataset_", "dataset_train_split")
    config = values.optional(values.text, source, f"{prefix}name" if "." in entry.key else "dataset_config")
    files = source.value("datasets.data_files") if "." in entry.key else None
    return located(values.text(entry), files, config, values.optional(values.text, source, split))


def _bf16(entry: Entry, context: Context) -> Outcome:
    """Take bfloat16, which is TRL's default where float16 is not asked for."""
    return same() if entry.line is None and values.is_true(context.source, "fp16") else bf16(entry, context)


def _weights(entry: Entry, context: Context) -> Outcome:
    """Take the type of the frozen weights; weights that are trained stay float32."""
    name = values.text(entry)
    if name == "float32":
        return same()
    if context.is_low_rank and name == "bfloat16":
        return took({"dtype": "bfloat16"})
    return left(FLOAT32_WEIGHTS)


def _text_field(entry: Entry, context: Context) -> Outcome:
    """Take the column of plain texts, which are learnt whole."""
    outcome = column("text", values.text(entry))
    return took({"kind": "text", **outcome.settings}, "whole texts are learnt; leave kind out where rows have answers")


def _assistant_only(entry: Entry, context: Context) -> Outcome:
    return same() if values.yes_no(entry) else left(f"{ONLY_ANSWERS}; TRL learns all turns of a conversation")


def _completion_only(entry: Entry, context: Context) -> Outcome:
    return same() if values.yes_no(entry) else left(ONLY_ANSWERS)


_SAID_BY_DATA = needless("goes with the data set")
_RULES: dict[str, Rule] = {
    **TRAINER,
    "bf16": _bf16,
    "model_name_or_path": takes("model"),
    "model_revision": takes("revision"),
    "dtype": _weights,
    "attn_implementation": needless(),
    "trust_remote_code": leaves(NO_CODE),
    "model_init_kwargs": leaves("models are loaded with options of tunewise's own: revision, dtype, device"),
    "use_peft": decides(),
    "load_in_4bit": decides(),
    "load_in_8bit": eight_bits,
    "bnb_4bit_quant_type": quantisation_type,
    "use_bnb_nested_quant": double_quantisation,
    "bnb_4bit_quant_storage": needless(),
    "lora_r": lora("r", values.whole),
    "lora_alpha": lora("lora_alpha", values.number),
    "lora_dropout": lora("lora_dropout", values.number),
    "lora_target_modules": targets,
    "lora_target_parameters": leaves("targets are modules here, not parameters"),
    "lora_modules_to_save": modules_to_save,
    "lora_task_type": leaves("models of language are trained, not classifiers; a label is an answer", "CAUSAL_LM"),
    "use_rslora": lora_switch("use_rslora"),
    "use_dora": lora_switch("use_dora"),
    "dataset_name": _data,
    "dataset_config": _SAID_BY_DATA,
    "dataset_train_split": _SAID_BY_DATA,
    "dataset_test_split": needless("a split named validation or test is found by its name"),
    "dataset_streaming": needless("data is read whole"),
    "streaming": needless("data is read whole"),
    "datasets": leaves(SEVERAL),
    "datasets.path": _data,
    "datasets.name": _SAID_BY_DATA,
    "datasets.data_files": _SAID_BY_DATA,
    "datasets.split": _SAID_BY_DATA,
    "datasets.data_dir": leaves("give the folder itself with --data"),
    "datasets.columns": needless("columns are chosen by their names"),
    "datasets.fraction": needless("it is the only data set"),
    "test_split_size": leaves("a tenth of the prompts is the test split where the data has none"),
    "dataset_text_field": _text_field,
    "dataset_kwargs": leaves("data is always prepared here"),
    "max_length": takes("max_length", values.whole, "a prompt that is too long loses its start, not its end"),
    "truncation_mode": leaves("a prompt that is too long loses its start", "keep_end"),
    "packing": packing,
    "completion_only_loss": _completion_only,
    "assistant_only_loss": _assistant_only,
    "chat_template_path": leaves(OWN_TEMPLATE),
    "eos_token": leaves("an answer ends with the token that the chat template writes, or the tokenizer's own"),
    "loss_type": leaves("the loss is the negative log-likelihood of the answers", "nll", "chunked_nll"),
    "shuffle_dataset": needless("the order is random"),
    "env": needless("set variables of the environment where you run tunewise"),
    "config": needless(),
}
_RULES |= dict.fromkeys(
    (
        *("dataset_num_proc", "dataset_batch_size", "packing_strategy", "eval_packing", "padding_free", "pad_token"),
        *("pad_to_multiple_of", "activation_offloading", "router_aux_loss_coef", "ignore_bias_buffers"),
        "use_liger_kernel",
    ),
    needless(),
)

TRL = Program(
    name="TRL",
    word="trl",
    marks=frozenset(
        (
            *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_text_field"),
            *("use_peft", "assistant_only_loss", "completion_only_loss", "use_bnb_nested_quant", "model_init_kwargs"),
            *("packing_strategy", "chat_template_path", "dataset_kwargs", "lora_task_type"),
        )
    ),
    rules=_RULES,
    technique=_technique,
    defaults=TRAINER_DEFAULTS
    | {
        "use_peft": False,
        "bf16": True,
        "learning_rate": 2e-5,
        "max_length": 1024,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj"],  # PEFT's, for most architectures
        "use_bnb_nested_quant": False,
        "assistant_only_loss": False,
    },
    aliases=TRAINER_ALIASES | {"max_seq_length": "max_length", "torch_dtype": "dtype"},
)
