"""The plan of every candidate that advice is drawn up with: sizes, memory, time and lengths of requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunewise.advice.plan.machine_rates import Rates
    from tunewise.advice.plan.plan_row import PlanRow
    from tunewise.advice.question import Planner
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Task
    from tunewise.engine.model import Base
    from tunewise.fitting.settings import TrainSettings

UNLIMITED = 1e15  # bytes of a device on which everything fits


def planner_for(
    base: Base,
    task: Task,
    recipes: Sequence[Technique],
    examples: float,
    *,
    settings: TrainSettings | None = None,
    rates: Rates | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Planner:
    """Make the planner of candidates for a model; its weights are not needed.

    Without a limit of memory every candidate fits, and the plan says how much it takes.

    Args:
        base: the model.
        task: the data.
        recipes: the candidates.
        examples: training examples that a candidate may see, repeated ones counted again.
        settings: of training; default: as many steps as these examples make.
        rates: how fast the machine is; without them the plan has no times.
        report: is called with a candidate's name, how many are planned, and how many there are.
    """
    from tunewise.advice.plan import planner as plans
    from tunewise.advice.plan.weightless import Sketch
    from tunewise.engine.forward import why_not_packed
    from tunewise.engine.model import AUTO, weights_dtype
    from tunewise.engine.tiny import ARCHITECTURES, tiny_base
    from tunewise.fitting.settings import TrainSettings

    kind = base.model.config.model_type
    unpacked = why_not_packed(tiny_base(kind)) if kind in ARCHITECTURES else None  # as `sketch` finds it
    dtype = weights_dtype(AUTO, base.model.config, "cpu")
    sketched = Sketch(base.name, base.model.config, base.tokenizer, dtype, base.max_length, unpacked)
    settings = settings or TrainSettings(max_steps=max(math.ceil(examples / TrainSettings().rows), 1))
    planner = plans.Planner(sketched, task, recipes, settings, "cpu", rates)
    if report is not None:
        planner.report = report

    def rows(memory: float | None) -> list[PlanRow]:
        return planner.rows(UNLIMITED if memory is None else memory)

    return rows
