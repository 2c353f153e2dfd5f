"""Axolotl: the YAML that `axolotl train` reads, for supervised fine-tuning and pretraining.

Names and defaults are those of Axolotl 0.13 (https://docs.axolotl.ai/docs/config-reference.html), with older names.
"""

from __future__ import annotations

from tunewise.importing import values
from tunewise.importing.lora_targets import ALL_LINEAR, modules_to_save, pattern, start, targets
from tunewise.importing.optimizers import optimizer
from tunewise.importing.programs.axolotl_data import DATA_RULES
from tunewise.importing.programs.trainer import (
    TRAINER,
    bf16_with_weights,
    epochs,
    schedule,
)
from tunewise.importing.record import Outcome, left, same, took
from tunewise.importing.rules import (
    NO_CODE,
    SEVERAL_DEVICES,
    Context,
    Program,
    Rule,
    accumulation,
    decides,
    eight_bits,
    leaves,
    lora,
    lora_switch,
    needless,
    not_low_rank,
    packing,
    takes,
)
from tunewise.importing.source import Entry, Source


def _technique(source: Source) -> str:
    """Say which technique a file asks for: full fine-tuning unless it names an adapter."""
    for key in ("rl", "reward_model", "process_reward_model"):
        if source.value(key) not in (None, False, ""):
            raise source.entries[key].refusal("tunewise trains on right answers only, not on preferences or rewards")
    adapter = values.optional(values.text, source, "adapter") if source.value("adapter") != "" else None
    if adapter is None:
        return "full"
    if adapter not in ("lora", "qlora"):
        raise source.entries["adapter"].refusal("there is no such technique here; it can be lora, qlora or empty")
    return "qlora" if values.is_true(source, "load_in_4bit") else adapter


def _targets_all(entry: Entry, context: Context) -> Outcome:
    """Take all linears, with the modules that are named beside them."""
    if outcome := not_low_rank(context):
        return outcome
    if not values.yes_no(entry):
        return same()
    further = values.optional(values.names, context.source, "lora_target_modules") or []
    return targets(Entry(entry.path, entry.key, [ALL_LINEAR, *further], entry.line), context)


def _targets(entry: Entry, context: Context) -> Outcome:
    """Take the named modules; where there are none, PEFT's default for most architectures."""
    if values.is_true(context.source, "lora_target_linear"):
        return same("all linears are targets already")
    return targets(entry, context)


def _accumulation(entry: Entry, context: Context) -> Outcome:
    """Take the passes of a step; `batch_size` counts a step's examples on each device instead."""
    return accumulation(entry, context) if context.source.value("batch_size") is None else same("batch_size says it")


def _batch_size(entry: Entry, context: Context) -> Outcome:
    examples, size = values.whole(entry), values.whole(context.source.entry("micro_batch_size", default=1))
    passes = max(1, examples // max(1, size))
    return accumulation(Entry(entry.path, entry.key, passes, entry.line), context)


def _no_warmup(entry: Entry, context: Context) -> Outcome:
    """Compare Axolotl's warm-up with the one here, where the file gives none."""
    if entry.line is None and context.source.value("warmup_steps") is not None:
        return same()
    return TRAINER["warmup_ratio"](entry, context)


def _tracker(entry: Entry, context: Context) -> Outcome:
    return same() if entry.value in ("", False) else left("fit logs to its folder; compare takes report_to")


def _tokenizer(entry: Entry, context: Context) -> Outcome:
    if entry.value == context.source.value("base_model"):
        return same()
    return left("the tokenizer is the model's own; put another one into the model's folder")


_SHARED = (
    *("learning_rate", "gradient_accumulation_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "max_steps", "warmup_steps", "warmup_ratio", "eval_strategy", "eval_steps", "save_strategy"),
    *(
        "save_steps",
        "save_total_limit",
        "save_only_model",
        "save_safetensors",
        "logging_steps",
        "load_best_model_at_end",
    ),
    *(
        "metric_for_best_model",
        "greater_is_better",
        "seed",
        "resume_from_checkpoint",
        "fp16",
        "tf32",
        "group_by_length",
    ),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "neftune_noise_alpha", "optim_args", "deepspeed"),
    *("fsdp", "fsdp_config", "lr_scheduler_kwargs", "optim_target_modules", "auto_find_batch_size", "torch_compile"),
    *("torch_compile_*", "dataloader_*", "ddp_*", "remove_unused_columns", "local_rank", "hub_*", "accelerator_config"),
    *("torch_empty_cache_steps", "label_names", "include_*", "output_dir", "trackio_*"),
)
_RULES: dict[str, Rule] = {
    **{name: TRAINER[name] for name in _SHARED},
    "gradient_accumulation_steps": _accumulation,
    "warmup_ratio": _no_warmup,
    "base_model": takes("model"),
    "revision_of_model": takes("revision"),
    "tokenizer_config": _tokenizer,
    "trust_remote_code": leaves(NO_CODE),
    "adapter": decides(),
    "load_in_4bit": needless("adapter says it"),
    "load_in_8bit": eight_bits,
    "gptq": leaves("name the model in full precision; qlora keeps it in four bits"),
    "bnb_config_kwargs": leaves("qlora keeps weights in NF4 with double quantisation"),
    "lora_model_dir": leaves("training starts from the base; merge the adapter into it first, and name the result"),
    "lora_r": lora("r", values.whole),
    "lora_alpha": lora("lora_alpha", values.number),
    "lora_dropout": lora("lora_dropout", values.number),
    "lora_target_linear": _targets_all,
    "lora_target_modules": _targets,
    "lora_target_parameters": leaves("targets are modules here, not parameters"),
    "lora_modules_to_save": modules_to_save,
    "lora_rank_pattern": pattern("rank_pattern"),
    "lora_alpha_pattern": pattern("alpha_pattern"),
    "peft_use_dora": lora_switch("use_dora"),
    "peft_use_rslora": lora_switch("use_rslora"),
    "peft_init_lora_weights": start,
    "peft_layers_to_transform": leaves("name the modules with their layers in target_modules, as layers.3.mlp.up_proj"),
    "peft.loftq_config.loftq_bits": leaves("there is no such start here; pissa and olora are"),
    "loraplus_lr_ratio": lora("loraplus_lr_ratio", values.number),
    "loraplus_lr_embedding": needless("embeddings have no rate of their own"),
    "processor_*": leaves("text alone is learnt here"),
    "relora_*": needless("goes with relora"),
    "jagged_restart_*": leaves("the rate does not start again"),
    "lr_quadratic_warmup": leaves("the rate rises in a straight line"),
    "eta_min": leaves("the rate falls to zero", 0),
    "model_quantization_config": leaves("name the model in full precision; qlora keeps it in four bits"),
    "model_quantization_config_kwargs": needless("goes with model_quantization_config"),
    "quantize_moe_experts": leaves("qlora quantises the linears that it finds in the blocks"),
    "tokenizer_use_mistral_common": leaves("the tokenizer is the one that transformers loads"),
    "use_swanlab": _tracker,
    "expert_parallel_size": leaves(SEVERAL_DEVICES, 1),
    "relora": leaves("an update is not merged while training goes on"),
    "merge_lora": needless("tunewise export --to merged"),
    "unfrozen_parameters": leaves("last_layers trains the top blocks, and bitfit biases"),
    "lisa_n_layers": lambda entry, context: (
        took({"full.lisa_layers": values.whole(entry)}) if context.technique == "full" else same()
    ),
    "lisa_step_interval": lambda entry, context: (
        took({"full.lisa_interval": values.whole(entry)}) if context.technique == "full" else same()
    ),
    "lisa_layers_attribute": needless(),
    "micro_batch_size": takes("per_device_train_batch_size", values.whole),
    "batch_size": _batch_size,
    "num_epochs": epochs,
    "lr_scheduler": schedule,
    "cosine_min_lr_ratio": leaves("the rate falls to zero", 0),
    "cosine_constant_lr_ratio": leaves("the rate falls to the last step", 0),
    "optimizer": optimizer,
    "embedding_lr": leaves("one rate for all parameters"),
    "embedding_lr_scale": leaves("one rate for all parameters"),
    "lr_groups": leaves("one rate for all parameters"),
    "bf16": bf16_with_weights,
    "bfloat16": bf16_with_weights,
    "float16": TRAINER["fp16"],
    "fp8": leaves("nothing is computed in eight bits; set bf16"),
    "sequence_len": takes("max_length", values.whole, "a prompt that is too long loses its start; no row is dropped"),
    "excess_length_strategy": leaves("rows that are too long are cut, not dropped", "truncate"),
    "min_sample_len": needless("short rows are kept"),
    "sample_packing": packing,
    "early_stopping_patience": takes("early_stopping_patience", values.whole),
    "evals_per_epoch": leaves("validation losses come after a number of steps; set eval_steps", 0),
    "saves_per_epoch": needless("checkpoints serve --resume; the result is always saved"),
    "auto_resume_from_checkpoints": leaves("--resume continues a stopped run of tunewise"),
    **DATA_RULES,
    "tensor_parallel_size": leaves(SEVERAL_DEVICES, 1),
    "context_parallel_size": leaves(SEVERAL_DEVICES, 1),
    "sequence_parallel_degree": leaves(SEVERAL_DEVICES, 1),
    "dp_shard_size": leaves(SEVERAL_DEVICES, 1),
    "dp_replicate_size": leaves(SEVERAL_DEVICES, 1),
    "fsdp_version": needless(),
    "overrides_of_model_config": leaves("write it into the model's config.json"),
    "overrides_of_model_kwargs": leaves("models are loaded with options of tunewise's own: revision, dtype, device"),
    "rope_scaling": leaves("write it into the model's config.json"),
    "reinit_weights": leaves("training starts from the model's weights"),
    "use_eaft": leaves("the loss is the negative log-likelihood of the answers"),
    "qat": leaves("weights are not trained for quantisation; tunewise export writes GGUF"),
    "plugins": leaves("Axolotl's plug-ins do not run here"),
    "wandb_project": _tracker,
    "use_wandb": _tracker,
    "use_mlflow": _tracker,
    "use_comet": _tracker,
    "use_tensorboard": _tracker,
    "use_trackio": _tracker,
    "mlflow_tracking_uri": _tracker,
}
_RULES |= dict.fromkeys(
    ("dpo_*", "kto_*", "orpo_alpha", "simpo_gamma", "cpo_alpha", "rl", "rl_beta", "trl"), needless()
)
_RULES |= dict.fromkeys(
    (
        *(
            "flash_attention",
            "flash_attn_*",
            "xformers_attention",
            "sdp_attention",
            "eager_attention",
            "flex_attention",
        ),
        *("attn_implementation", "s2_attention", "lora_*_kernel", "chunked_cross_entropy*", "tiled_mlp*", "unsloth_*"),
        *("liger_*", "cut_cross_entropy", "dataset_prepared_path", "dataset_processes", "dataset_num_proc"),
        *("dataset_keep_in_memory", "dataset_exact_deduplication", "shuffle_merged_datasets", "skip_prepare_dataset"),
        *("pad_to_sequence_len", "eval_sample_packing", "sample_packing_*", "eval_batch_size", "eval_sequence_len"),
        *(
            "model_type",
            "type_of_model",
            "tokenizer_type",
            "tokenizer_use_fast",
            "tokenizer_legacy",
            "base_model_config",
        ),
        *("is_*_derived_model", "strict", "low_cpu_mem_usage", "lora_on_cpu", "lora_fan_in_fan_out", "device_map"),
        *("wandb_*", "mlflow_*", "comet_*", "gradio_*", "hf_use_auth_token", "hf_mlflow_log_artifacts", "use_otel*"),
        *("resize_token_embeddings_to_32x", "mean_resizing_embeddings", "shrink_embeddings", "embeddings_skip_upcast"),
        *("debug", "gc_steps", "save_first_step", "eval_table_size", "eval_max_new_tokens", "flash_optimum"),
        *("loss_watchdog_*", "max_memory", "gpu_memory_limit", "activation_offloading", "layer_offloading"),
        *("qlora_sharded_model_loading", "peft_autocast_adapter_dtype", "float32", "profiler_steps*", "streaming"),
        *("streaming_multipack_buffer_size", "pretrain_multipack_*", "pretraining_sample_concatenation", "use_ray"),
        *("ray_*", "resources_per_worker", "do_causal_lm_eval", "eval_causal_lm_metrics", "multipack_real_batches"),
        *("batch_flattening", "gptq_*", "torchdistx_path", "use_kernels", "use_scattermoe"),
        *(
            "use_sonicmoe",
            "experts_implementation",
            "experimental_skip_move_to_device",
            "flex_attn_*",
            "fused_attn_kernel",
        ),
        *("gemma4_hybrid_attn_impl", "llama4_linearized_experts", "swanlab_*", "otel_*", "expert_parallel_*", "eaft_*"),
        *(
            "max_packed_sequence_len",
            "freeze_mm_modules",
            "fp8_*",
            "total_num_tokens",
            "fix_untrained_tokens",
            "generate_samples",
            "generation_*",
            "num_generation_samples",
        ),
    ),
    needless(),
)

AXOLOTL = Program(
    name="Axolotl",
    word="axolotl",
    marks=frozenset(
        (
            *("sequence_len", "sample_packing", "micro_batch_size", "val_set_size", "dataset_prepared_path", "adapter"),
            *("lora_target_linear", "train_on_inputs", "wandb_project", "saves_per_epoch", "evals_per_epoch"),
            *("pad_to_sequence_len", "flash_attention", "num_epochs", "datasets.type", "pretraining_dataset"),
        )
    ),
    rules=_RULES,
    technique=_technique,
    defaults={
        "output_dir": "./model-out",
        "adapter": "none",
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1.0,
        "sequence_len": 512,
        "lr_scheduler": "cosine",
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],  # PEFT's, for most architectures
        "bf16": "auto",
        "warmup_ratio": 0.03,
        "seed": 42,
    },
    aliases={
        "evaluation_strategy": "eval_strategy",
        "model_revision": "revision_of_model",
        "model_config": "overrides_of_model_config",
        "model_kwargs": "overrides_of_model_kwargs",
        "noisy_embedding_alpha": "neftune_noise_alpha",
    },
)
