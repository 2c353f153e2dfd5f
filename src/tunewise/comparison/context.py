"""What the trials of one comparison share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from tunewise.comparison.invocation import OnTrial, ignore_trial
from tunewise.contract.attachment import Attachment
from tunewise.data.task import Task, sample
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.model import Base
from tunewise.fitting.forgetting import OnTask, Retention
from tunewise.fitting.rehearsal import Rehearsal
from tunewise.fitting.scoring import encoder_for
from tunewise.fitting.settings import TrainSettings
from tunewise.results.schema import TrialIdentity, TrialRecord

_PROBED = 200  # examples of a probe that are scored


class ComparisonContext:
    """What the trials of one comparison share: the base, the task, its samples, and sequences tokenised once.

    `probe` is a task that the base could do before; what is left of it is measured after each trial. `remembered` is
    text for the remedies for forgetting. `life` names this run of the comparison: what failed in it is not tried again
    before the next. `report_to` are services that follow training. `on_trial` is told the folder and the recipe of
    the trial that runs, and None when it is over.
    """

    def __init__(
        self,
        base: Base,
        task: Task,
        *,
        validation: int,
        test: int,
        retention: Retention | None,
        probe: Task | None = None,
        remembered: Sequence[str] | None = None,
        life: str = "",
        report_to: Sequence[str] = (),
        on_trial: OnTrial = ignore_trial,
    ) -> None:
        self.base, self.task, self.retention, self.probe = base, task, retention, probe
        self.remembered, self.life, self._on_trial = remembered, life, on_trial
        self.report_to = tuple(report_to)
        self.probed = sample(probe.test, _PROBED) if probe is not None else ()
        self.validation = sample(task.validation, validation)
        self.test = sample(task.test, test)
        self._plain: dict[tuple[int, int], list[TokenSequence]] = {}
        self.rehearsal: Rehearsal | None = None
        self.on_task: OnTask | None = None
        self.norm = 0.0

    def measure_bare(self, settings: TrainSettings) -> None:
        """What must be known of the base before anything is attached to it; taken once."""
        if settings.rehearses and self.rehearsal is None:
            self.rehearsal = Rehearsal.of(self.base, self.remembered)
        if self.retention is not None and self.on_task is None:
            self.on_task = OnTask.measure(self.base, self.task, self.validation)
        if not self.norm:
            self.norm = math.sqrt(sum(float(p.detach().float().square().sum()) for p in self.base.model.parameters()))

    @property
    def held_bytes(self) -> int:
        """Bytes of the base's probabilities that are kept to compare with."""
        kept = [*(self.retention.log_p if self.retention else ()), *(self.on_task.log_p if self.on_task else ())]
        return sum(tensor.nbytes for tensor in kept)

    def stands(self, record: TrialRecord | None) -> TypeGuard[TrialRecord]:
        """Whether a failure is not tried again: it would be the same, or it happened in this comparison's life."""
        return record is not None and record.status == "failed" and record.life in (None, self.life)

    @contextmanager
    def running(self, folder: Path, identity: TrialIdentity) -> Iterator[None]:
        """Says which trial runs, for whoever watches over this process."""
        self._on_trial(str(folder), identity)
        try:
            yield
        finally:
            self._on_trial(None, None)

    def train_sequences(self, attachment: Attachment) -> list[TokenSequence]:
        """The training split for this attachment; shared by all that do not touch the text."""
        rendered = [attachment.render(example) for example in self.task.train]
        room = attachment.virtual_tokens, attachment.virtual_suffix
        if any(new is not old for new, old in zip(rendered, self.task.train, strict=True)):
            return encoder_for(attachment, self.task).encode(rendered)
        if room not in self._plain:
            self._plain[room] = encoder_for(attachment, self.task).encode(rendered)
        return self._plain[room]
