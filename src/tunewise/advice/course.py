"""The order of a comparison that follows advice: what to run next, what to skip and why, and when to stop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewise.advice.advise import check_candidates, features_of
from tunewise.advice.evidence import Evidence
from tunewise.advice.forecast import forecasts
from tunewise.advice.gains import Belief
from tunewise.advice.question import Question, Situation
from tunewise.advice.rules import refusal
from tunewise.advice.stopping import Seen, likely_moves, move
from tunewise.contract.technique import Technique
from tunewise.core import sealed_json
from tunewise.core.errors import ArtifactError
from tunewise.results.needs import Need
from tunewise.results.schema import AdviceFollowed, ExpectedGain, Row, ScoredRow

if TYPE_CHECKING:
    from tunewise.data.task import Task
    from tunewise.engine.model import Base

SCHEMA = 1
_FILE = "advice.json"
_CERTAIN = ("mergeable", "swappable")  # needs that are known of a technique without running it


@dataclass
class Course:
    """Chooses the next technique of a comparison from what was expected before anything ran and the finished rows.

    Attributes:
        belief: the expected gains of the techniques without the base.
        costs: seconds of each technique's row, divided by those of a typical row.
        refused: techniques that are ruled out, with the reason.
        order: the techniques that were run, in their order.
        chance: the probability, at the last move, that a remaining technique beats the leader.
    """

    belief: Belief
    costs: Mapping[str, float]
    refused: Mapping[str, str]
    order: list[str] = field(default_factory=list)
    chance: float = 1.0
    _remaining: dict[str, Technique] = field(default_factory=dict, init=False, repr=False)

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
        """Open the course of a comparison; one that was begun in the folder continues with the same expectations.

        Args:
            base: the model, bare.
            task: the data.
            recipes: the techniques that may be run.
            folder: the folder of the comparison.
            knowledge: folder, file or address of the documents.
            examples: training examples that one trial sees.
            needs: what the recommended row must meet; techniques that certainly do not are not run.
        """
        names = sorted(recipe.name for recipe in recipes)
        identity = [base.fingerprint, task.fingerprint, names, knowledge, examples, sorted(needs)]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        path = folder / _FILE
        begun = sealed_json.read_or_set_aside(
            path, lambda state: cls._begun(state, key, path), "what to expect is worked out again"
        )
        if begun is not None:
            return begun
        candidates = {recipe.name: recipe for recipe in recipes}
        evidence = Evidence.collect(candidates)
        certain = tuple(need for need in needs if Need.read(need).quantity in _CERTAIN)
        # What records say of swapping need not be tried; what does not attach is a failed row, which costs nothing.
        unknown = [recipe for recipe in recipes if "swappable" in certain and not evidence.is_recorded(recipe.name)]
        lacking = {recipe.name: recipe.lacks(base, task) for recipe in recipes if recipe not in unknown}
        refused, swappable = check_candidates(base, task, unknown)
        refused |= {name: reason for name, reason in lacking.items() if reason}
        evidence = replace(evidence, refused=refused, swappable=swappable)
        features = features_of(base, task, knowledge=knowledge, examples=examples, with_loss=False)
        situation = Situation(features, Question(needs=certain))
        expected = forecasts(evidence, situation)
        reasons = {name: refusal(forecast, situation) for name, forecast in expected.items()}
        course = cls(
            evidence.predict(features),
            {name: forecast.seconds for name, forecast in expected.items()},
            {name: reason.text for name, reason in reasons.items() if reason is not None},
        )
        sealed_json.write(path, {"schema": SCHEMA, "key": key, **course._to_json()})
        return course

    def _to_json(self) -> dict[str, object]:
        return {
            "techniques": list(self.belief.names),
            "mean": self.belief.mean.tolist(),
            "covariance": self.belief.covariance.tolist(),
            "costs": dict(self.costs),
            "refused": dict(self.refused),
        }

    @classmethod
    def _begun(cls, state: Mapping[str, Any], key: str, path: Path) -> Course | None:
        """Read a begun course; None if it is another one's."""
        if state.get("schema") != SCHEMA or state.get("key") != key:
            return None
        try:
            names = tuple(map(str, state["techniques"]))
            mean = np.asarray(state["mean"], dtype=float).reshape(len(names))
            covariance = np.asarray(state["covariance"], dtype=float).reshape(len(names), len(names))
            costs = {name: float(state["costs"][name]) for name in names}
            refused = {str(name): str(reason) for name, reason in state["refused"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path}: is not as tunewise writes it ({error!r})") from error
        return cls(Belief(names, mean, covariance), costs, refused)

    def turns(
        self, techniques: Sequence[Technique], rows: Sequence[Row]
    ) -> Iterator[tuple[Technique, int, str | None]]:
        """Yield each technique once, in the order in which it is to be run or skipped.

        Args:
            techniques: the techniques of the comparison.
            rows: the comparison's rows, which grow between the turns.

        Yields:
            The technique, how many remain including it (0 if it is skipped), and why it is skipped (None if it runs).
        """
        self._remaining = remaining = {technique.name: technique for technique in techniques}
        if "base" in remaining:
            yield self._take("base", remaining)
        for name in [name for name in remaining if name in self.refused]:
            yield remaining.pop(name), 0, f"not advised: {self.refused[name]}"
        while remaining:
            scores = _scores(rows)
            if "base" not in scores:  # gains are measured from the base: without its score nothing is predicted
                yield self._take(next(iter(remaining)), remaining)
                continue
            step = move(self.belief, self.costs, scores, list(remaining))
            self.chance = step.chance
            if step.next is not None:
                yield self._take(step.next, remaining)
                continue
            leader = max(scores, key=lambda name: scores[name].mean)
            for name in list(remaining):
                yield remaining.pop(name), 0, _skip_reason(leader, step.chances[name])

    def likely_next(self, technique: Technique, rows: Sequence[Row], count: int) -> list[Technique]:
        """Return up to `count` techniques that are likely to be run after the one whose turn it is.

        Args:
            technique: the one whose turn it is.
            rows: the rows that are over.
            count: how many are wanted.
        """
        scores = _scores(rows)
        names = [name for name in self._remaining if name in self.belief.names]
        if "base" not in scores or technique.name not in self.belief.names:
            return []
        likely = likely_moves(self.belief, self.costs, scores, technique.name, names, count)
        return [self._remaining[name] for name in likely]

    def _take(self, name: str, remaining: dict[str, Technique]) -> tuple[Technique, int, None]:
        self.order.append(name)
        count = len(remaining)
        return remaining.pop(name), count, None

    def followed(self) -> AdviceFollowed:
        """Return the record of the course that `compare.json` keeps."""
        expected = {}
        for name in self.belief.names:
            mean, low, high = self.belief.interval(name)
            expected[name] = ExpectedGain(mean=mean, low=low, high=high)
        return AdviceFollowed(order=tuple(self.order), chance=self.chance, expected=expected)


def _scores(rows: Sequence[Row]) -> dict[str, Seen]:
    """Return the scores of the rows that finished."""
    finished = [row for row in rows if isinstance(row, ScoredRow) and row.status == "ok"]
    return {row.technique: Seen(row.score.mean, row.score.low, row.score.high) for row in finished}


def _skip_reason(leader: str, chance: float) -> str:
    return f"not advised: the chance that it beats {leader} by more than the test can tell is {chance:.1%}"
