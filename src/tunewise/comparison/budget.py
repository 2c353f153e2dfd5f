"""Defines what every technique of a comparison may spend: steps, tokens or minutes, a search and seeds."""

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
    """Limits what every technique may spend. Both samples of examples are the same for every technique.

    Attributes:
        steps: optimiser steps of each trial.
        tokens: training tokens of each trial, in place of steps.
        search: trainings of full length that the search may cost, the winner's first seed included; 1: no search.
        seeds: seeds that the winner is run with.
        minutes: time of the whole comparison, of which every technique that trains gets an equal share.
        validation_examples: size of the validation sample.
        test_examples: size of the test sample; default: 500 for classification, 200 for generation.
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


_TIMED_STEPS = 4  # the first one is a warm-up and is not counted
_PLANNED_SHARE = 0.9  # of the time; the rest is a reserve for steps that take longer than those timed


@dataclass
class Clock:
    """Divides the time that a comparison may take, from `started` (seconds since the epoch) on, into training steps.

    `scoring` is the longest time in seconds that a trial has needed besides training so far. The steps decided for a
    technique are kept in the file `path`, so that a continued comparison trains for as many steps as before.
    """

    minutes: float
    started: float
    path: Path
    scoring: float = 0.0

    @property
    def left(self) -> float:
        """Return the seconds that are left; negative once the time is used up."""
        return self.minutes * 60 - (time.time() - self.started)

    def steps(
        self, technique: Technique, context: ComparisonContext, settings: TrainSettings, rows: int, trials: int
    ) -> int:
        """Return the optimiser steps of each of a technique's `trials`, where `rows` techniques share the time left."""
        decided = artifact_writer.read_json(self.path) if self.path.is_file() else {}
        key = f"{technique.name}, {trials} trials, {self.minutes:g} minutes"
        if key not in decided:
            step_seconds, prepare_seconds = self._time_steps(technique, context, settings)
            share = _PLANNED_SHARE * self.left / rows - trials * (self.scoring + prepare_seconds)
            decided[key] = max(int(share / trials / step_seconds), 1)
            artifact_writer.write_json(self.path, decided)
        return int(decided[key])

    def _time_steps(
        self, technique: Technique, context: ComparisonContext, settings: TrainSettings
    ) -> tuple[float, float]:
        """Measure the seconds per step, and the seconds that the technique needs before its first step."""
        ends: list[float] = []
        context.measure_bare(settings)
        started = time.perf_counter()
        try:
            attachment = technique.attach(context.base, generator(0, "attach"))
            attachment.prepare(study(attachment, context.task, context.validation, 0))
            prepare_seconds = time.perf_counter() - started
            train(
                attachment,
                context.train_sequences(attachment),
                replace(settings, max_steps=_TIMED_STEPS * attachment.phases),
                on_step=lambda step, value: ends.append(time.perf_counter()),
                reuse_trunk=False,
                rehearsal=context.rehearsal,
            )
        finally:
            context.base.release()
        return median(after - before for before, after in pairwise(ends)), prepare_seconds
