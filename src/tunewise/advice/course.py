"""The course of a comparison that follows advice: what to run next, what to leave out and why, and when to stop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewise.advice.advise import check_candidates, features_of
from tunewise.advice.evidence import Evidence
from tunewise.advice.forecast import forecasts
from tunewise.advice.gains import Belief
from tunewise.advice.question import Question, Situation
from tunewise.advice.rules import refusal
from tunewise.advice.stopping import Seen, move
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.results.needs import Need
from tunewise.results.schema import AdviceFollowed, ExpectedGain, Row, ScoredRow

if TYPE_CHECKING:
    from tunewise.data.task import Task
    from tunewise.engine.model import Base

SCHEMA = 1
_FILE = "advice.json"
_CERTAIN = ("mergeable", "swappable")  # needs that are facts of a technique


@dataclass
class Course:
    """What advice expected before anything ran, and the order that came of it as rows finished.

    Attributes:
        belief: over the gains of the techniques, the base not among them.
        costs: seconds of each as a share of the usual technique's.
        refused: techniques that are out of the question, with the reason.
        order: what was run, in turn.
        chance: of what was left to beat the leader, at the last move.
    """

    belief: Belief
    costs: Mapping[str, float]
    refused: Mapping[str, str]
    order: list[str] = field(default_factory=list)
    chance: float = 1.0

    @classmethod
    def open(
        cls,
        base: Base,
        task: Task,
        recipes: Sequence[Technique],
        folder: Path,
        *,
        knowledge: str | None,
        examples: float,
        needs: Sequence[str] = (),
    ) -> Course:
        """The course of a comparison; that which was begun in its folder goes on with the same expectations.

        Args:
            base: the model, bare.
            task: the data.
            recipes: what may be run.
            folder: the comparison's.
            knowledge: where documents are.
            examples: training examples that a trial sees.
            needs: what the recommended row must have; what certainly lacks it is not run.
        """
        names = sorted(recipe.name for recipe in recipes)
        identity = [base.fingerprint, task.fingerprint, names, knowledge, examples, sorted(needs)]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        path = folder / _FILE
        if path.is_file():
            kept = artifact_writer.read_json(path)
            if kept.get("schema") == SCHEMA and kept.get("key") == key:
                return cls._read(kept, path)
        refused, swappable = check_candidates(base, task, recipes)
        candidates = {recipe.name: recipe for recipe in recipes}
        evidence = Evidence.collect(candidates, refused=refused, swappable=swappable)
        certain = tuple(need for need in needs if Need.read(need).quantity in _CERTAIN)
        features = features_of(base, task, knowledge=knowledge, examples=examples)
        situation = Situation(features, Question(needs=certain))
        expected = forecasts(evidence, situation)
        reasons = {name: refusal(forecast, situation) for name, forecast in expected.items()}
        course = cls(
            evidence.recommender.predict(features),
            {name: forecast.seconds for name, forecast in expected.items()},
            {name: reason.text for name, reason in reasons.items() if reason is not None},
        )
        artifact_writer.write_json(path, {"schema": SCHEMA, "key": key, **course._written()})
        return course

    def _written(self) -> dict[str, Any]:
        return {
            "techniques": list(self.belief.names),
            "mean": self.belief.mean.tolist(),
            "covariance": self.belief.covariance.tolist(),
            "costs": dict(self.costs),
            "refused": dict(self.refused),
        }

    @classmethod
    def _read(cls, kept: Mapping[str, Any], path: Path) -> Course:
        try:
            names = tuple(map(str, kept["techniques"]))
            mean = np.asarray(kept["mean"], dtype=float).reshape(len(names))
            covariance = np.asarray(kept["covariance"], dtype=float).reshape(len(names), len(names))
            costs = {name: float(kept["costs"][name]) for name in names}
            refused = {str(name): str(reason) for name, reason in kept["refused"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path}: not as tunewise writes it ({error!r}); remove it") from error
        return cls(Belief(names, mean, covariance), costs, refused)

    def turns(
        self, techniques: Sequence[Technique], rows: Sequence[Row]
    ) -> Iterator[tuple[Technique, int, str | None]]:
        """Each technique once, with how many are left with it and, where it is not to be run, the reason.

        `rows` are the comparison's, which grow between the turns.
        """
        left = {technique.name: technique for technique in techniques}
        if "base" in left:
            yield self._taken("base", left)
        for name in [name for name in left if name in self.refused]:
            yield left.pop(name), 0, f"not advised: {self.refused[name]}"
        while left:
            finished = [row for row in rows if isinstance(row, ScoredRow) and row.status == "ok"]
            seen = {row.technique: Seen(row.score.mean, row.score.low, row.score.high) for row in finished}
            if "base" not in seen:  # gains have no start: nothing is foreseen
                yield self._taken(next(iter(left)), left)
                continue
            step = move(self.belief, self.costs, seen, list(left))
            self.chance = step.chance
            if step.next is not None:
                yield self._taken(step.next, left)
                continue
            leader = max(seen, key=lambda name: seen[name].mean)
            for name in list(left):
                yield left.pop(name), 0, _reason(leader, step.chances[name])

    def _taken(self, name: str, left: dict[str, Technique]) -> tuple[Technique, int, None]:
        self.order.append(name)
        count = len(left)
        return left.pop(name), count, None

    def followed(self) -> AdviceFollowed:
        """What is kept of it in `compare.json`."""
        expected = {}
        for name in self.belief.names:
            mean, low, high = self.belief.interval(name)
            expected[name] = ExpectedGain(mean=mean, low=low, high=high)
        return AdviceFollowed(order=tuple(self.order), chance=self.chance, expected=expected)


def _reason(leader: str, chance: float) -> str:
    return f"not advised: the chance that it beats {leader} by more than the test can tell is {chance:.1%}"
