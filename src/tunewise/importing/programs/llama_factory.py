"""LLaMA-Factory: the YAML that `llamafactory-cli train` reads, for its stages `sft` and `pt`.

Names and defaults are those of LLaMA-Factory 0.9 (https://llamafactory.readthedocs.io).
"""

from __future__ import annotations

from pathlib import Path

from tunewise.core.artifact_reader import read_json
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import JsonObject
from tunewise.core.text import show
from tunewise.importing import values
from tunewise.importing.data_source import (
    ONE_FOLDER,
    ONLY_ANSWERS,
    OTHER_SPLITS,
    OWN_TEMPLATE,
    SEVERAL,
    SYSTEM_PROMPT,
    columns,
    located,
)
from tunewise.importing.lora_targets import modules_to_save, targets
from tunewise.importing.programs.trainer import TRAINER, TRAINER_ALIASES, TRAINER_DEFAULTS, bf16_with_weights
from tunewise.importing.record import Outcome, Setting, left, same, took
from tunewise.importing.rules import (
    NO_CODE,
    SEVERAL_DEVICES,
    Context,
    Program,
    Rule,
    decides,
    double_quantisation,
    leaves,
    lora,
    lora_switch,
    needless,
    packing,
    quantisation_type,
    switches_on,
    takes,
)
from tunewise.importing.source import Entry, Source

_TECHNIQUES = {"lora": "lora", "full": "full", "freeze": "last_layers", "oft": "peft:oft"}
_INFO = "dataset_info.json"
# Names of columns: ours for theirs, by the format of the data set.
_COLUMNS = {
    "alpaca": {
        **{"prompt": "instruction", "query": "input", "response": "output"},
        **{"system": "system", "history": "history"},
    },
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
}


def _technique(source: Source) -> str:
    """Say which technique a file asks for; stages that learn from preferences or rewards are refused."""
    stage = source.entry("stage", default="sft")
    if values.text(stage) not in ("sft", "pt"):
        raise stage.refusal("tunewise trains on right answers and plain text only (stages sft and pt)")
    kind = source.entry("finetuning_type", default="lora")
    technique = _TECHNIQUES.get(values.text(kind))
    if technique is None:
        raise kind.refusal(f"there is no such technique here; it can be {', '.join(_TECHNIQUES)}")
    bits = values.optional(values.whole, source, "quantization_bit")
    return "qlora" if technique == "lora" and bits == 4 else technique


def _bits(entry: Entry, context: Context) -> Outcome:
    """Say what became of quantisation: four bits are QLoRA, others are none."""
    if values.whole(entry) == 4 and context.technique == "qlora":
        return decides()(entry, context)
    return left("the base stays in 16 or 32 bits; quantization_bit: 4 with LoRA becomes qlora")


def _method(entry: Entry, context: Context) -> Outcome:
    return same() if values.text(entry) in ("bnb", "bitsandbytes") else left("the base is quantised to NF4 here")


def _alpha(entry: Entry, context: Context) -> Outcome:
    """Take alpha, which is twice the rank where it is not given."""
    if entry.line is None:
        twice = 2 * values.whole(context.source.entry("lora_rank", default=8))
        entry = Entry(entry.path, entry.key, twice, entry.line)
    return lora("lora_alpha", values.number)(entry, context)


def _pissa(entry: Entry, context: Context) -> Outcome:
    if not (values.yes_no(entry) and context.is_low_rank):
        return same()
    return took({f"{context.technique}.init_lora_weights": "pissa"})


def _frozen(entry: Entry, context: Context) -> Outcome:
    """Take the number of blocks that are trained: the top ones, or the bottom ones where it is negative."""
    count = values.whole(entry)
    if context.technique != "last_layers":
        return same()
    chosen: dict[str, Setting] = {"last_layers.k": count}
    if count < 0:
        chosen = {"last_layers.layers": [str(number) for number in range(min(-count, 1000))]}
    return took({**chosen, "last_layers.head": "frozen"}, "the final norm is trained too")


def _oft(name: str) -> Rule:
    """Make the rule of a setting of OFT."""
    return lambda entry, context: (
        took({f"peft:oft.{name}": values.number(entry) if name == "module_dropout" else values.whole(entry)})
        if context.technique == "peft:oft"
        else same()
    )


def _oft_target(entry: Entry, context: Context) -> Outcome:
    if context.technique != "peft:oft":
        return same()
    modules = values.names(entry)
    return took({"peft:oft.target_modules": "all-linear" if "all" in modules else modules})


def _galore(name: str) -> Rule:
    """Make the rule of a setting of GaLore, which counts where it is used."""

    def rule(entry: Entry, context: Context) -> Outcome:
        if context.technique != "full" or not values.is_true(context.source, "use_galore"):
            return same()
        return took({f"full.{name}": values.number(entry) if name == "galore_scale" else values.whole(entry)})

    return rule


def _use_galore(entry: Entry, context: Context) -> Outcome:
    if not values.yes_no(entry):
        return same()
    if context.technique != "full":
        return left("GaLore is an optimiser of full")
    return took({"full.optimizer": "galore"})


def _plain_checkpointing(entry: Entry, context: Context) -> Outcome:
    """Take keeping activations or not; LLaMA-Factory recomputes them unless it is told not to."""
    return same() if values.yes_no(entry) else took({"gradient_checkpointing": True})


def _stage(entry: Entry, context: Context) -> Outcome:
    if values.text(entry) == "pt":
        return took({"kind": "text"}, "plain text, learnt whole")
    return same("answers are learnt")


def _validation(entry: Entry, context: Context) -> Outcome:
    """Compare the size of the validation split with the tenth that is held back here."""
    if values.number(entry) == 0.1:
        return same(OTHER_SPLITS)
    return left(OTHER_SPLITS)


def _revision(entry: Entry, context: Context) -> Outcome:
    return same() if values.text(entry) == "main" else took({"revision": values.text(entry)})


def _data(entry: Entry, context: Context) -> Outcome:
    """Take the data set, whose file and columns stand in `dataset_info.json` beside the data."""
    source = context.source
    names = values.names(entry)
    if len(names) > 1:
        return left(SEVERAL)
    folder = values.text(source.entry("dataset_dir", default="data"))
    sample = values.optional(values.whole, source, "max_samples")
    split = f"train[:{sample}]" if sample is not None and sample > 0 else None
    if folder == "ONLINE":
        return located(names[0], split=split)
    info = Path(folder) / _INFO
    if not info.is_file():
        return left(
            f"{show(names[0])} is described in {show(str(info), 200)}, which is not here; give its file with --data"
        )
    try:
        described = read_json(info)
    except ArtifactError as error:
        return left(f"{error}; give its file with --data")
    if not isinstance(description := described.get(names[0]), dict):
        return left(f"{show(names[0])} is not in {show(str(info), 200)}; give its file with --data")
    return _described(description, folder, split, plain=source.value("stage") == "pt")


def _described(description: JsonObject, folder: str, split: str | None, *, plain: bool) -> Outcome:
    """Take a data set by its description in `dataset_info.json`."""

    def words(name: str) -> str | None:
        value = description.get(name)
        return value if isinstance(value, str) and value else None

    format_, given = words("formatting") or "alpaca", description.get("columns")
    known = _COLUMNS["sharegpt" if format_ == "openai" else format_ if format_ in _COLUMNS else "alpaca"]
    if description.get("ranking"):
        return left("its rows are preferences, and right answers are learnt here")
    if hub := words("hf_hub_url"):
        outcome = located(hub, None, words("subset"), split or words("split"))
    elif file := words("file_name"):
        outcome = located(str(Path(folder) / file), split=split)
    else:
        return left("its description names no file and no data set of the Hub; give its file with --data")
    named = {k: v for k, v in given.items() if isinstance(v, str)} if isinstance(given, dict) else {}
    mapped = (
        {"text": named["prompt"]}
        if plain and "prompt" in named
        else {known[k]: v for k, v in named.items() if k in known}
    )
    try:
        return took({**outcome.settings, **columns(mapped)}, outcome.remark) if outcome.settings else outcome
    except ValueError as error:
        return left(str(error))


_WITH_DATA = needless("goes with dataset")
_OTHER_STAGES = needless("belongs to another stage")
_NO_PICTURES = needless("text alone is learnt here")
_OTHER_METHOD = "there is no such method here"
_OTHER_LOSS = "the loss is the negative log-likelihood of the answers"
_RULES: dict[str, Rule] = {
    **TRAINER,
    "stage": _stage,
    "finetuning_type": decides(),
    "quantization_bit": _bits,
    "quantization_method": _method,
    "quantization_type": quantisation_type,
    "double_quantization": double_quantisation,
    "quantization_device_map": needless(),
    "model_name_or_path": takes("model"),
    "model_revision": _revision,
    "adapter_name_or_path": leaves(
        "training starts from the base; merge the adapter into it first, and name the result"
    ),
    "resize_vocab": switches_on("resize_embeddings"),
    "add_tokens": leaves("add them to the model's tokenizer, and set resize_embeddings"),
    "add_special_tokens": leaves("add them to the model's tokenizer, and set resize_embeddings"),
    "new_special_tokens_config": leaves("add them to the model's tokenizer, and set resize_embeddings"),
    "rope_scaling": leaves("write it into the model's config.json"),
    "shift_attn": leaves(_OTHER_METHOD),
    "mixture_of_depths": leaves(_OTHER_METHOD),
    "moe_aux_loss_coef": leaves(_OTHER_LOSS, 0),
    "train_from_scratch": leaves("training starts from the model's weights"),
    "trust_remote_code": leaves(NO_CODE),
    "disable_gradient_checkpointing": _plain_checkpointing,
    "bf16": bf16_with_weights,
    "pure_bf16": bf16_with_weights,
    "fp8": leaves("nothing is computed in eight bits; set bf16"),
    "lora_rank": lora("r", values.whole),
    "lora_alpha": _alpha,
    "lora_dropout": lora("lora_dropout", values.number),
    "lora_target": targets,
    "additional_target": modules_to_save,
    "loraplus_lr_ratio": lora("loraplus_lr_ratio", values.number),
    "loraplus_lr_embedding": needless("embeddings have no rate of their own"),
    "use_rslora": lora_switch("use_rslora"),
    "use_dora": lora_switch("use_dora"),
    "pissa_init": _pissa,
    "pissa_iter": needless("the singular vectors are exact"),
    "pissa_convert": needless("a merged export and a PEFT adapter are those of a plain LoRA"),
    "create_new_adapter": needless(),
    "freeze_trainable_layers": _frozen,
    "freeze_trainable_modules": leaves("whole blocks are trained", "all"),
    "freeze_extra_modules": leaves("last_layers.head and the final norm are all that is trained beside the blocks"),
    "oft_rank": _oft("r"),
    "oft_block_size": _oft("oft_block_size"),
    "oft_target": _oft_target,
    "module_dropout": _oft("module_dropout"),
    "use_galore": _use_galore,
    "galore_rank": _galore("galore_rank"),
    "galore_update_interval": _galore("galore_update_proj_gap"),
    "galore_scale": _galore("galore_scale"),
    "galore_target": needless("GaLore projects every linear of the blocks"),
    "galore_proj_type": needless(),
    "galore_layerwise": needless("lomo and adalomo free each gradient at once"),
    "use_apollo": leaves("full.optimizer: galore is nearest"),
    "use_badam": leaves("full.lisa_layers trains some blocks at a time"),
    "use_adam_mini": leaves("full.optimizer: adafactor or adamw8bit needs little memory"),
    "use_muon": leaves("AdamW moves parameters here"),
    "use_llama_pro": leaves(_OTHER_METHOD),
    "use_dft_loss": leaves(_OTHER_LOSS),
    "use_asft_loss": leaves(_OTHER_LOSS),
    "use_eaft_loss": leaves(_OTHER_LOSS),
    "use_mca": leaves(SEVERAL_DEVICES),
    "use_megatron_bridge": leaves(SEVERAL_DEVICES),
    "use_hyper_parallel": leaves(SEVERAL_DEVICES),
    "tensor_model_parallel_size": leaves(SEVERAL_DEVICES, 1),
    "pipeline_model_parallel_size": leaves(SEVERAL_DEVICES, 1),
    "expert_model_parallel_size": leaves(SEVERAL_DEVICES, 1),
    "context_parallel_size": leaves(SEVERAL_DEVICES, 1),
    "sequence_parallel": leaves(SEVERAL_DEVICES),
    "disable_shuffling": leaves("the order of the data is random"),
    "early_stopping_steps": takes("early_stopping_patience", values.whole),
    "use_swanlab": leaves("compare takes report_to: tensorboard, wandb, mlflow or trackio"),
    "template": leaves(OWN_TEMPLATE),
    "dataset": _data,
    "dataset_dir": _WITH_DATA,
    "max_samples": _WITH_DATA,
    "eval_dataset": leaves(ONE_FOLDER),
    "val_size": _validation,
    "cutoff_len": takes("max_length", values.whole, "a prompt that is too long loses its start"),
    "train_on_prompt": leaves(ONLY_ANSWERS),
    "mask_history": leaves('earlier answers are learnt too; mark their turns with "train": false in the data'),
    "packing": packing,
    "neat_packing": packing,
    "default_system": leaves(SYSTEM_PROMPT),
    "enable_thinking": needless("what the template writes before every answer is not learnt"),
    "preserve_thinking": needless("the model's chat template decides it"),
    "tool_format": leaves("the model's own chat template writes tools"),
    "interleave_probs": leaves(SEVERAL),
    "streaming": needless("data is read whole"),
    "tokenized_path": needless("text is turned into tokens each time"),
    "split_special_tokens": needless("control tokens that a text spells are always text"),
}
_RULES |= dict.fromkeys(
    (
        *("pref_*", "dpo_*", "kto_*", "ppo_*", "simpo_gamma", "ref_model*", "reward_model*", "ld_alpha"),
        *("asft_alpha", "eaft_alpha", "apollo_*", "badam_*", "megatron_bridge_args", "hyper_parallel_*"),
    ),
    _OTHER_STAGES,
)
_RULES |= dict.fromkeys(
    ("image_*", "video_*", "audio_*", "crop_to_patches", "use_audio_in_video", "media_dir", "freeze_*"), _NO_PICTURES
)
_RULES |= dict.fromkeys(
    (
        *("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "repetition_penalty"),
        *("length_penalty", "skip_special_tokens", "eval_num_beams", "infer_*", "vllm_*", "sglang_*", "export_*"),
        *("use_kv_cache", "offload_folder"),
    ),
    needless("it is about answering, not training"),
)
_RULES |= dict.fromkeys(
    (
        *("cache_dir", "use_fast_tokenizer", "low_cpu_mem_usage", "flash_attn", "use_unsloth", "use_unsloth_gc"),
        *("enable_liger_kernel", "use_reentrant_gc", "upcast_layernorm", "upcast_lmhead_output", "use_v1_kernels"),
        *("hf_hub_token", "ms_hub_token", "om_hub_token", "print_param_status", "adapter_folder", "kt_*", "use_kt"),
        *("overwrite_cache", "preprocessing_batch_size", "preprocessing_num_workers", "buffer_size", "mix_strategy"),
        *("ignore_pad_token_for_loss", "eval_on_each_dataset", "data_shared_file_system", "compute_accuracy"),
        *("plot_loss", "swanlab_*", "ray_*", "master_addr", "master_port", "fp8_*", "enable_torch_profiler"),
        *("profiler_*", "profile_modules", "init_special_tokens"),
    ),
    needless(),
)

LLAMA_FACTORY = Program(
    name="LLaMA-Factory",
    word="llama-factory",
    marks=frozenset(
        (
            *("stage", "finetuning_type", "cutoff_len", "template", "dataset_dir", "lora_target", "lora_rank"),
            *("quantization_bit", "val_size", "overwrite_cache", "preprocessing_num_workers", "max_samples"),
            *("freeze_trainable_layers", "neat_packing", "plot_loss", "eval_dataset"),
        )
    ),
    rules=_RULES,
    technique=_technique,
    defaults=TRAINER_DEFAULTS
    | {
        "finetuning_type": "lora",
        "cutoff_len": 2048,
        "lora_rank": 8,
        "lora_alpha": "twice lora_rank",
        "lora_target": "all",
        "lora_dropout": 0.0,
        "double_quantization": True,
        "freeze_trainable_layers": 2,
        "galore_rank": 16,
        "galore_update_interval": 200,
        "galore_scale": 2.0,
        "oft_block_size": 32,
        "oft_target": "all",
    },
    aliases=TRAINER_ALIASES,
)
