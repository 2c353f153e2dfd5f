"""What every technique of a comparison may spend: steps, tokens or minutes, a search and seeds."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from tunewise.comparison.context import ComparisonContext
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import SettingError
from tunewise.core.seeds import generator
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import study
from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every technique may spend.

    `steps` optimiser steps, or `tokens` training tokens, for each trial, or `minutes` for all of them together, of
    which every technique that trains gets an equal share; `search` trials' worth of training for each
    technique's search and its winner's first seed (1: no search); `seeds` runs of the winner. Test examples: the
    default is 500 for classification and 200 where answers are written; both samples are the same for every technique.
    """

    steps: int = 100
    tokens: int | None = None
    search: int = 1
    seeds: int = 1
    minutes: float | None = None
    validation_examples: int = 128
    test_examples: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "search", "seeds", "validation_examples", "test_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value} but must be at least 1")
        if self.minutes is not None and not self.minutes > 0:
            raise SettingError(f"minutes is {self.minutes:g} but must be more than 0")
        if self.minutes is not None and self.tokens is not None:
            raise SettingError("a budget is in tokens or in minutes, not both")


_PROBE = 4  # steps that are timed; the first one warms up and is not counted


_USED = 0.9  # share of the time that is planned; the rest is for what takes longer than it did at first


@dataclass
class Clock:
    """Time that a comparison may take, from `started` (seconds since the epoch) on.

    `scoring` is the longest that a trial took beside its training so far. Steps once decided are kept in `path`, so
    that a comparison that is continued trains what it began.
    """

    minutes: float
    started: float
    path: Path
    scoring: float = 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        return self.minutes * 60 - (time.time() - self.started)

    def steps(
        self, technique: Technique, context: ComparisonContext, settings: TrainSettings, rows: int, trials: int
    ) -> int:
        """Optimiser steps of each of a technique's `trials`, where `rows` techniques share what is left."""
        known = artifact_writer.read_json(self.path) if self.path.is_file() else {}
        asked = f"{technique.name}, {trials} trials, {self.minutes:g} minutes"
        if asked not in known:
            pace, learning = self._pace(technique, context, settings)
            share = _USED * self.left / rows - trials * (self.scoring + learning)
            known[asked] = max(int(share / trials / pace), 1)
            artifact_writer.write_json(self.path, known)
        return int(known[asked])

    def _pace(self, technique: Technique, context: ComparisonContext, settings: TrainSettings) -> tuple[float, float]:
        """Seconds of a step, and seconds that the technique takes before its first one."""
        ends: list[float] = []
        context.measure_bare(settings)
        begun = time.perf_counter()
        try:
            attachment = technique.attach(context.base, generator(0, "attach"))
            attachment.prepare(study(attachment, context.task, context.validation, 0))
            learning = time.perf_counter() - begun
            train(
                attachment,
                context.train_sequences(attachment),
                replace(settings, max_steps=_PROBE * attachment.phases),
                on_step=lambda step, value: ends.append(time.perf_counter()),
                reuse_trunk=False,
                rehearsal=context.rehearsal,
            )
        finally:
            context.base.release()
        return median(after - before for before, after in pairwise(ends)), learning
