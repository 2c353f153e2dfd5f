"""Runs techniques side by side on one task under one budget, and says which is best and what cannot be told apart.

Every technique gets the same data order, the same number of steps or tokens, and the same small learning-rate search
on validation; the test split is scored once a seed. What fails stays in the table with its reason. Finished trials
are read from disk, so a comparison that was interrupted, or asked for one technique more, runs only what is missing.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

from tunewise import __version__, store
from tunewise.errors import SettingError
from tunewise.forward import why_not_packed
from tunewise.model import Base
from tunewise.page import page
from tunewise.report import markdown
from tunewise.retention import Retention
from tunewise.task import Task
from tunewise.technique import Technique
from tunewise.train import TrainSettings
from tunewise.trial import Cache, Trial, run
from tunewise.verdict import interval, verdict

SCHEMA = 1
Progress = Callable[[str, str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every technique may spend.

    `steps` optimiser steps, or `tokens` training tokens, for each trial; `search` learning rates tried on validation;
    `seeds` runs of the winner. Test examples: the default is 500 for classification and 200 where answers are
    written; both samples are the same for every technique.
    """

    steps: int = 100
    tokens: int | None = None
    search: int = 1
    seeds: int = 1
    validation_examples: int = 128
    test_examples: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "search", "seeds", "validation_examples", "test_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value} but must be at least 1")
        if self.search > 5:
            raise SettingError(f"search is {self.search}, but a search tries at most 5 learning rates")


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
    progress: Progress = lambda row, what, done, total: None,
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
        progress: called as progress(technique, what, done, total); a total of 0 is not known.

    Raises:
        SettingError: two rows of the same name, or none.
        RequestError: another process works in `out`.
    """
    budget = budget or Budget()
    names = [technique.name for technique in techniques]
    if not names or len(set(names)) < len(names):
        raise SettingError(f"the techniques to compare must be different and at least one; given: {', '.join(names)}")
    folder = store.output_folder(out)
    settings = replace(settings or TrainSettings(), max_steps=budget.steps)
    tests = budget.test_examples or (200 if task.kind == "generation" else 500)
    with store.lock(folder):
        progress("base", "measuring what the base knows", 0, 1)
        held = Retention.measure(base, retention)
        cache = Cache(
            base,
            task,
            validation=budget.validation_examples,
            test=tests,
            retention=held,
            probe=probe,
            remembered=remembered,
        )
        result = _head(cache, budget, settings)
        per_example: dict[str, np.ndarray] = {}
        for technique in techniques:
            row, scores = _row(technique.resolved(base), cache, budget, settings, folder / "trials", progress)
            result["rows"].append(row)
            if scores is not None:
                per_example[row["technique"]] = scores
            result["verdict"] = verdict(result["rows"], per_example)
            store.write_json(folder / "compare.json", result)
        store.write_text(folder / "report.md", markdown(result))
        store.write_text(folder / "report.html", page(result))
    return result


def _head(cache: Cache, budget: Budget, settings: TrainSettings) -> dict[str, Any]:
    base, task, held = cache.base, cache.task, cache.retention
    assert held is not None
    return {
        "schema": SCHEMA,
        "tunewise": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": base.describe(),
        "task": {
            "name": task.name,
            "source": task.source,
            "kind": task.kind,
            "format": task.format,
            "metric": task.metric,
            "labels": list(task.labels),
            "train": len(task.train),
            "validation": len(cache.validation),
            "test": len(cache.test),
            "available": {"validation": len(task.validation), "test": len(task.test)},
            "window": base.window,
            "fingerprint": task.fingerprint,
            "notes": list(task.notes),
        },
        "retention": {
            "source": held.source,
            "sequences": len(held.sequences),
            "kl_positions": held.kl_tokens,
            "base_nll": held.nll,
            "probe": cache.probe.name if cache.probe is not None else None,
        },
        "budget": asdict(budget),
        "settings": {name: value for name, value in asdict(settings).items() if name != "max_steps"},
        "machine": machine(base),
        "rows": [],
        "verdict": None,
    }


def machine(base: Base) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(terse=True),
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else base.device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "packing": why_not_packed(base) or "padding-free",
    }


def _row(
    technique: Technique,
    cache: Cache,
    budget: Budget,
    settings: TrainSettings,
    trials: Path,
    progress: Progress,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Search, then seeds; the row and its per-example scores averaged over seeds."""

    def run_one(recipe: Technique, seed: int, finish: bool) -> dict[str, Any]:
        trial = Trial(recipe, seed, settings, budget.tokens)
        found = run(
            trial,
            cache,
            trials,
            finish=finish,
            report=lambda what, n, total: progress(recipe.name, what, n, total),
        )
        return {**found, "folder": f"trials/{trial.key(cache)}"}

    searched = []
    recipe = technique
    if technique.trains and budget.search > 1:
        tried = [(candidate, run_one(candidate, 0, False)) for candidate in technique.search(budget.search)]
        searched = [
            {
                "learning_rate": r["learning_rate"],
                "validation_loss": r.get("validation_loss"),
                "reason": r["reason"],
            }
            for _, r in tried
        ]
        recipe = min(tried, key=lambda pair: pair[1].get("validation_loss", float("inf")))[0]
        for candidate, record in tried:
            if candidate != recipe:
                store.remove(trials.parent / record["folder"] / "adaptation")
    seeds = range(budget.seeds) if technique.name != "base" else range(1)
    records = [run_one(recipe, seed, True) for seed in seeds]
    return _summary(technique.name, records, searched, cache)


def _summary(
    name: str, records: list[dict[str, Any]], searched: list[dict[str, Any]], cache: Cache
) -> tuple[dict[str, Any], np.ndarray | None]:
    good = [record for record in records if record["status"] == "ok"]
    first = (good or records)[0]
    row: dict[str, Any] = {
        "technique": name,
        "family": first["family"],
        "label": first.get("label") or name,
        "status": "ok" if len(good) == len(records) else "failed",
        "reason": next((record["reason"] for record in records if record["status"] != "ok"), None),
        "learning_rate": first["learning_rate"],
        "settings": first["settings"],
        "search": searched,
        "seeds": [record["seed"] for record in records],
    }
    if not good:
        return row, None
    table = np.array([record["per_example"] for record in good])
    low, high = interval(table.mean(axis=0))
    each = [record["score"]["mean"] for record in good]
    best = min(good, key=lambda record: record["validation_loss"])
    row |= {
        "score": {
            "metric": cache.task.metric,
            "mean": sum(each) / len(each),
            "low": low,
            "high": high,
            "per_seed": each,
        },
        "others": _mean([record["score"]["others"] for record in good]),
        "nll": float(np.mean([record["nll"] for record in good])),
        "validation_loss": best["validation_loss"],
        "forgetting": _mean([record["forgetting"] for record in good]),
        "cost": _mean([record["cost"] for record in good]),
        "training": first["training"],
        "findings": first.get("findings", {}),
        "test_cut": first["score"]["cut"],
        "adaptation": f"{best['folder']}/adaptation",
    }
    return row, table.mean(axis=0)


def _mean(records: list[dict[str, float]]) -> dict[str, float]:
    means = {key: float(np.mean([record[key] for record in records])) for key in records[0]}
    whole = all(isinstance(value, int) for value in records[0].values())
    return {k: int(v) if whole or k.endswith(("_bytes", "_parameters")) else v for k, v in means.items()}
