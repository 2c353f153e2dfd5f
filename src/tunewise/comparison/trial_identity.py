"""Says what a trial is: a recipe, a seed and training settings, and the name of its folder, which covers all of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from tunewise.comparison.context import ComparisonContext
from tunewise.contract.technique import Technique
from tunewise.fitting.settings import TrainSettings
from tunewise.results.schema import TrialIdentity


@dataclass(frozen=True)
class Trial:
    """Holds what to run: a recipe, a seed and training settings; `key` covers all that its result depends on.

    Attributes:
        technique: the recipe.
        seed: everything random follows from it.
        settings: how it is trained.
        tokens: training tokens; overrides `settings.max_steps`.
        share: the share of the steps or tokens that is trained; less than 1 is a stage of a search.
    """

    technique: Technique
    seed: int
    settings: TrainSettings
    tokens: int | None = None
    share: float = 1.0

    def key(self, context: ComparisonContext) -> str:
        """Return its folder name: technique, seed, and a hash of base, task, samples, recipe and training settings."""
        facts = {
            "base": context.base.fingerprint,
            "window": context.base.window,
            "task": context.task.fingerprint,
            "metric": context.task.metric,
            "samples": [len(context.validation), len(context.test)],
            "technique": self.technique.to_json(),
            "settings": self.settings.to_json() if self.technique.trains else None,
            "tokens": self.tokens,
            "retention": context.retention.fingerprint if context.retention is not None else None,
            "seed": self.seed,
        }
        if self.technique.chooses and not self.technique.trains:
            facts["allowance"] = [self.settings.max_steps, self.settings.rows]
        if files := self.technique.files_fingerprint(context.task):
            facts["files"] = files
        if context.task.label_list is not None:
            facts["label_list"] = context.task.label_list
        if self.settings.rehearses:
            facts["remembered"] = context.remembered
        if context.probe is not None:
            facts["probe"] = context.probe.fingerprint
        if self.share < 1:
            facts["share"] = self.share
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{self.technique.name}-seed{self.seed}-{digest[:12]}"


def identity_of(trial: Trial, *, with_trains: bool = False) -> TrialIdentity:
    """Return what the record of a trial begins with; `with_trains` is for the process that supervises its worker."""
    return TrialIdentity(
        **trial.technique.to_json(),
        family=trial.technique.family,
        seed=trial.seed,
        learning_rate=getattr(trial.technique, "learning_rate", None),
        trains=trial.technique.trains if with_trains else None,
    )
