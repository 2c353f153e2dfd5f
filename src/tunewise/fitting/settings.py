"""Says how to train, in the names of Hugging Face's `TrainingArguments`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from tunewise.core.errors import SettingError
from tunewise.core.json_record import JsonObject

_EVALUATIONS = 4  # in a run, to keep the best of, where nothing else is said
_EVALUATED_STEPS = 20  # a shorter run is not evaluated on the way unless something else is said
_PATIENT_EVALUATIONS = 10  # in a run that may stop early
_EVALUATED_SHARE = 25  # one in so many of the examples read in training is evaluated each time
_FEWEST_EVALUATED = 32


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Says how a technique is trained, in the names of Hugging Face's `TrainingArguments`.

    `max_steps` counts optimiser steps over all phases. In the first `warmup_steps` of each phase the learning rate
    rises; with 0, `warmup_ratio` says their share. `save_steps` is the number of steps between checkpoints, of which
    `save_total_limit` are kept, and `eval_steps` that between validation losses; with 0, `evaluation_interval` says
    what is done. Training ends early
    when the validation loss has not fallen for `early_stopping_patience` evaluations (0: never). Then, and with
    `load_best_model_at_end`, the state with the lowest validation loss is the result. That is not the default: where
    answers are generated, they can go on getting better when their likelihood gets worse. With `gradient_checkpointing`
    the blocks' activations are computed again in the backward pass instead of being kept. `full_determinism` is for
    GPUs, where the same seed gives the same bits only by slower operations; on a CPU it always does. For GPUs too,
    `use_liger_kernel` takes the kernels of `tunewise.engine.liger`. `replay`, `kl_to_base` and `l2_sp` are weights of
    remedies for forgetting; see `tunewise.fitting.rehearsal`.

    Examples:
        >>> TrainSettings(max_steps=100, per_device_train_batch_size=4, gradient_accumulation_steps=2).rows
        8
    """

    max_steps: int = 100
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    warmup_ratio: float = 0.06
    warmup_steps: int = 0
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    save_steps: int = 500
    save_total_limit: int = 2
    eval_steps: int = 0
    early_stopping_patience: int = 0
    load_best_model_at_end: bool = False
    logging_steps: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    full_determinism: bool = True
    use_liger_kernel: bool = False
    replay: float = 0.0
    kl_to_base: float = 0.0
    l2_sp: float = 0.0

    def __post_init__(self) -> None:
        positive = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "save_steps")
        for name in (*positive, "save_total_limit", "logging_steps"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)} but must be at least 1")
        for name in ("warmup_steps", "eval_steps", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} is {getattr(self, name)} but must be at least 0")
        if self.lr_scheduler_type != TrainSettings.lr_scheduler_type:
            from transformers import SchedulerType  # takes PEFT and bitsandbytes along: a quarter of starting

            schedules = sorted(kind.value for kind in SchedulerType)
            if self.lr_scheduler_type not in schedules:
                raise SettingError(f'lr_scheduler_type "{self.lr_scheduler_type}" is not one of {", ".join(schedules)}')
        if not 0 <= self.replay < 1:
            raise SettingError(f"replay is {self.replay} but must be at least 0 and below 1, a share of the loss")
        for name in ("kl_to_base", "l2_sp", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name} is {getattr(self, name)} but must be at least 0")
        if not 0 < self.adam_epsilon < math.inf:
            raise SettingError(f"adam_epsilon is {self.adam_epsilon} but must be more than 0")
        for name in ("warmup_ratio", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)} but must be at least 0 and below 1")

    @property
    def rehearses(self) -> bool:
        """Tell whether training rehearses text that the base knew."""
        return bool(self.replay or self.kl_to_base)

    @property
    def rows(self) -> int:
        """Sequences of one optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def warmup_of(self, steps: int) -> int:
        """Return the steps in which the learning rate rises, of a phase of so many steps."""
        return min(self.warmup_steps, steps) if self.warmup_steps else math.ceil(self.warmup_ratio * steps)

    @property
    def keeps_best(self) -> bool:
        """Whether the state with the lowest validation loss is the result, and not the last one."""
        return self.load_best_model_at_end or self.early_stopping_patience > 0

    @property
    def evaluation_interval(self) -> int:
        """Return the number of steps between validation losses; 0: there are none.

        Where `eval_steps` is 0, it is a tenth of the steps to stop early, and a quarter of them to keep the best. The
        latter is not done in runs of fewer than 20 steps.
        """
        if self.eval_steps:
            return self.eval_steps
        if self.early_stopping_patience:
            return max(self.max_steps // _PATIENT_EVALUATIONS, 1)
        keeps = self.load_best_model_at_end and self.max_steps >= _EVALUATED_STEPS
        return -(-self.max_steps // _EVALUATIONS) if keeps else 0

    def steps_for(self, num_train_epochs: float, examples: int) -> int:
        """Return the optimiser steps of so many passes over the examples.

        Raises:
            SettingError: it is not a number of passes.
        """
        if not 0 < num_train_epochs < math.inf:
            raise SettingError(f"num_train_epochs is {num_train_epochs:g} but must be more than 0")
        return max(1, round(examples * num_train_epochs / self.rows))

    def evaluated_examples(self, available: int) -> int:
        """Return how many of the validation sample's examples each evaluation of a run reads.

        It is all of them where evaluations were asked for by `eval_steps` or `early_stopping_patience`. Else it is 1
        for 25 that training reads, and at least 32.
        """
        if self.eval_steps or self.early_stopping_patience:
            return available
        return min(available, max(_FEWEST_EVALUATED, self.max_steps * self.rows // _EVALUATED_SHARE))

    def to_json(self) -> JsonObject:
        """Return what files record of these settings; two with the same record train to the same bits.

        What is newer than the first release of the format is left out where it changes nothing, so that trials and
        checkpoints of older versions are found again.
        """
        record = asdict(self)
        del record["save_total_limit"]  # it changes no bits
        if not self.warmup_steps:
            del record["warmup_steps"]
        if not self.early_stopping_patience:
            del record["early_stopping_patience"]
        if self.adam_epsilon == TrainSettings.adam_epsilon:
            del record["adam_epsilon"]
        if self.full_determinism:
            del record["full_determinism"]
        if not self.use_liger_kernel:
            del record["use_liger_kernel"]
        if not (self.keeps_best and self.evaluation_interval):
            del record["load_best_model_at_end"]
        return record


def ever_lighter(settings: TrainSettings) -> Iterator[TrainSettings]:
    """Yield these settings, then ones that need less and less memory for the same steps, to be tried in this order.

    First the micro-batch shrinks, down to one row, with more gradient accumulation; then gradient checkpointing is on.
    Every step still reads the same number of rows, so a micro-batch shrinks to a divisor: 6 to 3 and 1, 5 to 1.
    """
    yield settings
    while (size := settings.per_device_train_batch_size) > 1:
        micro_batch = next(part for part in range(size // 2, 0, -1) if size % part == 0)
        settings = replace(
            settings, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=settings.rows // micro_batch
        )
        yield settings
    if not settings.gradient_checkpointing:
        yield replace(settings, gradient_checkpointing=True)
