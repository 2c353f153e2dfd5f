"""Holds what the trials of one comparison share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import torch

from tunewise.comparison.invocation import OnTrial, ignore_trial
from tunewise.comparison.preparation import Preparations
from tunewise.comparison.probe import Probe
from tunewise.contract.attachment import Attachment
from tunewise.core.progress import Progress, silent
from tunewise.data.task import Task, sample
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.model import Base
from tunewise.engine.run_text import RunText
from tunewise.fitting.encoded_rows import encoded_rows, rendered_examples
from tunewise.fitting.forgetting import OnTask, Retention
from tunewise.fitting.rehearsal import Rehearsal
from tunewise.fitting.settings import TrainSettings
from tunewise.results.schema import TrialIdentity, TrialRecord


class ComparisonContext:
    """Holds what the trials of one comparison share: the base, the task, its samples, and sequences tokenised once.

    Args:
        base: the model, bare.
        task: the data.
        validation: validation examples to sample.
        test: test examples to sample.
        retention: what forgetting is measured on; None measures none.
        probe: what the base could do; its score is taken again after each trial.
        remembered: text for the remedies for forgetting.
        attempt_id: identifies this run of the comparison; a trial that failed in it is retried only in the next one.
        report_to: services that follow training.
        on_trial: is told the folder and the recipe of the trial that runs, and None twice when it is over.
        rows: the folder of files of encoded rows; None keeps however many rows in memory.
    """

    def __init__(
        self,
        base: Base,
        task: Task,
        *,
        validation: int,
        test: int,
        retention: Retention | None,
        probe: Probe | None = None,
        remembered: Sequence[str] | None = None,
        attempt_id: str = "",
        report_to: Sequence[str] = (),
        on_trial: OnTrial = ignore_trial,
        rows: Path | None = None,
    ) -> None:
        self.rows = rows
        self.base, self.task, self.retention, self.probe = base, task, retention, probe
        self.text = RunText.of(base, task)
        self.remembered, self.attempt_id, self._on_trial = remembered, attempt_id, on_trial
        self.report_to = tuple(report_to)
        self.validation = sample(task.validation, validation)
        self.test = sample(task.test, test)
        self._encoded: dict[tuple[int, int], Sequence[TokenSequence]] = {}
        self.rehearsal: Rehearsal | None = None
        self.on_task: OnTask | None = None
        self.norm = 0.0
        self.preparations = Preparations()

    def measure_bare(self, settings: TrainSettings, progress: Progress = silent) -> None:
        """Measure, once, what a trial that is about to run must know of the base before anything is attached to it."""
        if settings.rehearses and self.rehearsal is None:
            progress("reading the remembered text", 0, 0)
            self.rehearsal = Rehearsal.of(self.base, self.remembered)
        if self.retention is not None:
            self.retention.record_predictions(self.base)
        if self.retention is not None and self.on_task is None:
            self.on_task = OnTask.measure(self.base, self.task, self.validation, progress)
        if not self.norm:
            norms = [torch.linalg.vector_norm(p.detach(), dtype=torch.float32) for p in self.base.model.parameters()]
            self.norm = float(torch.linalg.vector_norm(torch.stack(norms)))

    def stands(self, record: TrialRecord | None) -> TypeGuard[TrialRecord]:
        """Return whether a failure is final for now: it would recur, or it happened in this very attempt."""
        return record is not None and record.status == "failed" and record.life in (None, self.attempt_id)

    @contextmanager
    def running(self, folder: Path, identity: TrialIdentity) -> Iterator[None]:
        """Tell the supervising process which trial runs."""
        self._on_trial(str(folder), identity)
        try:
            yield
        finally:
            self._on_trial(None, None)

    def train_sequences(self, attachment: Attachment, progress: Progress = silent) -> Sequence[TokenSequence]:
        """Encode the training split for this attachment; all that leave the text as it is share one encoding."""
        progress("encoding the training examples", 0, 0)
        rendered = rendered_examples(attachment, self.task)
        virtual = attachment.virtual_tokens, attachment.virtual_suffix
        if rendered is not self.task.train:
            return encoded_rows(attachment, self.task, self.rows, progress, rendered)
        if virtual not in self._encoded:
            self._encoded[virtual] = encoded_rows(attachment, self.task, self.rows, progress, rendered)
        return self._encoded[virtual]
