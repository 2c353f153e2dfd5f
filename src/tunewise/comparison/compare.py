"""Runs techniques side by side on one task under one budget, and says which is best and which are tied with it.

Every technique gets the same data order, the same number of steps or tokens, and the same allowance to search its
learning rate and settings on validation data. The test split is scored once per seed. A technique that fails stays in
the table with its reason. Finished trials are read from disk, so a comparison that was interrupted, or that gets one
more technique, runs only what is missing.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import torch
import transformers

from tunewise.adaptation.label_list import label_list_choice
from tunewise.comparison.budget import Budget, Clock, keep_choice, settled, training_device
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.invocation import Invocation
from tunewise.comparison.measured_base import retention_of
from tunewise.comparison.preparation import remove_all
from tunewise.comparison.probe import Probe, TaskProbe
from tunewise.comparison.recorded_text import keep_text, require_same_text
from tunewise.comparison.result_table import ResultTable
from tunewise.comparison.row import Runs
from tunewise.comparison.row_turns import row_turns
from tunewise.comparison.spending import expected
from tunewise.comparison.trial_records import remove_leftovers, set_aside_unsealed, unsealed_trials
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import SettingError
from tunewise.core.lock import lock
from tunewise.core.operating_system import processor_name
from tunewise.core.progress import RowProgress, for_row, silent_row
from tunewise.core.version import __version__
from tunewise.data.task import Task, default_test_examples
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.rows import fitted_to
from tunewise.fitting import trackers
from tunewise.fitting.encoded_rows import FOLDER as ROWS
from tunewise.fitting.scoring import label_scores
from tunewise.fitting.settings import TrainSettings
from tunewise.results.needs import Need
from tunewise.results.reference import MajorityScores
from tunewise.results.report.page import render_html
from tunewise.results.report.tables import markdown
from tunewise.results.schema import (
    SCHEMA,
    Available,
    BudgetFacts,
    Comparison,
    MachineFacts,
    ModelFacts,
    RetentionFacts,
    TaskFacts,
)

# What is written to the folder of a comparison, besides the folders of the trials and of the measured base.
_FILES = (
    "compare.json",
    "report.md",
    "report.html",
    "text.json",
    "label_list.json",
    "budget.json",
    "paces.json",
    "advice.json",
)


def compare(
    base: Base,
    task: Task,
    techniques: Sequence[Technique],
    out: str | Path,
    *,
    budget: Budget | None = None,
    settings: TrainSettings | None = None,
    retention: Sequence[str] | None = None,
    probe: Task | Probe | None = None,
    remembered: Sequence[str] | None = None,
    needs: Sequence[str] = (),
    price: float | None = None,
    report_to: Sequence[str] = (),
    progress: RowProgress = silent_row,
    invocation: Invocation | None = None,
) -> dict[str, Any]:
    """Run the comparison and return the content of `compare.json`; write it to `out` with both reports.

    Args:
        base: the model, with nothing attached.
        task: the data.
        techniques: recipes; those without a learning rate get the default for this base.
        out: the output folder; trials that are already finished there are not run again.
        budget: what each technique may spend.
        settings: batch size, schedule and other training settings; its `max_steps` is replaced by the budget's.
        retention: texts that forgetting is measured on; default: text sampled from the base.
        probe: what the base can do; its score is taken again after each trial. Of a task, on up to 200 test examples;
            `tunewise.comparison.probe.HarnessProbe` names tasks of the lm-evaluation-harness.
        remembered: texts that `settings.replay` and `settings.kl_to_base` rehearse; default: text from the base.
        needs: what is required of the recommended row, such as `memory<8GB`, `mergeable`, `retain`.
        price: US dollars per hour of this machine, from which the price of a thousand requests follows.
        report_to: services that follow training: tensorboard, wandb, mlflow, trackio.
        progress: called as progress(technique, what, done, total); a total of 0 means unknown.
        invocation: how it was started and who follows it: callbacks, the lock, and advice on the order.

    Raises:
        SettingError: two techniques have the same name, there are none, or a need cannot be read.
        RequestError: another process uses `out`, or it holds a comparison of another model or other data.

    Examples:
        >>> base, task = load_base("world"), Task.read("world:reviews")
        >>> recipes, budget = [make("base"), make("bitfit")], Budget(steps=2, test_examples=20)
        >>> result = compare(base, task, recipes, "runs/both", budget=budget)
        >>> [(row["technique"], row["status"]) for row in result["rows"]]
        [('base', 'ok'), ('bitfit', 'ok')]
    """
    budget, invocation = budget or Budget(), invocation or Invocation()
    begun = invocation.started if invocation.started is not None else time.monotonic()
    course = invocation.course
    names = [technique.name for technique in techniques]
    if not names or len(set(names)) < len(names):
        raise SettingError(f"compare needs at least one technique, each only once; got: {', '.join(names)}")
    started_at = time.perf_counter()
    required = [Need.read(need) for need in needs]
    trackers.check(report_to)
    folder = artifact_writer.output_folder(out)
    settings = settings or TrainSettings()
    notes_of_data, task = task.notes, fitted_to(base, task)
    for note in task.notes:
        if note not in notes_of_data:
            invocation.on_message(note)
    test_examples = budget.test_examples or default_test_examples(task.kind)
    with nullcontext() if invocation.locked else lock(folder):
        trials = folder / "trials"
        require_same_text(base, task, folder)
        label_list = label_list_choice(
            base, task, folder, has_results=trials.is_dir(), progress=for_row(progress, "base")
        )
        if label_list is not None:
            task = label_list.applied_to(task)
        recorded = keep_text(base, task, folder, lambda: unsealed_trials(trials))
        set_aside_unsealed(trials, recorded.unsealed)
        remove_leftovers(trials)
        artifact_writer.remove_leftovers(folder, *_FILES)
        if not budget.is_settled and any(technique.trains for technique in techniques):
            budget = settled(budget, base, task, settings, folder, training_device(base.device.type))
        settings = replace(settings, max_steps=budget.optimiser_steps(len(task.train), settings))
        if budget.chosen is not None:
            keep_choice(budget.chosen, folder)
            invocation.on_message(budget.chosen.why)
        progress("base", "measuring the base on retention text", 0, 0)
        base_retention = retention_of(base, retention, folder, progress=for_row(progress, "base"))
        context = ComparisonContext(
            base,
            task,
            validation=budget.validation_examples,
            test=test_examples,
            retention=base_retention,
            probe=TaskProbe.of(probe) if isinstance(probe, Task) else probe,
            remembered=remembered,
            attempt_id=invocation.attempt_id or uuid4().hex,
            report_to=report_to,
            on_trial=invocation.on_trial,
            rows=folder / ROWS,
        )
        estimate = invocation.estimate
        if invocation.on_estimate is not None and estimate is None:
            estimate = expected(
                context,
                techniques,
                budget,
                settings,
                trials=trials,
                invocation=replace(invocation, started=begun),
                progress=progress,
            )
            if invocation.workers > 1:
                estimate = replace(estimate, workers=invocation.workers)
            if estimate.rows:
                invocation.on_estimate(estimate)
        command = tuple(invocation.command) if invocation.command else None
        majority = _majority(context)
        result = replace(
            _without_rows(context, budget, settings),
            command=command,
            estimate=estimate,
            majority=majority.row if majority is not None else None,
        )
        clock = Clock(budget.minutes, begun, folder / "paces.json") if budget.minutes else None
        runs = Runs(context, budget, settings, trials, invocation.held, progress, clock)
        table = ResultTable(context, names, required, majority, price)

        def write(result: Comparison) -> Comparison:
            result = table.result(result, course, time.perf_counter() - started_at)
            artifact_writer.write_json(folder / "compare.json", result.to_json())
            return result

        with row_turns(runs, techniques, invocation) as turns:
            for technique, row, records in turns.rows(table.rows):
                table.add(row, records)
                progress(technique.name, "comparing with the other rows", 0, 0)
                result = write(result)
                invocation.on_row(result)
            timed = turns.timed_alone(table.rows, folder)
        if timed is not None:
            table.rows[:] = timed
            result = write(result)
        remove_all(trials)
        progress("report", "writing", 0, 0)
        artifact_writer.write_text(folder / "report.md", markdown(result, out))
        artifact_writer.write_text(folder / "report.html", render_html(result, out))
    return result.to_json()


def _majority(context: ComparisonContext) -> MajorityScores | None:
    """Score the most frequent training label, the first of several, on the test examples of a classification."""
    task, test = context.task, context.test
    if task.kind != "classification" or not task.train or not test:
        return None
    counts = Counter(example.answer for example in task.train)
    label = max(task.labels, key=lambda label: counts[label])
    return MajorityScores.of(label, counts[label] / len(task.train), label_scores(task, [label] * len(test), test))


def _without_rows(context: ComparisonContext, budget: Budget, settings: TrainSettings) -> Comparison:
    """Describe the model, task, budget and machine of a comparison that has no rows yet."""
    base, task, retention = context.base, context.task, context.retention
    assert retention is not None
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
            label_list=task.label_list,
        ),
        retention=RetentionFacts(
            source=retention.source,
            sequences=len(retention.sequences),
            kl_positions=retention.kl_tokens,
            base_nll=retention.nll,
            probe=context.probe.name if context.probe is not None else None,
        ),
        budget=_budget_facts(budget, settings.max_steps),
        settings={name: value for name, value in asdict(settings).items() if name != "max_steps"},
        machine=machine(base),
        rows=(),
        verdict=None,
    )


def _budget_facts(budget: Budget, steps: int) -> BudgetFacts:
    """Describe the budget, with the steps that follow from it."""
    chosen = budget.chosen
    return BudgetFacts(
        steps=steps,
        tokens=budget.tokens,
        search=budget.search,
        seeds=budget.seeds,
        minutes=budget.minutes,
        validation_examples=budget.validation_examples,
        test_examples=budget.test_examples,
        epochs=budget.epochs if chosen is None else chosen.epochs,
        chosen=chosen.why if chosen is not None else None,
    )


def machine(base: Base) -> MachineFacts:
    """Describe the machine that the figures are measured on."""
    return MachineFacts(
        platform=platform.platform(terse=True),
        processor=processor_name(),
        cores=psutil.cpu_count(logical=False),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        device=torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else base.device.type,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        packing=why_not_packed(base) or "padding-free",
    )
