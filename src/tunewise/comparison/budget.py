"""Defines what every technique of a comparison may spend: steps, epochs, tokens or minutes, a search and seeds.

Where the user gives none of the first four, `chosen_steps` chooses the steps from data, model and machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch

from tunewise.advice.plan.machine_rates import Rates
from tunewise.comparison.context import ComparisonContext
from tunewise.contract.study import FORWARD_PASSES
from tunewise.contract.technique import Technique
from tunewise.core import sealed_json
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.core.json_record import Count, JsonObject, JsonRecord
from tunewise.core.progress import Progress, silent
from tunewise.core.seeds import generator
from tunewise.data.task import Task, sample
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import Base
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import loss, study
from tunewise.fitting.settings import TrainSettings
from tunewise.fitting.source_training import SourceTraining

_LENGTHS = ("steps", "epochs", "tokens", "minutes")


@dataclass(frozen=True, kw_only=True)
class ChosenBudget(JsonRecord):
    """Holds the steps that were chosen where the user gave no budget.

    Attributes:
        steps: optimiser steps of each trial.
        epochs: passes over the training split that follow from them.
        why: what was chosen and why, in a sentence for the user.
        basis: what it was chosen for; for the same basis, a folder keeps the choice.
    """

    steps: Count
    epochs: float
    why: str
    basis: str = ""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits what every technique may spend. Both samples of examples are the same for every technique.

    At most one of `steps`, `epochs`, `tokens` and `minutes` is given. Without any, the steps are chosen.

    Attributes:
        steps: optimiser steps of each trial.
        epochs: passes of each trial over the training split.
        tokens: training tokens of each trial.
        search: trainings of full length that the search may cost, the winner's first seed included; 1: no search.
        seeds: seeds that the winner is run with.
        minutes: time of the whole comparison, of which every technique that trains gets an equal share.
        validation_examples: size of the validation sample.
        test_examples: size of the test sample; default: 500 for classification, 200 for generation.
        chosen: the steps that were chosen, where none of the first four was given; see `settled`.

    Examples:
        >>> Budget(steps=100, search=3, seeds=3).seeds
        3
        >>> Budget(steps=100, minutes=10)
        Traceback (most recent call last):
        tunewise.core.errors.SettingError: ...
    """

    steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    search: int = 1
    seeds: int = 1
    minutes: float | None = None
    validation_examples: int = 128
    test_examples: int | None = None
    chosen: ChosenBudget | None = None

    def __post_init__(self) -> None:
        if len(given := [name for name in _LENGTHS if getattr(self, name) is not None]) > 1:
            raise SettingError(
                f"a budget is in steps, epochs, tokens or minutes, but this one gives {' and '.join(given)}; give one"
            )
        for name in ("steps", "tokens", "search", "seeds", "validation_examples", "test_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value} but must be at least 1")
        for name in ("epochs", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingError(f"{name} is {value:g} but must be more than 0")

    @property
    def is_settled(self) -> bool:
        """Whether the length of a trial is given or chosen."""
        return self.chosen is not None or any(getattr(self, name) is not None for name in _LENGTHS)

    def optimiser_steps(self, examples: int, settings: TrainSettings) -> int:
        """Return the steps of a trial on so many training examples.

        In a budget of tokens or minutes it is the default of the training settings, which is not used then.
        """
        if self.chosen is not None:
            return self.chosen.steps
        if self.epochs is not None:
            return settings.steps_for(self.epochs, examples)
        return self.steps or TrainSettings.max_steps


_EPOCHS = 3  # that are aimed at
_FEWEST_STEPS = 60  # with fewer, many techniques have hardly moved from the base
_ROW_SECONDS = 240  # of training, so that eight rows with their scores take less than 40 minutes
_STEP_FLOPS = 6  # per parameter and token: 2 forward and 4 backward (Kaplan et al. 2020)
_STEP_BYTES = 40  # per parameter: weights read twice, gradients written and read, AdamW's state read and written
_MEASURED = 200  # training examples whose lengths are measured


def chosen_steps(
    examples: int,
    rows: int,
    tokens: float,
    parameters: int,
    rates: Rates,
    trainings: int = 1,
    *,
    options: str = "--epochs or --budget-steps",
    unit: str = " a row",
) -> ChosenBudget:
    """Choose the optimiser steps of a trial: three epochs if a row then trains for at most four minutes, else fewer.

    It is never fewer than 60. The time is that of training all of the model's parameters.

    Args:
        examples: training examples.
        rows: examples of one step.
        tokens: mean tokens of an example.
        parameters: parameters of the model.
        rates: how fast the machine is.
        trainings: trainings of full length that a row may take, for its search and its seeds.
        options: the options that the user can give instead.
        unit: what the time is for.
    """
    step_seconds = rates.seconds(_STEP_FLOPS * parameters * tokens * rows, _STEP_BYTES * parameters, 0)
    wanted = _rounded(max(_EPOCHS * examples / rows, 1))
    affordable = _rounded_down(_ROW_SECONDS / trainings / step_seconds)
    steps = max(min(wanted, affordable), _FEWEST_STEPS)
    seconds = steps * step_seconds * trainings
    epochs = steps * rows / examples
    what = f"{steps:,} steps of {rows} examples: {_epochs(epochs)} of {examples:,} examples"
    time_needed = f"about {max(seconds, 1):.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"
    if steps > affordable:
        why = f"{what}, {time_needed}{unit} on this machine; fewer steps teach too little to compare ({options})"
    elif steps < wanted:
        limit = f"{_ROW_SECONDS // 60} min{unit} on this machine"
        why = f"{what}; more would take over {limit} ({options} for more)"
    elif steps > wanted:
        why = f"{what}, as fewer steps teach too little to compare; {time_needed}{unit} on this machine"
    else:
        why = f"{what}, {time_needed}{unit} on this machine"
    return ChosenBudget(steps=steps, epochs=epochs, why=f"{why}.")


def _epochs(epochs: float) -> str:
    number = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
    return f"{number} epoch{'' if number == '1' else 's'}"


def _rounded(steps: float) -> int:
    """Round to two significant digits."""
    return int(float(f"{steps:.2g}"))


def _rounded_down(steps: float) -> int:
    """Round down to 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6 or 8 times a power of ten; below 1 to 0."""
    if steps < 1:
        return 0
    power = 10 ** math.floor(math.log10(steps))
    return int(max(part for part in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if part * power <= steps) * power)


_CHOICE = "budget.json"


def settled(
    budget: Budget, base: Base, task: Task, settings: TrainSettings, folder: Path, device: str = "cpu"
) -> Budget:
    """Return the budget with the steps of `chosen_budget`, if it gives none itself; its arguments are the same."""
    if budget.is_settled:
        return budget
    return replace(budget, chosen=chosen_budget(budget, base, task, settings, folder, device))


def chosen_budget(
    budget: Budget, base: Base, task: Task, settings: TrainSettings, folder: Path, device: str = "cpu"
) -> ChosenBudget:
    """Return the steps that were chosen before in this folder, or else choose them now.

    Args:
        budget: the budget as the user gave it, for its search and its seeds.
        base: the model; an outline without weights will do.
        task: the data.
        settings: the training settings, for the examples of a step and the precision.
        folder: the folder of the results, where `keep_choice` stores the choice.
        device: "cpu" or "cuda", where training will run.
    """
    trainings = budget.search + budget.seeds - 1
    basis = f"{base.name}, {task.fingerprint}, {settings.rows} rows, {trainings} trainings"
    path = folder / _CHOICE
    stored = sealed_json.read_or_set_aside(
        path, lambda value: ChosenBudget.from_json(value, path), "the steps are chosen again"
    )
    if stored is not None and stored.basis == basis:
        return stored
    sequences = Encoder(base, task).encode(sample(task.train, _MEASURED))
    chosen = chosen_steps(
        len(task.train),
        settings.rows,
        mean(len(sequence.ids) for sequence in sequences),
        base.parameters,
        Rates.for_model(base.model.config, torch.bfloat16 if settings.bf16 else torch.float32, device),
        trainings,
    )
    return replace(chosen, basis=basis)


def keep_choice(chosen: ChosenBudget, folder: Path) -> None:
    """Store what was chosen, so that the same is chosen when the work in this folder is continued."""
    sealed_json.write(folder / _CHOICE, chosen.to_json())


def training_device(name: str | None) -> str:
    """Return "cuda" where a model on the device of this name is trained on a GPU of that kind, else "cpu"."""
    return "cuda" if (name or ("cuda" if torch.cuda.is_available() else "cpu")).startswith("cuda") else "cpu"


def _paces(value: JsonObject) -> dict[str, int]:
    """Read the steps that were decided, by technique."""
    if not all(isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 for steps in value.values()):
        raise ArtifactError("paces.json does not hold numbers of steps")
    return value


_TIMED_STEPS = 4  # the first one is a warm-up and is not counted
_PLANNED_SHARE = 0.9  # of the time; the rest is a reserve for steps that take longer than those timed


@dataclass
class Clock:
    """Divides the time that a comparison may take, from `started` on (`time.monotonic`), into training steps.

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
        return self.minutes * 60 - (time.monotonic() - self.started)

    def steps(
        self,
        technique: Technique,
        context: ComparisonContext,
        settings: TrainSettings,
        rows: int,
        trials: int,
        progress: Progress = silent,
        preparations: int = 1,
    ) -> int:
        """Return the optimiser steps of each of a technique's `trials`, where `rows` techniques share the time left.

        The trials prepare themselves `preparations` times in all; one that shares a preparation does not read again.
        For a technique that chooses and does not train, they are the steps to whose tokens its allowance is equal.
        """
        decided = sealed_json.read_or_set_aside(self.path, _paces, "the steps are timed again") or {}
        key = f"{technique.name}, {trials} trials, {self.minutes:g} minutes"
        if key not in decided:
            if technique.trains:
                step_seconds, prepare_seconds = self._time_steps(technique, context, settings, progress)
            else:
                step_seconds, prepare_seconds = self._time_reading(technique, context, settings), 0.0
            share = _PLANNED_SHARE * self.left / rows - trials * self.scoring - preparations * prepare_seconds
            decided[key] = max(int(share / trials / step_seconds), 1)
            sealed_json.write(self.path, decided)
        return decided[key]

    def _time_reading(self, technique: Technique, context: ComparisonContext, settings: TrainSettings) -> float:
        """Measure the seconds in which the tokens of one step's allowance are read, and leave as long for answering."""
        try:
            attachment = technique.attach(context.base, generator(0, "attach"))
            examples = context.task.train[: math.ceil(FORWARD_PASSES * settings.rows)]
            loss(attachment, context.task, examples)  # a warm-up
            started = time.perf_counter()
            loss(attachment, context.task, examples)
            return 2 * (time.perf_counter() - started) * FORWARD_PASSES * settings.rows / len(examples)
        finally:
            context.base.release()

    def _time_steps(
        self, technique: Technique, context: ComparisonContext, settings: TrainSettings, progress: Progress
    ) -> tuple[float, float]:
        """Measure the seconds per step, and the seconds that the technique needs before its first step."""
        ends: list[float] = []

        def on_step(step: int, loss: float) -> None:
            ends.append(time.perf_counter())
            progress("timing its steps", step, total)

        total = _TIMED_STEPS
        context.measure_bare(settings, progress)
        started = time.perf_counter()
        try:
            attachment = technique.attach(context.base, generator(0, "attach"))
            attachment.prepare(
                study(attachment, context.task, context.validation, 0, progress, trains=SourceTraining(settings))
            )
            prepare_seconds = time.perf_counter() - started
            total = _TIMED_STEPS * attachment.phases
            train(
                attachment,
                context.train_sequences(attachment, progress),
                replace(settings, max_steps=total, early_stopping_patience=0),
                on_step=on_step,
                reuse_trunk=False,
                rehearsal=context.rehearsal,
            )
        finally:
            context.base.release()
        return median(after - before for before, after in pairwise(ends)), prepare_seconds
