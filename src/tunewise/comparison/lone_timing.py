"""Times alone what ran beside other trials: neighbours on the same cores' memory make every second longer.

Where workers have devices of several kinds, all rows are timed on the first one.

Some steps are trained anew on a fresh attachment, and some examples of validation are answered by the adaptation that
was trained. A row then takes the shorter of what was measured in its trial and of what was measured here, since
neighbours only ever make it longer; where kinds of devices are mixed, it takes what was measured here. What is read and
computed before training is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.trial_fit import saved_attachment
from tunewise.comparison.trial_identity import Trial
from tunewise.comparison.trial_records import LoneTiming, read_timing, write_timing
from tunewise.core.progress import Progress
from tunewise.core.seeds import generator
from tunewise.engine.device import device_name
from tunewise.engine.memory import release_unused_memory
from tunewise.fitting.allowance import allowance
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import score, study
from tunewise.results.schema import Row, ScoredRow

TIMING = "timing it alone"
_STEPS = 4  # the first one warms up and is not timed
_EXAMPLES = 16


def mark_neighbours(folder: Path, neighbours: int, *, mixed: bool = False) -> None:
    """Note in a trial's folder that it runs beside others, or on one of several kinds of devices.

    What was noted stays, unless kinds are mixed now and were not: then what was measured may be another device's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = read_timing(folder)
    if known is None or (mixed and not known.mixed):
        write_timing(folder, LoneTiming(neighbours=neighbours, mixed=mixed))


def needs_timing(folder: Path) -> bool:
    """Return whether a trial ran beside others and was not timed alone yet."""
    timing = read_timing(folder)
    return timing is not None and timing.seconds_per_example is None


def time_alone(trial: Trial, context: ComparisonContext, folder: Path, progress: Progress) -> None:
    """Time a finished trial, and write it to its folder; what cannot be timed stays as it was measured."""
    timing = read_timing(folder)
    if timing is None or timing.seconds_per_example is not None:
        return
    progress(TIMING, 0, 0)
    release_unused_memory()
    seconds = _attempt(lambda: _answering(trial, context, folder, progress), context)
    pace = _attempt(lambda: _training(trial, context, progress), context) if trial.technique.trains else None
    if seconds is not None:
        device = device_name(context.base.device.type)
        write_timing(folder, replace(timing, tokens_per_second=pace, seconds_per_example=seconds, device=device))


def _attempt(measure: Callable[[], float | None], context: ComparisonContext) -> float | None:
    try:
        return measure()
    except Exception:  # the row is finished: that it cannot be timed once more must not cost it
        return None
    finally:
        context.base.release()


def _answering(trial: Trial, context: ComparisonContext, folder: Path, progress: Progress) -> float | None:
    """Return the seconds of answering an example of validation."""
    attachment = saved_attachment(trial, context, folder / "adaptation", progress)
    examples = (context.validation or context.task.train)[:_EXAMPLES]
    if attachment is None or not examples:
        return None
    score(attachment, context.task, examples[:2])  # a warm-up
    return score(attachment, context.task, examples).seconds_per_example


def _training(trial: Trial, context: ComparisonContext, progress: Progress) -> float | None:
    """Return the training tokens per second of steps of the trial's size."""
    ends: list[float] = []
    context.measure_bare(trial.settings, progress)
    attachment = trial.technique.attach(context.base, generator(trial.seed, "attach"))
    allowed = allowance(context.base, context.task, trial.settings, trial.tokens)
    attachment.prepare_shapes(
        study(attachment, context.task, context.validation, trial.seed, progress, allowance=allowed)
    )
    steps = _STEPS * attachment.phases
    trained = train(
        attachment,
        context.train_sequences(attachment, progress),
        replace(trial.settings, max_steps=steps, early_stopping_patience=0, load_best_model_at_end=False, eval_steps=0),
        seed=trial.seed,
        on_step=lambda *_: ends.append(time.perf_counter()),
        rehearsal=context.rehearsal,
    )
    step_seconds = median(after - before for before, after in pairwise(ends))
    return trained.tokens / trained.steps / step_seconds if step_seconds > 0 else None


def with_lone_times(rows: Sequence[Row], folder: Path) -> list[Row]:
    """Return the rows with the seconds of those trials that were timed alone.

    Args:
        rows: the rows of a comparison.
        folder: its folder.
    """
    return [_with_lone_times(row, folder) if isinstance(row, ScoredRow) else row for row in rows]


def _with_lone_times(row: ScoredRow, folder: Path) -> Row:
    timing = read_timing((folder / (row.adaptation or "")).parent) if row.adaptation else None
    if timing is None or timing.seconds_per_example is None:
        return row
    cost, pace = row.cost, timing.tokens_per_second
    beside = cost.tokens_per_second
    if pace is not None and beside and (timing.mixed or pace > beside):
        preparing = cost.preparing_seconds or 0.0
        seconds = preparing + (cost.train_seconds - preparing) * beside / pace
        cost = replace(cost, tokens_per_second=pace, train_seconds=seconds)
    answering = timing.seconds_per_example
    if not timing.mixed:
        answering = min(cost.seconds_per_example, answering)
    cost = replace(cost, seconds_per_example=answering, timed_alone=True)
    return replace(row, cost=replace(cost, timed_on=timing.device) if timing.mixed else cost)
