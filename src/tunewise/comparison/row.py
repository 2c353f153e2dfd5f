"""One row of a comparison: a technique's search within its allowance, then its seeds."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunewise.comparison.budget import Budget, Clock
from tunewise.comparison.context import Cache
from tunewise.comparison.search import find
from tunewise.comparison.trial import Trial, run
from tunewise.contract.technique import Technique
from tunewise.core.progress import RowProgress, for_row
from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True)
class Runs:
    """Runs trials and makes rows of them."""

    cache: Cache
    budget: Budget
    settings: TrainSettings
    trials: Path
    held: Collection[str]
    progress: RowProgress
    clock: Clock | None

    def row(self, technique: Technique, rows_left: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Search, then seeds; the row, and the records of the seeds that finished."""
        if self.clock is None:
            return self.row_of(technique)
        if self.clock.left <= 0:
            return skipped(technique, f"the {self.budget.minutes:g} minutes were over"), []
        runs = self._timed(self.clock, technique, rows_left) if technique.trains else self
        begun = time.perf_counter()
        row, records = runs.row_of(technique)
        beside = time.perf_counter() - begun - row["spent"]["trial_seconds"] - row["spent"]["search_seconds"]
        self.clock.scoring = max(self.clock.scoring, beside / max(len(records), 1))
        return row, records

    def _timed(self, clock: Clock, technique: Technique, rows_left: int) -> Runs:
        """The same with the steps that this technique's share of the time is good for."""
        self.progress(technique.name, "timing its steps", 0, 0)
        trials = self.budget.search + self.budget.seeds - 1
        try:
            steps = clock.steps(technique, self.cache, self.settings, rows_left, trials)
        except Exception:  # what cannot be timed cannot be trained: its trial will say why in its row
            return self
        return replace(self, settings=replace(self.settings, max_steps=steps))

    def row_of(self, technique: Technique) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The row within the settings' steps."""
        recipe, searched = find(technique, self.budget.search, self._stage, self.held)
        seeds = range(self.budget.seeds if technique.seeded else 1)
        records = [self._run(recipe, seed, None) for seed in seeds]
        good = [record for record in records if record["status"] == "ok"]
        row = _summary(technique.name, records, searched, self.cache)
        lost = [tried for tried in searched if not tried["won"]]
        row["spent"] = {
            "search_tokens": sum(tried.get("tokens", 0) for tried in lost),
            "search_seconds": sum(tried.get("seconds", 0.0) for tried in lost),
            "trial_tokens": sum(record["training"]["tokens"] for record in good),
            "trial_seconds": sum(record["cost"]["train_seconds"] for record in good),
            "seconds": sum(each.get("seconds", 0.0) for each in (*searched, *records)),
        }
        return row, good

    def _run(self, recipe: Technique, seed: int, until: float | None) -> dict[str, Any]:
        trial = Trial(recipe, seed, self.settings, self.budget.tokens)
        found = run(
            trial,
            self.cache,
            self.trials,
            finish=until is None,
            until=until,
            report=for_row(self.progress, recipe.name),
        )
        return {**found, "folder": f"trials/{trial.key(self.cache)}"}

    def _stage(self, recipe: Technique, share: float) -> dict[str, Any]:
        record = self._run(recipe, 0, share)
        if record["status"] != "ok":
            return {"reason": record["reason"], "validation_loss": None}
        whole = {"validation_loss": record.get("validation_loss"), "steps": record.get("training", {}).get("steps")}
        return {**record.get("stage", whole), "reason": None}


def skipped(technique: Technique, reason: str) -> dict[str, Any]:
    """The row of a technique that is not run."""
    return {
        **technique.to_json(),
        "family": technique.family,
        "label": technique.name,
        "status": "skipped",
        "reason": reason,
        "learning_rate": None,
        "search": [],
        "seeds": [],
    }


def _summary(name: str, records: list[dict[str, Any]], searched: list[dict[str, Any]], cache: Cache) -> dict[str, Any]:
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
        return row
    each = [record["score"]["mean"] for record in good]
    best = min(good, key=lambda record: record["validation_loss"])
    return row | {
        "score": {
            "metric": cache.task.metric,
            "mean": sum(each) / len(each),
            "per_seed": each,
        },
        "others": _mean([record["score"]["others"] for record in good]),
        "nll": float(np.mean([record["nll"] for record in good])),
        "validation_loss": best["validation_loss"],
        "forgetting": _mean([record["forgetting"] for record in good]),
        "cost": _mean([record["cost"] for record in good]),
        "training": first["training"],
        "curve": best["curve"],
        "memory": next((record["memory"] for record in good if "memory" in record), None),
        "findings": first.get("findings", {}),
        "test_cut": first["score"]["cut"],
        "adaptation": f"{best['folder']}/adaptation",
    }


def _mean(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of numbers; facts are those of the first."""
    first = records[0]
    means = {
        key: value if isinstance(value, bool) else float(np.mean([record[key] for record in records]))
        for key, value in first.items()
        if all(key in record for record in records)
    }
    whole = all(isinstance(value, int) for value in first.values())
    return {k: int(v) if whole or k.endswith(("_bytes", "_parameters")) else v for k, v in means.items()}
