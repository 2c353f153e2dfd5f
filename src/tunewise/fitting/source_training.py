"""Trains on other data than the task's before a technique's own training, by the same loop and the same settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.core import artifact_writer
from tunewise.fitting.loop import Objective, Trained, train
from tunewise.fitting.settings import TrainSettings

if TYPE_CHECKING:
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.encoding import TokenSequence


@dataclass(frozen=True)
class SourceTraining:
    """Runs trainings whose steps come before those of a budget, such as a technique's on source tasks.

    Precision, schedule, clipping, splitting of batches and the steps between checkpoints are those of `settings`. The
    validation split and the text that the base knew belong to the training that follows, so there is no early stopping
    and no rehearsal.

    Attributes:
        settings: the settings of the training that follows.
        folder: where checkpoints are kept, one folder for each training; None: nowhere.
        resume: continue from the checkpoints that are there; one that is finished is not run again.
    """

    settings: TrainSettings
    folder: Path | None = None
    resume: bool = True

    def run(
        self,
        name: str,
        attachment: Attachment,
        sequences: list[TokenSequence],
        *,
        steps: int,
        rows: int,
        seed: int,
        objective: Objective | None = None,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> Trained:
        """Train an attachment to the end.

        Args:
            name: tells this training from the others of a preparation.
            attachment: what is trained.
            sequences: the training sequences.
            steps: optimiser steps.
            rows: sequences of a step, which are divided as those of the training that follows.
            seed: everything random follows from it and the step.
            objective: what is learned in place of the sequences' answers in shuffled order.
            on_step: called as on_step(step, loss) after each step.
        """
        size = next(
            part for part in range(min(rows, self.settings.per_device_train_batch_size), 0, -1) if rows % part == 0
        )
        settings = replace(
            self.settings,
            max_steps=steps,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=rows // size,
            eval_steps=0,
            early_stopping_patience=0,
            load_best_model_at_end=False,
            replay=0.0,
            kl_to_base=0.0,
            l2_sp=0.0,
        )
        folder = self.folder / name if self.folder is not None else None
        if folder is not None and not self.resume and attachment.base.ranks.writes:
            artifact_writer.remove_runs(folder)
        return train(
            attachment,
            sequences,
            settings,
            seed=seed,
            folder=folder,
            resume=True,
            until=steps,
            on_step=on_step,
            objective=objective,
        )
