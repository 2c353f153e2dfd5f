"""Trains attachments; there is no other training loop.

The data and randomness of a step are functions of (seed, step). The state of a run is therefore the step number, the
technique's tensors and the optimiser's, and a run killed at any moment continues from its newest complete checkpoint to
the same bits. Bits also depend on the number of CPU threads, so a checkpoint holds it and resuming restores it.

The validation loss is taken every few steps and after the last one (`TrainSettings.evaluation_interval`). The state
with the lowest one is the result, and training ends early when it has not fallen for some evaluations. Only evaluations
of states that are adaptations count: those of the last phase, with the final number of entries or ranks
(`Attachment.complete`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.core import artifact_writer
from tunewise.core.errors import DivergedError, SettingError, TunewiseError
from tunewise.core.seeds import derive, repeatable
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, loss_sum, recomputing, why_not_packed
from tunewise.engine.liger import use_liger
from tunewise.engine.memory import keep_freed_memory
from tunewise.engine.packing import Batch
from tunewise.engine.run_text import RunText
from tunewise.engine.sharding import by_kind, clip_gradients
from tunewise.engine.shards import is_shard
from tunewise.fitting import checkpoint
from tunewise.fitting.frozen_trunk import Trunk, replaying, trunk_of
from tunewise.fitting.passes import passes_by_group
from tunewise.fitting.rehearsal import Rehearsal
from tunewise.fitting.row_order import order
from tunewise.fitting.run_request import RunRequest
from tunewise.fitting.schedules import schedule_of
from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True)
class Trained:
    """Reports what a training run did.

    The numbers include steps before a resumption. `seconds` is the time of the steps, `evaluation_seconds` that of the
    validation losses between them, and `final_loss` the last step's loss in nats per labelled token. `best_step` is the
    step whose state was kept; None if none was chosen by its validation loss. `stopped_early` is None where training
    could not stop early.
    """

    steps: int
    tokens: int
    labelled_tokens: int
    seconds: float
    final_loss: float | None
    best_step: int | None = None
    stopped_early: bool | None = None
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class Objective:
    """Says what is learned in place of the sequences' answers in shuffled order.

    `rows(step)` gives the indices of the sequences of a step, of any number; they are functions of the step alone.
    `loss(batch, scale)` gives the loss of one forward pass: the sum over its labelled tokens, times `scale`;
    differentiable. It is called inside `layout`.
    """

    rows: Callable[[int], list[int]]
    loss: Callable[[Batch, float], Tensor]


def require_a_step_for_each_phase(attachment: Attachment, settings: TrainSettings) -> None:
    """Refuse fewer steps than the technique has phases: what an earlier phase leaves is no adaptation.

    Raises:
        SettingError: says how many steps are needed.
    """
    if settings.max_steps < attachment.phases:
        raise SettingError(
            f"max_steps is {settings.max_steps}, but {attachment.recipe.name} trains in {attachment.phases} phases of "
            f"at least one step each; give {attachment.phases} steps or more"
        )


def train(
    attachment: Attachment,
    sequences: Sequence[TokenSequence],
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
    objective: Objective | None = None,
    text: RunText | None = None,
) -> Trained:
    """Train an attachment's parameters on encoded sequences.

    Args:
        attachment: what is trained.
        sequences: the training sequences.
        settings: steps, batch size, schedule.
        seed: everything random follows from it and the step.
        folder: where `metrics.jsonl` and `checkpoint-<step>` folders are written; None: nowhere.
        resume: continue from the folder's newest complete checkpoint.
        until: stop after so many steps, with a checkpoint, to be resumed later; the attachment is as after these steps.
            Where these are all steps, resuming gives the same attachment without a further step.
        on_step: called as on_step(step, loss) after each step.
        evaluate: returns the validation loss; without it, nothing is evaluated and the last state is the result.
        reuse_trunk: compute states below the lowest trained block only once (`tunewise.fitting.frozen_trunk`).
        rehearsal: the text that `replay` and `kl_to_base` rehearse.
        objective: what is learned in place of the sequences' answers in shuffled order.
        text: what the sequences were made of; a checkpoint keeps it, so that a run that resumes with other data can
            be told what differs.

    Raises:
        SettingError: no token is labelled, there are fewer steps than phases, a setting needs `rehearsal` or
            `evaluate` and it is not there, or Liger's kernels cannot run here.
        DivergedError: a loss, gradient or weight is no longer finite; the last good checkpoint stays.
        ArtifactError: the checkpoint belongs to another request.
        TunewiseError: ranks no longer hold the same tensors.
    """
    if not any(any(sequence.labelled[1:]) for sequence in sequences):
        raise SettingError("no training sequence has a labelled token inside the window; raise --max-length")
    require_a_step_for_each_phase(attachment, settings)
    if attachment.base.device.type == "cpu":
        keep_freed_memory()
    if settings.use_liger_kernel:
        use_liger(attachment.base)
    if settings.rehearses and rehearsal is None:
        raise SettingError("replay and kl_to_base need text to rehearse; pass rehearsal=Rehearsal.of(base, texts)")
    if settings.early_stopping_patience and evaluate is None:
        raise SettingError("early_stopping_patience needs a validation loss; pass evaluate=")
    if attachment.base.ranks.sharded:
        why_not_packed(attachment.base)  # it runs the model, which all ranks must do together
    run = _Run(attachment, sequences, settings, seed, folder)
    run.rehearsal, run.evaluate, run.objective, run.text = rehearsal, evaluate, objective, text
    run.begin(resume)
    visits = settings.max_steps * settings.rows
    reuse_trunk = reuse_trunk and not run.ranks.divides_rows  # it is recorded for whole rows
    run.trunk = trunk_of(attachment, sequences, visits, run.precision()) if reuse_trunk else None
    last = min(until or settings.max_steps, settings.max_steps)
    first = run.step
    while run.step < last and not run.out_of_patience:
        started = time.perf_counter()
        bits = repeatable(attachment.base.device) if settings.full_determinism else nullcontext()
        with bits, recomputing(attachment.base, settings.gradient_checkpointing):
            loss = run.advance()
        run.seconds += time.perf_counter() - started
        run.evaluate_if_due()
        on_step(run.step, loss)
        if folder is not None and run.step % settings.save_steps == 0 and run.step < last:
            run.save()
    run.require_agreement()
    if folder is not None and first < run.step and (run.step < settings.max_steps or until is not None):
        run.save()
    over = run.step == settings.max_steps or run.out_of_patience
    if over and run.best is not None and run.best.step < run.step and run.snapshot is not None:
        run.snapshot.restore(attachment)
    checkpoint.require_finite(attachment.state(), run.step)
    return Trained(
        run.step,
        run.tokens,
        run.labelled,
        run.seconds,
        run.loss,
        run.best.step if run.best is not None else None,
        run.step < settings.max_steps and run.out_of_patience if settings.early_stopping_patience else None,
        run.evaluation_seconds,
    )


class _Run:
    """Holds the state of a training run: its position, the optimiser and the schedule of the current phase."""

    def __init__(
        self,
        attachment: Attachment,
        sequences: Sequence[TokenSequence],
        settings: TrainSettings,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.attachment, self.sequences, self.settings = attachment, sequences, settings
        self.seed, self.folder, self.base = seed, folder, attachment.base
        self.ranks = attachment.base.ranks
        self.step = self.tokens = self.labelled = 0
        self.seconds = 0.0
        self.loss: float | None = None
        self.phase = -1
        self.trunk: Trunk | None = None
        self.rehearsal: Rehearsal | None = None
        self.evaluate: Callable[[], float] | None = None
        self.objective: Objective | None = None
        self.text: RunText | None = None
        self.best: checkpoint.BestLoss | None = None
        self.snapshot: checkpoint.Snapshot | None = None  # the state at the best step
        self.without_improvement = 0  # evaluations since the best one
        self.evaluation_seconds = 0.0
        # The last step of each phase; where the steps do not divide evenly, earlier phases are longer.
        phases = attachment.phases
        self.phase_ends = [-(-settings.max_steps * (index + 1) // phases) for index in range(phases)]

    def begin(self, resume: bool) -> None:
        """Start anew, or continue from the newest complete checkpoint where there is one and `resume` says so."""
        newest = (
            artifact_writer.latest(self.folder) if resume and self.folder is not None and self.folder.is_dir() else None
        )
        if newest is None:
            self._start_phase(0)
            if self.folder is not None and self.ranks.writes:
                self.folder.mkdir(parents=True, exist_ok=True)
                weights = sum(tensor.nbytes for tensor in self.attachment.state().values())
                best = self.settings.keeps_best and self.settings.evaluation_interval > 0
                # The weights, AdamW's two moments, and the best state so far.
                artifact_writer.check_space(self.folder, (4 if best else 3) * weights)
                artifact_writer.write_text(self.folder / "metrics.jsonl", "")
            return
        self._restore(newest[1])

    def _start_phase(self, phase: int) -> None:
        """Start a phase with a fresh optimiser and schedule."""
        self.attachment.start_phase(phase)
        self._build_optimizer(phase)

    def _build_optimizer(self, phase: int) -> None:
        """Build the optimiser and schedule of a phase, over the parameters that the attachment has now."""
        self.phase = phase
        settings = self.settings
        adam = {"weight_decay": settings.weight_decay, "eps": settings.adam_epsilon}
        groups = by_kind([{**adam, **group} for group in self.attachment.param_groups()])
        self.optimizer = self.attachment.optimizer(groups, (settings.adam_beta1, settings.adam_beta2))
        if not self.attachment.accumulates and self.ranks.size > 1:
            raise SettingError(
                f"{type(self.optimizer).__name__} moves weights inside the backward pass, before gradients could be "
                "summed over devices; give one device, or another optimizer"
            )
        if not self.attachment.accumulates and self.settings.gradient_accumulation_steps > 1:
            raise SettingError(
                f"{type(self.optimizer).__name__} moves weights inside the backward pass, which cannot accumulate; "
                "give a larger batch instead of gradient_accumulation_steps"
            )
        steps = self.phase_ends[phase] - (self.phase_ends[phase - 1] if phase else 0)
        name = self.settings.lr_scheduler_type
        self.schedule = schedule_of(name, self.optimizer, self.settings.warmup_of(steps), steps)

    def advance(self) -> float:
        """Take one optimiser step and return its loss in nats per labelled token."""
        if self.step >= self.phase_ends[self.phase]:
            self._start_phase(self.phase + 1)
        torch.manual_seed(derive(self.seed, "step", self.step))
        self.attachment.before_step(self.step, self.settings.max_steps)  # draws the same on all ranks
        if self.ranks.size > 1:
            torch.manual_seed(derive(self.seed, "step", self.step, "rank", self.ranks.rank))
        chosen = self._chosen()
        size = self.settings.per_device_train_batch_size
        own, micro_batches = self.ranks.group, [chosen[start : start + size] for start in range(0, len(chosen), size)]
        shares = [passes_by_group(self.attachment, self.sequences, batch) for batch in micro_batches]
        groups = [group for share in shares for group in share[own]]
        # Where weights are sharded, a rank with fewer passes than another makes some for the others' sake.
        idle = sum(max(map(len, share)) - len(share[own]) for share in shares) if self.ranks.sharded else 0
        begin_once = self.trunk is None  # the trunk's states were recorded for whole sequences, without a shared prefix
        batches = [
            batch_of(self.base, [self.sequences[index] for index in group], share=begin_once, divide=True)
            for group in groups
        ]
        labelled, tokens = self._counts(batches)
        weight = 1 - self.settings.replay
        losses: list[Tensor] = []  # read after the backward passes, so that a GPU is not waited for in between
        for group, batch in zip(groups, batches, strict=True):
            with layout(self.base, batch), self.precision(), replaying(self.trunk, group):
                loss = self._loss(batch, weight / labelled)
                losses.append(loss.detach())
                loss.backward()
        for _ in range(idle):
            self._run_idle(chosen[0], begin_once)
        for term in self._further_terms():
            (term / self.ranks.size).backward()  # all ranks compute the same
        self._sum_gradients()
        self.attachment.after_backward(self.step, self.settings.max_steps)
        norm, total = self._clip_gradients(), self.ranks.total(sum(float(loss) for loss in losses) / weight)[0]
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise DivergedError(
                f"step {self.step + 1}: loss {total:g}, gradient norm {norm:g}; lower the learning rate "
                f"(it is {self.schedule.get_last_lr()[0]:g})"
            )
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.attachment.round_trained()
        self.attachment.after_step(self.step, self.settings.max_steps)
        self.schedule.step()
        self.step += 1
        self.tokens += tokens
        self.labelled += labelled
        self.loss = total
        if self._writes and self.step % self.settings.logging_steps == 0:
            self._log({"loss": total, "grad_norm": norm, "learning_rate": rate})
        return total

    def _run_idle(self, row: int, share: bool) -> None:
        """Gather weights for the other ranks, in a pass that changes no gradient."""
        batch = batch_of(self.base, [self.sequences[row]], share=share, divide=True)
        with layout(self.base, batch), self.precision(), replaying(self.trunk, [row]):
            self._loss(batch, 0.0).backward()

    def _counts(self, batches: list[Batch]) -> tuple[int, int]:
        """Return the labelled tokens, at least one, and all tokens of a step, on all ranks."""
        labelled, tokens = sum(len(batch.targets) for batch in batches), sum(batch.tokens for batch in batches)
        if self.ranks.size > 1:
            labelled, tokens = map(int, self.ranks.total(labelled, tokens))
        return max(labelled, 1), tokens

    def _sum_gradients(self) -> None:
        """Give every rank the gradients of all ranks' rows; a rank without rows of its own adds nothing."""
        params = [p for p in self.attachment.params().values() if not is_shard(p)]  # FSDP sums those of shards
        if self.ranks.size == 1 or not params:
            return
        known = self.ranks.total(*(float(parameter.grad is not None) for parameter in params))
        trained = [parameter for parameter, count in zip(params, known, strict=True) if count]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.sum([parameter.grad for parameter in trained if parameter.grad is not None])

    def require_agreement(self) -> None:
        """Refuse to go on with tensors that are not the same on all ranks.

        Raises:
            TunewiseError: says after which step they differ.
        """
        if not self.ranks.agree([p.detach() for p in self.attachment.params().values() if not is_shard(p)]):
            raise TunewiseError(
                f"the {self.ranks.size} devices hold different weights after step {self.step}; they must run the same "
                "software on the same kind of device, and one of them may be faulty"
            )

    @property
    def _writes(self) -> bool:
        return self.folder is not None and self.ranks.writes

    def _log(self, line: Mapping[str, float | Tensor | None]) -> None:
        """Append a line for this step to `metrics.jsonl`."""
        assert self.folder is not None
        artifact_writer.append_line(self.folder / "metrics.jsonl", {"step": self.step, **line})

    def _chosen(self) -> list[int]:
        """Return the indices of the sequences of the current step."""
        if self.objective is not None:
            return self.objective.rows(self.step)
        return order(len(self.sequences), self.seed, self.step * self.settings.rows, self.settings.rows)

    def _loss(self, batch: Batch, scale: float) -> Tensor:
        """Return the loss of one forward pass, times `scale`."""
        return loss_sum(self.base, batch, scale) if self.objective is None else self.objective.loss(batch, scale)

    @property
    def out_of_patience(self) -> bool:
        """Whether the validation loss has not fallen for as many evaluations as the settings allow."""
        patience = self.settings.early_stopping_patience
        return 0 < patience <= self.without_improvement

    def evaluate_if_due(self) -> None:
        """Take the validation loss if this step is one of those for it, and remember the state if it is the best."""
        interval, last = self.settings.evaluation_interval, self.step == self.settings.max_steps
        if self.evaluate is None or not interval or (self.step % interval and not last):
            return
        started = time.perf_counter()
        loss = self.evaluate()
        finite = math.isfinite(loss)
        if self._writes:
            self._log({"validation_loss": loss if finite else None})
        counts = self.phase + 1 == len(self.phase_ends) and self.attachment.complete
        if self.settings.keeps_best and counts:
            if finite and (self.best is None or loss < self.best.loss):
                self.best, self.without_improvement = checkpoint.BestLoss(self.step, loss), 0
                self.snapshot = None if last else checkpoint.Snapshot.of(self.attachment)
            else:
                self.without_improvement += 1
        self.evaluation_seconds += time.perf_counter() - started

    def _further_terms(self) -> Iterator[Tensor]:
        """Yield the terms of the loss besides the task's; each one's backward pass must follow before the next."""
        penalty, settings = self.attachment.penalty(), self.settings
        if penalty is not None:
            yield penalty
        if settings.rehearses and self.rehearsal is not None:
            count = settings.per_device_train_batch_size
            seed = derive(self.seed, "memory")  # this name is part of every run's bits, so it stays
            chosen = order(len(self.rehearsal.sequences), seed, self.step * count, count)
            with self.precision(), self.rehearsal.losses(self.attachment, chosen) as (nll, kl):
                yield settings.replay * nll + settings.kl_to_base * kl
        if settings.l2_sp:
            yield settings.l2_sp / 2 * self.attachment.drift()

    def _clip_gradients(self) -> float:
        """Clip the gradients to `max_grad_norm` and return their norm before that."""
        params = (p for group in self.optimizer.param_groups for p in group["params"])
        return clip_gradients(params, self.settings.max_grad_norm or math.inf, self.ranks)

    def precision(self) -> Any:
        """Return the context of forward passes: bf16 autocast, where settings say so."""
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.settings.bf16)

    # Checkpoints.

    @cached_property
    def _request(self) -> RunRequest:
        """What a run must have in common with the checkpoint that it resumes, `max_steps` included."""
        rehearsed = self.rehearsal.sequences if self.rehearsal is not None else None
        return RunRequest.of(self.attachment, self.sequences, self.settings, self.seed, rehearsed, self.text)

    def save(self) -> None:
        """Write a checkpoint, after making sure that all ranks hold the same."""
        self.require_agreement()
        if not (self.ranks.writes or self.ranks.sharded):
            return
        assert self.folder is not None
        position = checkpoint.Position(
            self.phase,
            self.step,
            self.tokens,
            self.labelled,
            self.seconds,
            torch.get_num_threads(),
            self.best,
            self.without_improvement,
            self.evaluation_seconds,
            self.loss,
        )
        earlier = self.snapshot if self.best is not None and self.best.step < self.step else None
        checkpoint.save(self.folder, self._request, position, self.attachment, self.optimizer, earlier, self.ranks)
        if self.ranks.writes:
            artifact_writer.prune(self.folder, self.settings.save_total_limit)

    def _restore(self, stored: artifact_writer.Stored) -> None:
        """Set attachment, optimiser and schedule to where the run of a checkpoint was."""
        position = checkpoint.position_of(stored, self._request)
        torch.set_num_threads(position.threads)
        for phase in range(position.phase + 1):
            self.attachment.start_phase(phase)
        self.attachment.load_training_state(stored.tensors("training.safetensors"))
        self.attachment.load(stored.tensors("weights.safetensors"))
        self._build_optimizer(position.phase)
        self.step, self.tokens = position.step, position.tokens
        self.labelled, self.seconds = position.labelled_tokens, position.seconds
        self.best, self.without_improvement = position.best, position.without_improvement
        self.evaluation_seconds, self.loss = position.evaluation_seconds, position.loss
        self.snapshot = checkpoint.Snapshot.stored(stored) if position.best is not None else None
        checkpoint.restore_optimizer(stored, self.attachment, self.optimizer)
        steps_done = self.step - (self.phase_ends[self.phase - 1] if self.phase else 0)
        # A schedule has no state but the number of steps, from which the learning rates follow.
        self.schedule.last_epoch = steps_done
        rates = [
            rate * factor(steps_done)
            for rate, factor in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        self.schedule._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        assert self.folder is not None
        if self.ranks.writes:
            checkpoint.trim_metrics(self.folder / "metrics.jsonl", self.step)
