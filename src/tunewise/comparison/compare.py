"""Runs techniques side by side on one task under one budget, and says which is best and what cannot be told apart.

Every technique gets the same data order, the same number of steps or tokens, and the same allowance for a search of
its learning rate and settings on validation; the test split is scored once a seed. What fails stays in the table with
its reason. Finished trials are read from disk, so a comparison that was interrupted, or asked for one technique more,
runs only what is missing.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import torch
import transformers

from tunewise.comparison.budget import Budget, Clock
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.invocation import Invocation
from tunewise.comparison.row import Runs, skipped
from tunewise.comparison.trial import ANSWERS
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import SettingError
from tunewise.core.progress import RowProgress, silent_row
from tunewise.core.version import __version__
from tunewise.data.task import Task
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base
from tunewise.fitting import trackers
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.settings import TrainSettings
from tunewise.results.needs import Need
from tunewise.results.report.page import render_html
from tunewise.results.report.tables import markdown
from tunewise.results.schema import (
    SCHEMA,
    Answer,
    Answered,
    Available,
    BudgetFacts,
    Comparison,
    MachineFacts,
    ModelFacts,
    RetentionFacts,
    Row,
    ScoredRow,
    TaskFacts,
    Verdict,
)
from tunewise.results.statistics import against, interval, ranks, seed_variance
from tunewise.results.verdict import verdict


def compare(
    base: Base,
    task: Task,
    techniques: Sequence[Technique],
    out: str | Path,
    *,
    budget: Budget | None = None,
    settings: TrainSettings | None = None,
    retention: Sequence[str] | None = None,
    probe: Task | None = None,
    remembered: Sequence[str] | None = None,
    needs: Sequence[str] = (),
    price: float | None = None,
    report_to: Sequence[str] = (),
    progress: RowProgress = silent_row,
    invocation: Invocation | None = None,
) -> dict[str, Any]:
    """Run the comparison and return the content of `compare.json`; it is written to `out` with `report.md` and `.html`.

    Args:
        base: the model, bare.
        task: the data.
        techniques: recipes; those without a learning rate get the default for this base.
        out: folder; trials finished there before are not run again.
        budget: what each technique may spend.
        settings: batch size, schedule and the like; its `max_steps` is replaced by the budget's.
        retention: texts that the base should still predict well; default: text sampled from the base.
        probe: a task that the base can do; its score is taken again on up to 200 test examples after each trial.
        remembered: texts that `settings.replay` and `settings.kl_to_base` rehearse; default: what the base writes.
        needs: what is required of the recommended row, as `memory<8GB`, `mergeable`, `retain`.
        price: US dollars that an hour of this machine costs; gives the price of a thousand requests.
        report_to: services that follow training: tensorboard, wandb, mlflow, trackio.
        progress: called as progress(technique, what, done, total); a total of 0 is not known.
        invocation: how it was started and who follows it: callbacks, the lock, advice on the order.

    Raises:
        SettingError: two rows of the same name, or none; a need that is not one.
        RequestError: another process works in `out`.
    """
    budget, invocation = budget or Budget(), invocation or Invocation()
    course = invocation.course
    names = [technique.name for technique in techniques]
    if not names or len(set(names)) < len(names):
        raise SettingError(f"the techniques to compare must be different and at least one; given: {', '.join(names)}")
    begun = time.perf_counter()
    wanted = [Need.read(need) for need in needs]
    trackers.check(report_to)
    folder = artifact_writer.output_folder(out)
    settings = replace(settings or TrainSettings(), max_steps=budget.steps)
    tests = budget.test_examples or (200 if task.kind == "generation" else 500)
    with nullcontext() if invocation.locked else artifact_writer.lock(folder):
        progress("base", "measuring what the base knows", 0, 1)
        knew = Retention.measure(base, retention)
        context = ComparisonContext(
            base,
            task,
            validation=budget.validation_examples,
            test=tests,
            retention=knew,
            probe=probe,
            remembered=remembered,
            life=invocation.life or uuid4().hex,
            report_to=report_to,
            on_trial=invocation.on_trial,
        )
        command = tuple(invocation.command) if invocation.command else None
        result = replace(_head(context, budget, settings), command=command)
        started = invocation.started or time.time()
        clock = Clock(budget.minutes, started, folder / "paces.json") if budget.minutes else None
        runs = Runs(context, budget, settings, folder / "trials", invocation.held, progress, clock)
        rows: list[Row] = []
        answers, tables = dict[str, tuple[str, ...]](), dict[str, np.ndarray]()
        order = sorted(techniques, key=lambda technique: technique.trains) if clock else techniques
        turns = course.turns(order, rows) if course is not None else _all_of(order)
        for technique, left, reason in turns:
            row, records = (
                runs.row(technique.resolved(base), left) if reason is None else (skipped(technique, reason), [])
            )
            if price is not None and isinstance(row, ScoredRow):
                usd = row.cost.seconds_per_example / 3.6 * price
                row = replace(row, cost=replace(row.cost, usd_per_1000_requests=usd))
            rows.append(row)
            rows.sort(key=lambda row: names.index(row.technique))
            if records:
                tables[row.technique] = np.array([record.per_example for record in records])
                answers[row.technique] = records[0].answers
            rows[:], verdict_so_far = _concluded(rows, tables, wanted)
            result = replace(
                result,
                rows=tuple(rows),
                verdict=verdict_so_far,
                advice=course.followed() if course is not None else None,
                answers=_answers(context, tables, answers),
                seconds=time.perf_counter() - begun,
            )
            artifact_writer.write_json(folder / "compare.json", result.to_json())
            invocation.on_row(result)
        artifact_writer.write_text(folder / "report.md", markdown(result))
        artifact_writer.write_text(folder / "report.html", render_html(result))
    return result.to_json()


def _all_of(order: Sequence[Technique]) -> Iterator[tuple[Technique, int, str | None]]:
    """Every technique, with how many are left with it."""
    for place, technique in enumerate(order):
        yield technique, len(order) - place, None


def _concluded(rows: Sequence[Row], tables: dict[str, np.ndarray], needs: Sequence[Need]) -> tuple[list[Row], Verdict]:
    """Each row with its interval and its place among the others so far, and the verdict over them."""
    usual, places = seed_variance(tables), ranks(tables)
    placed: list[Row] = []
    for row in rows:
        if isinstance(row, ScoredRow) and row.technique in tables:
            low, high = interval(tables[row.technique], usual)
            row = replace(row, score=replace(row.score, low=low, high=high), rank=places[row.technique])
        placed.append(row)
    found = verdict([row for row in placed if isinstance(row, ScoredRow)], tables, needs)
    values = against(found.best, tables) if found.best is not None else {}
    return [replace(row, p_value=values.get(row.technique)) for row in placed], found


def _answers(
    context: ComparisonContext, tables: Mapping[str, np.ndarray], answers: Mapping[str, tuple[str, ...]]
) -> tuple[Answer, ...]:
    """The first test examples, with what each technique's first seed answered."""
    return tuple(
        Answer(
            prompt=example.prompt,
            answer=example.answer,
            rows={
                name: Answered(text=texts[place], score=float(tables[name][0, place]))
                for name, texts in answers.items()
            },
        )
        for place, example in enumerate(context.test[:ANSWERS])
    )


def _head(context: ComparisonContext, budget: Budget, settings: TrainSettings) -> Comparison:
    base, task, held = context.base, context.task, context.retention
    assert held is not None
    return Comparison(
        schema=SCHEMA,
        tunewise=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelFacts(**base.describe()),
        task=TaskFacts(
            name=task.name,
            source=task.source,
            kind=task.kind,
            format=task.format,
            metric=task.metric,
            labels=tuple(task.labels),
            train=len(task.train),
            validation=len(context.validation),
            test=len(context.test),
            available=Available(validation=len(task.validation), test=len(task.test)),
            window=base.window,
            fingerprint=task.fingerprint,
            notes=tuple(task.notes),
        ),
        retention=RetentionFacts(
            source=held.source,
            sequences=len(held.sequences),
            kl_positions=held.kl_tokens,
            base_nll=held.nll,
            probe=context.probe.name if context.probe is not None else None,
        ),
        budget=BudgetFacts(**asdict(budget)),
        settings={name: value for name, value in asdict(settings).items() if name != "max_steps"},
        machine=machine(base),
        rows=(),
        verdict=None,
    )


def machine(base: Base) -> MachineFacts:
    """What the figures were measured on."""
    return MachineFacts(
        platform=platform.platform(terse=True),
        processor=platform.processor() or platform.machine(),
        cores=psutil.cpu_count(logical=False),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        device=torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else base.device.type,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        packing=why_not_packed(base) or "padding-free",
    )
