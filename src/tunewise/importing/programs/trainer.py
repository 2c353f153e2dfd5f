"""The settings of `TrainingArguments` of transformers, which several programs share.

Names and defaults are those of transformers 5 (https://huggingface.co/docs/transformers/main_classes/trainer), with the
names that older versions had.
"""

from __future__ import annotations

from tunewise.importing import values
from tunewise.importing.optimizers import optimizer
from tunewise.importing.record import Outcome, left, same, took
from tunewise.importing.rules import (
    SEVERAL_DEVICES,
    Context,
    Rule,
    accumulation,
    learning_rate,
    leaves,
    needless,
    seed,
    steps,
    switches_on,
    takes,
    trackers,
)
from tunewise.importing.source import Entry

SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial"),
    *("constant", "constant_with_warmup", "inverse_sqrt"),
)
PUSH = "the result stays on this machine; tunewise push puts it on the Hub"
FLOAT32_WEIGHTS = (
    "trained weights are float32; full.optimizer: adamw_bf16 with dtype: bfloat16 takes two bytes for each"
)
RESUME = "a run of another program cannot be continued; --resume continues a stopped run of tunewise"


def schedule(entry: Entry, context: Context) -> Outcome:
    """Take a schedule that needs no arguments of its own."""
    name = values.text(entry)
    if name in SCHEDULES:
        return took({"lr_scheduler_type": name})
    return left(f"there is no such schedule here, so it is cosine; others are {', '.join(SCHEDULES)}")


def epochs(entry: Entry, context: Context) -> Outcome:
    """Take the epochs, unless steps say how long training is."""
    limit = context.source.entry("max_steps", default=-1)
    if values.number(limit) > 0:
        return same("max_steps says how long it trains")
    return took({"num_train_epochs": values.number(entry)})


def max_steps(entry: Entry, context: Context) -> Outcome:
    """Take the steps; below 1, epochs say how long training is."""
    count = values.whole(entry)
    return steps(context, count) if count > 0 else same("epochs say how long it trains")


def warmup_steps(entry: Entry, context: Context) -> Outcome:
    """Take the steps of the warm-up; below 1 they are a share of all steps."""
    count = values.number(entry)
    if count == 0 and context.source.value("warmup_ratio") is not None:
        return same("warmup_ratio says it")
    return took({"warmup_ratio": count} if count < 1 else {"warmup_steps": int(count)})


def evaluation_steps(entry: Entry, context: Context) -> Outcome:
    """Take the steps between validation losses, where it is steps that the file counts in."""
    strategy = context.source.value("eval_strategy")
    if strategy not in (None, "steps"):
        return same(f"eval_strategy is {entry_text(context, 'eval_strategy')}")
    count = values.number(entry)
    if count < 1:
        return left("validation losses come after a number of steps, not after a share of them; set eval_steps")
    return took({"eval_steps": values.whole(entry)})


def evaluation_strategy(entry: Entry, context: Context) -> Outcome:
    """Say when validation losses are taken: after steps, or where they are asked for."""
    if entry.value in (False, "no", "steps"):
        return same("the validation loss before and after training is always measured")
    return left("validation losses come after a number of steps, not at the end of epochs; set eval_steps")


def checkpoint_steps(entry: Entry, context: Context) -> Outcome:
    """Take the steps between checkpoints."""
    count = values.number(entry)
    if context.source.value("save_strategy") not in (None, "steps"):
        return same("save_strategy is not steps; checkpoints serve --resume alone")
    if count < 1:
        return left("checkpoints come after a number of steps, not after a share of them; set save_steps")
    return took({"save_steps": values.whole(entry)})


def best_measure(entry: Entry, context: Context) -> Outcome:
    """Say that the best state is that with the lowest validation loss."""
    if entry.value in ("loss", "eval_loss"):
        return same("the lowest validation loss here too")
    return left("the best state is that with the lowest validation loss")


def bf16(entry: Entry, context: Context) -> Outcome:
    """Take computing in bfloat16."""
    return took({"bf16": True}) if values.yes_no(entry) else same()


def bf16_with_weights(entry: Entry, context: Context) -> Outcome:
    """Take computing in bfloat16 where the program loads frozen weights in it too; `auto` is true where it can be."""
    if entry.value not in ("auto", "full") and not values.yes_no(entry):
        return same()
    remark = "auto is true where the device can" if entry.value == "auto" else ""
    if context.is_low_rank:
        return took({"bf16": True, "dtype": "bfloat16"}, remark)
    return took({"bf16": True}, f"{remark}; {FLOAT32_WEIGHTS}".removeprefix("; "))


def fp16(entry: Entry, context: Context) -> Outcome:
    """Say that nothing is computed in float16."""
    if not values.yes_no(entry):
        return same()
    return left("nothing is computed in float16; set bf16 where the device has it, else it is float32")


def gradient_checkpointing(entry: Entry, context: Context) -> Outcome:
    """Take recomputing activations; forms that put them elsewhere are plain recomputation here."""
    if isinstance(entry.value, str) and entry.value in ("offload", "offload_disk", "unsloth"):
        return took({"gradient_checkpointing": True}, "recomputed, and put nowhere else")
    return took({"gradient_checkpointing": True}) if values.yes_no(entry) else same()


def resume(entry: Entry, context: Context) -> Outcome:
    """Say that another program's run cannot be continued."""
    return same() if entry.value in (False, "", "none") else left(RESUME)


def cpu(entry: Entry, context: Context) -> Outcome:
    """Take training on the CPU."""
    return took({"device": "cpu"}) if values.yes_no(entry) else same()


def entry_text(context: Context, key: str) -> str:
    """Return a value as people may see it."""
    return context.source.entries[key].shown


_PACKED = "rows have no padding here"
_ARRANGED = "how batches are read and sent is not a setting here"
_LOGGED = "every step is logged"
TRAINER: dict[str, Rule] = {
    "output_dir": takes("out"),
    "per_device_train_batch_size": takes("per_device_train_batch_size", values.whole),
    "gradient_accumulation_steps": accumulation,
    "num_train_epochs": epochs,
    "max_steps": max_steps,
    "learning_rate": learning_rate,
    "lr_scheduler_type": schedule,
    "lr_scheduler_kwargs": leaves("schedules take no arguments here"),
    "warmup_ratio": takes("warmup_ratio", values.number),
    "warmup_steps": warmup_steps,
    "save_total_limit": takes("save_total_limit", values.whole),
    "weight_decay": takes("weight_decay", values.number),
    "adam_beta1": takes("adam_beta1", values.number),
    "adam_beta2": takes("adam_beta2", values.number),
    "adam_epsilon": takes("adam_epsilon", values.number),
    "max_grad_norm": takes("max_grad_norm", values.number),
    "optim": optimizer,
    "optim_args": leaves("optimisers take no further arguments here"),
    "optim_target_modules": needless("GaLore projects every linear of the blocks"),
    "label_smoothing_factor": leaves("labels are not smoothed", 0),
    "neftune_noise_alpha": leaves("no noise is added to embeddings", 0),
    "bf16": bf16,
    "fp16": fp16,
    "gradient_checkpointing": gradient_checkpointing,
    "gradient_checkpointing_kwargs": needless(),
    "activation_checkpointing": gradient_checkpointing,
    "activation_checkpointing_kwargs": needless(),
    "eval_strategy": evaluation_strategy,
    "eval_steps": evaluation_steps,
    "eval_delay": leaves("validation losses come from the first interval on", 0),
    "save_strategy": needless("checkpoints serve --resume; the result is always saved"),
    "save_steps": checkpoint_steps,
    "load_best_model_at_end": switches_on("load_best_model_at_end"),
    "metric_for_best_model": best_measure,
    "greater_is_better": needless(),
    "seed": seed,
    "data_seed": leaves("the order of the data follows from seed"),
    "report_to": trackers,
    "resume_from_checkpoint": resume,
    "use_cpu": cpu,
    "group_by_length": needless(_PACKED),
    "auto_find_batch_size": needless("compare shrinks batches where memory runs out, with as many examples a step"),
    "push_to_hub": leaves(PUSH),
    "deepspeed": leaves(SEVERAL_DEVICES),
    "fsdp": leaves(SEVERAL_DEVICES),
    "fsdp_config": leaves(SEVERAL_DEVICES),
    "parallelism_config": leaves(SEVERAL_DEVICES),
    "accelerator_config": needless(_ARRANGED),
    "do_train": needless(),
    "do_predict": leaves("tunewise eval --predictions writes answers"),
    "predict_with_generate": leaves("tunewise eval writes and scores answers"),
    "train_sampling_strategy": leaves("the order is random", "random", "group_by_length"),
    "torch_compile": needless("models are not compiled"),
    "disable_tqdm": needless(),
    "project": needless(),
    "run_name": needless(),
    "tf32": needless(),
    "debug": needless(),
    "full_determinism": needless("the same seed gives the same bits on one machine"),
}
TRAINER |= dict.fromkeys(
    ("per_device_eval_batch_size", "eval_accumulation_steps", "bf16_full_eval", "fp16_full_eval", "eval_on_start"),
    needless("how the validation loss is computed changes nothing"),
)
TRAINER |= dict.fromkeys(("logging_steps", "logging_strategy", "logging_first_step", "logging_dir"), needless(_LOGGED))
TRAINER |= dict.fromkeys(("save_only_model", "save_safetensors", "overwrite_output_dir"), needless())
TRAINER |= dict.fromkeys(("dataloader_*", "ddp_*", "remove_unused_columns", "local_rank"), needless(_ARRANGED))
TRAINER |= dict.fromkeys(
    (
        *("do_eval", "include_*", "log_*", "logging_*", "label_names", "length_column_name", "skip_memory_metrics"),
        *("torch_compile_*", "torch_empty_cache_steps", "use_liger_kernel", "liger_kernel_config", "use_cache"),
        *("hub_*", "trackio_*", "save_on_each_node", "ignore_data_skip", "average_tokens_across_devices"),
        *("eval_do_concat_batches", "eval_use_gather_object", "prediction_loss_only", "batch_eval_metrics"),
        *("generation_max_length", "generation_num_beams", "generation_config", "sortish_sampler"),
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
    ),
    needless(),
)
# Values of what a file does not say, where they count.
TRAINER_DEFAULTS: dict[str, object] = {
    "output_dir": "trainer_output",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "seed": 42,
}
TRAINER_ALIASES = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
}
