"""The only training loop.

A step's data and randomness are functions of (seed, step), so a run killed at any moment continues from its newest
whole checkpoint to the same bits: the step number is the state, beside the technique's tensors and the optimiser's.
The thread count is part of that promise; a checkpoint carries it and resuming restores it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.core import artifact_writer
from tunewise.core.errors import DivergedError, SettingError
from tunewise.core.seeds import derive, generator, repeatable
from tunewise.engine.device import on_gpu
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, loss_sum, recomputing
from tunewise.engine.memory import keep_freed_memory
from tunewise.engine.packing import in_passes
from tunewise.fitting import checkpoint
from tunewise.fitting.frozen_trunk import Trunk, replaying, trunk_of
from tunewise.fitting.rehearsal import Rehearsal
from tunewise.fitting.settings import TrainSettings

PASS = 768  # tokens of one pass after which a processor gets no faster and only needs more memory


@dataclass(frozen=True)
class Trained:
    """What a training run did. `seconds` count steps, also before a resumption; losses are nats a labelled token."""

    steps: int
    tokens: int
    labelled_tokens: int
    seconds: float
    final_loss: float | None


def order(examples: int, seed: int, start: int, count: int) -> list[int]:
    """Indices of the `count` sequences from place `start` on in an endless row of shuffled epochs."""
    found: list[int] = []
    while len(found) < count:
        epoch, offset = divmod(start + len(found), examples)
        found += _epoch(examples, seed, epoch)[offset : offset + count - len(found)]
    return found


@lru_cache(maxsize=2)  # a step reads one epoch or crosses into the next
def _epoch(examples: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(examples, generator=generator(seed, "order", epoch)).tolist()


def passes(attachment: Attachment, sequences: list[TokenSequence], batch: list[int]) -> list[list[int]]:
    """A micro-batch as it goes through the model: on a GPU whole, on a processor in parts of about `PASS` tokens."""
    if on_gpu(next(attachment.base.model.parameters())) or not attachment.accumulates:
        return [batch]
    return [[batch[place] for place in part] for part in in_passes([sequences[index] for index in batch], PASS)]


def steps_for_tokens(sequences: list[TokenSequence], settings: TrainSettings, seed: int, tokens: int) -> int:
    """Optimiser steps after which at least `tokens` tokens have been read."""
    steps = seen = 0
    while seen < tokens:
        chosen = order(len(sequences), seed, steps * settings.rows, settings.rows)
        seen += sum(len(sequences[index].ids) for index in chosen)
        steps += 1
    return max(steps, 1)


def train(
    attachment: Attachment,
    sequences: list[TokenSequence],
    settings: TrainSettings,
    *,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    until: int | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    evaluate: Callable[[], float] | None = None,
    reuse_trunk: bool = True,
    rehearsal: Rehearsal | None = None,
) -> Trained:
    """Train an attachment's parameters on encoded sequences.

    With a folder, `metrics.jsonl` and `checkpoint-<step>` folders are written there, and `resume` continues from
    the newest whole one. With `until`, training stops after so many steps, with a checkpoint, to be resumed.
    `on_step(step, loss)` is called after each step; `evaluate()` every `eval_steps` steps.
    With `reuse_trunk`, states below the lowest trained block are computed once (see
    `tunewise.fitting.frozen_trunk`). `memory` is what `replay` and `kl_to_base` rehearse.

    Raises:
        DivergedError: a loss or gradient stopped being finite; the last good checkpoint stays.
        ArtifactError: the checkpoint belongs to another request.
    """
    if not any(any(sequence.labelled[1:]) for sequence in sequences):
        raise SettingError("no training sequence has a labelled token inside the window; raise --max-length")
    if attachment.base.device.type == "cpu":
        keep_freed_memory()
    if settings.remembers and rehearsal is None:
        raise SettingError("replay and kl_to_base need a memory of what the base knew")
    run = _Run(attachment, sequences, settings, seed, folder)
    run.rehearsal = rehearsal
    run.begin(resume)
    visits = settings.max_steps * settings.rows
    run.trunk = trunk_of(attachment, sequences, visits, run.precision()) if reuse_trunk else None
    last = min(until or settings.max_steps, settings.max_steps)
    begun = run.step
    while run.step < last:
        started = time.perf_counter()
        with repeatable(attachment.base.device), recomputing(attachment.base, settings.gradient_checkpointing):
            loss = run.advance()
        if folder is not None and evaluate is not None and settings.eval_steps and run.step % settings.eval_steps == 0:
            artifact_writer.append_line(folder / "metrics.jsonl", {"step": run.step, "validation_loss": evaluate()})
        on_step(run.step, loss)
        run.seconds += time.perf_counter() - started
        if folder is not None and (run.step % settings.save_steps == 0 and run.step < last):
            run.save()
    if folder is not None and begun < run.step < settings.max_steps:
        run.save()
    return Trained(run.step, run.tokens, run.labelled, run.seconds, run.loss)


class _Run:
    def __init__(
        self,
        attachment: Attachment,
        sequences: list[TokenSequence],
        settings: TrainSettings,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.attachment, self.sequences, self.settings = attachment, sequences, settings
        self.seed, self.folder, self.base = seed, folder, attachment.base
        self.step = self.tokens = self.labelled = 0
        self.seconds = 0.0
        self.loss: float | None = None
        self.phase = -1
        self.trunk: Trunk | None = None
        self.rehearsal: Rehearsal | None = None
        # The last step of each phase; earlier phases take the larger share of what does not divide.
        phases = attachment.phases
        self.ends = [-(-settings.max_steps * (index + 1) // phases) for index in range(phases)]

    def begin(self, resume: bool) -> None:
        found = (
            artifact_writer.latest(self.folder) if resume and self.folder is not None and self.folder.is_dir() else None
        )
        if found is None:
            self._enter(0)
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                weights = sum(tensor.nbytes for tensor in self.attachment.state().values())
                artifact_writer.check_space(self.folder, 3 * weights)  # the weights and AdamW's two moments
                artifact_writer.write_text(self.folder / "metrics.jsonl", "")
            return
        self._restore(found[1])

    def _enter(self, phase: int) -> None:
        """Start a phase with a fresh optimiser and schedule."""
        self.attachment.start_phase(phase)
        self._prepare(phase)

    def _prepare(self, phase: int) -> None:
        """The optimiser and schedule of a phase, over the parameters that the attachment has now."""
        from transformers import get_scheduler

        self.phase = phase
        groups = [{"weight_decay": self.settings.weight_decay, **group} for group in self.attachment.param_groups()]
        self.optimizer = self.attachment.optimizer(groups, (self.settings.adam_beta1, self.settings.adam_beta2))
        if not self.attachment.accumulates and self.settings.gradient_accumulation_steps > 1:
            raise SettingError(
                f"{type(self.optimizer).__name__} moves weights inside the backward pass, which cannot accumulate; "
                "give a larger batch instead of gradient_accumulation_steps"
            )
        steps = self.ends[phase] - (self.ends[phase - 1] if phase else 0)
        self.schedule = get_scheduler(
            self.settings.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=math.ceil(self.settings.warmup_ratio * steps),
            num_training_steps=steps,
        )

    def advance(self) -> float:
        """One optimiser step; its loss in nats per labelled token."""
        if self.step >= self.ends[self.phase]:
            self._enter(self.phase + 1)
        torch.manual_seed(derive(self.seed, "step", self.step))
        self.attachment.before_step(self.step, self.settings.max_steps)
        chosen = order(len(self.sequences), self.seed, self.step * self.settings.rows, self.settings.rows)
        size = self.settings.per_device_train_batch_size
        batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        rows = [part for batch in batches for part in passes(self.attachment, self.sequences, batch)]
        share = self.trunk is None  # what is replayed was recorded for whole sequences
        ready = [batch_of(self.base, [self.sequences[index] for index in row], share=share) for row in rows]
        labelled = max(sum(len(batch.targets) for batch in ready), 1)
        weight = 1 - self.settings.replay
        losses: list[Tensor] = []  # read after the backward pass: a GPU need not be waited for before it
        for row, batch in zip(rows, ready, strict=True):
            with layout(self.base, batch), self.precision(), replaying(self.trunk, row):
                loss = loss_sum(self.base, batch, weight / labelled)
                losses.append(loss.detach())
                loss.backward()
        for term in self._beside():
            term.backward()
        self.attachment.after_backward(self.step, self.settings.max_steps)
        norm, total = self._clip(), sum(float(loss) for loss in losses) / weight
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise DivergedError(
                f"step {self.step + 1}: loss {total:g}, gradient norm {norm:g}; lower the learning rate "
                f"(it is {self.schedule.get_last_lr()[0]:g})"
            )
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.attachment.after_step(self.step, self.settings.max_steps)
        self.schedule.step()
        self.step += 1
        self.tokens += sum(batch.tokens for batch in ready)
        self.labelled += labelled
        self.loss = total
        if self.folder is not None and self.step % self.settings.logging_steps == 0:
            line = {"step": self.step, "loss": total, "grad_norm": norm, "learning_rate": rate}
            artifact_writer.append_line(self.folder / "metrics.jsonl", line)
        return total

    def _beside(self) -> Iterator[Tensor]:
        """The terms of the loss that are not the task's, each to be followed by its backward pass."""
        penalty, settings = self.attachment.penalty(), self.settings
        if penalty is not None:
            yield penalty
        if settings.remembers and self.rehearsal is not None:
            count = settings.per_device_train_batch_size
            seed = derive(self.seed, "memory")
            chosen = order(len(self.rehearsal.sequences), seed, self.step * count, count)
            with self.precision(), self.rehearsal.losses(self.attachment, chosen) as (nll, kl):
                yield settings.replay * nll + settings.kl_to_base * kl
        if settings.l2_sp:
            yield settings.l2_sp / 2 * self.attachment.drift()

    def _clip(self) -> float:
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = self.settings.max_grad_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(params, limit)) if params else 0.0

    def precision(self) -> Any:
        """The context of forward passes."""
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.settings.bf16)

    # Checkpoints.

    def _request(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that resumes it; its schedule depends on the step limit."""
        request = {
            "technique": self.attachment.recipe.to_json(),
            "base": self.base.fingerprint,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "sequences": len(self.sequences),
        }
        return json.loads(json.dumps(request))

    def save(self) -> None:
        """Commit everything that continues this run to the same bits."""
        assert self.folder is not None
        position = checkpoint.Position(
            self.phase, self.step, self.tokens, self.labelled, self.seconds, torch.get_num_threads()
        )
        checkpoint.save(self.folder, self._request(), position, self.attachment, self.optimizer)

    def _restore(self, stored: artifact_writer.Stored) -> None:
        position = checkpoint.position_of(stored, self._request())
        torch.set_num_threads(position.threads)
        for phase in range(position.phase + 1):
            self.attachment.start_phase(phase)
        self.attachment.load_training_state(stored.tensors("training.safetensors"))
        self.attachment.load(stored.tensors("weights.safetensors"))
        self._prepare(position.phase)
        self.step, self.tokens = position.step, position.tokens
        self.labelled, self.seconds = position.labelled_tokens, position.seconds
        checkpoint.restore_optimizer(stored, self.attachment, self.optimizer)
        done = self.step - (self.ends[self.phase - 1] if self.phase else 0)
        self.schedule.last_epoch = done
        rates = [
            rate * factor(done) for rate, factor in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        self.schedule._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        assert self.folder is not None
        checkpoint.trim_metrics(self.folder / "metrics.jsonl", self.step)
