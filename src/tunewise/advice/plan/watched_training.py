"""Runs the training loop on fake tensors for one step of each phase, as a later step finds things, and counts it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from tunewise.advice.plan.ledger import Ledger, Work
from tunewise.contract.attachment import Attachment, ParamGroup
from tunewise.core.errors import RequestError
from tunewise.engine.encoding import TokenSequence
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Holds what training took, as `observation.Training` says; nothing where nothing is trained."""

    technique: int = 0
    gradients: int = 0
    optimizer: int = 0
    held: int = 0
    passes: Work = field(default_factory=Work)
    update: Work = field(default_factory=Work)


class _LaterSteps:
    """Lets each phase begin with what its later steps find: the optimizer's state, and gradients to be added to.

    An optimizer that moves weights inside of the backward pass makes its state there, so that it needs a step for it.
    `marks` has the work so far before each step, when its gradients were there, and after it.
    """

    def __init__(self, attachment: Attachment, ledger: Ledger, adds_up: bool) -> None:
        self.attachment, self.ledger, self.adds_up = attachment, ledger, adds_up
        self.steps = 1 if attachment.accumulates else 2  # of a phase
        self.marks: list[tuple[Work, Work, Work]] = []
        self._optimizer: torch.optim.Optimizer | None = None  # one that has no state yet
        self._build, self._before_step = attachment.optimizer, attachment.before_step
        self._after_backward = attachment.after_backward
        self._begun = self._ready = ledger.work

    def __enter__(self) -> Self:
        """Have the attachment say when a step begins and when its gradients are there."""
        replaced: Any = self.attachment
        replaced.optimizer, replaced.before_step = self._built, self._begin
        replaced.after_backward = self._finish_passes
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the attachment as it was."""
        for name in ("optimizer", "before_step", "after_backward"):
            vars(self.attachment).pop(name)

    def end_step(self) -> None:
        """Note that a step is over."""
        self.marks.append((self._begun, self._ready, self.ledger.work))

    def _built(self, groups: list[ParamGroup], betas: tuple[float, float]) -> torch.optim.Optimizer:
        if not any(group["params"] for group in groups):  # as where a quarter of the blocks of a shallow copy is none
            raise RequestError(f"{self.attachment.recipe.name} trains nothing on this model")
        self._optimizer = self._build(groups, betas)
        return self._optimizer

    def _begin(self, step: int, total: int) -> None:
        self._begun = self.ledger.work
        self._before_step(step, total)
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is None or self.steps > 1:
            return
        before = self.ledger.work
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        if not self.adds_up:
            optimizer.zero_grad(set_to_none=True)
        self._begun = self._begun.plus(self.ledger.work.plus(before, -1))  # this is no part of the step

    def _finish_passes(self, step: int, total: int) -> None:
        self._ready = self.ledger.work
        self._after_backward(step, total)


def trained(
    attachment: Attachment, rows: list[TokenSequence], settings: TrainSettings, ledger: Ledger, weights: int
) -> Costs:
    """Run the training loop on one micro-batch for a step of every phase, as one of the later steps.

    `weights` are the bytes of the bare model on the device.
    """
    before, held, gradients = ledger.live, 0, 0
    later = _LaterSteps(attachment, ledger, settings.gradient_accumulation_steps > 1)

    def on_step(step: int, value: float) -> None:
        nonlocal held, gradients
        if step == 1:
            held = ledger.live
            parameters = attachment.params().values()
            gradients = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        later.end_step()

    short = replace(
        settings,
        max_steps=later.steps * attachment.phases,
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1,
        replay=0.0,
        kl_to_base=0.0,
        use_liger_kernel=False,  # fake tensors are on no GPU
    )
    with later:
        train(attachment, rows, short, on_step=on_step, reuse_trunk=False)
    passes, update, last_of_phases = Work(), Work(), later.marks[later.steps - 1 :: later.steps]
    for begun, ready, over in last_of_phases:
        passes = passes.plus(ready.plus(begun, -1), 1 / len(last_of_phases))
        update = update.plus(over.plus(ready, -1), 1 / len(last_of_phases))
    return Costs(
        technique=max(before - weights, 0),
        gradients=gradients,
        optimizer=max(held - before, 0),
        held=held,
        passes=passes,
        update=update,
    )
