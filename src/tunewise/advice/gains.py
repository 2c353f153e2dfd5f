"""A Gaussian model that predicts what each technique gains, from recorded and published comparisons.

**In words.** A technique's gain is the sum of what holds of it everywhere, of it with models of this size, with this
kind of task, with so many examples, and with this very model. What was seen with a model of another size counts less
the further away the size is, and so does what was seen with more or fewer examples. How much less is learned from the
evidence, and so is how much each of the parts varies. Techniques of one family learn from one another; a composition
learns from its parts.

**As equations.** The gain of technique t under the conditions x = (s, n, k), the logarithms to base 10 of the model's
parameters and of the training examples, and the kind of task, is

    g_t(x) = m + f_t(x) + rest       Cov(f_t(x), f_u(x')) = L_tu S(x, x') + [t = u] v_model [same model]
    S(x, x') = v_overall + r(s) (v_size + v_kind [k = k'] + v_data exp(-|n - n'| / l_data))
    r(s) = exp(-|s - s'| / l_size)                   L_tu = z_t . z_u

    in the code
    v_..., l_...  Variances           variances of the parts, and the distances at which a third of them is left
    S + v_model   relation            covariance of one technique's gains under two sets of conditions
    L             likeness            1 for the same technique, `family` for two of the same family, else 0
    z_t           _vector             unit vector with entries for each part's name and for its family
    rest          Variances.rest      variance that nothing explains
    noise         errors              of each observed gain, and `common_error` of all gains of one comparison

The variances are learned by maximising the likelihood of the evidence (`learning.py`). They were learned from the
package's records and publications; the figures are in `variances.json`.

**By hand.** One comparison is known: `lora` gained 0.8 with a model of a million parameters, with a standard deviation
of 0.1. What will it gain with a model of a hundred times the size, all else equal?

>>> from tunewise.advice.features import Conditions
>>> from tunewise.advice.observations import ObservedGains
>>> variances = Variances(
...     overall=0.02, size=0.06, kind=0.0, data=0.0, model=0.0, rest=0.01, size_reach=2.0, data_reach=1.0, family=0.5,
...     mean=0.5, width=1.0
... )
>>> small = Conditions(1e6, 1000, "short answers")
>>> seen = ObservedGains("atlas", "world.notes", "notes", small, {"lora": 0.8}, {"lora": 0.1}, common_error=0.0)
>>> recommender = Recommender((seen,), variances)
>>> large = Conditions(1e8, 1000, "short answers")

1. The relation. The sizes are 2 decades apart: S = 0.02 + exp(-2 / 2) 0.06 = 0.042, and under the same conditions 0.08.

>>> round(recommender.relation(small, large), 3)
0.042

2. The mean. Of the 0.8 - 0.5 = 0.3 that lora gained more than the mean, 0.042 / (0.08 + 0.01 + 0.1^2) = 0.421 are
   expected again: 0.5 + 0.421 x 0.3 = 0.626. Of adalora, of the same family, half of that: 0.563.

>>> belief = recommender.predict(large, ("lora", "adalora", "icl"))
>>> belief.mean.round(3).tolist()
[0.626, 0.563, 0.5]

3. The uncertainty. The variance 0.08 + 0.01 falls by 0.042^2 / 0.1 = 0.018 to 0.072, a standard deviation of 0.269: the
   interval goes from 0.626 - 1.96 x 0.269 = 0.10 up to the best technique's 1.

>>> belief.covariance.diagonal().round(3).tolist()
[0.072, 0.086, 0.09]
>>> [round(value, 2) for value in belief.interval("lora")]
[0.63, 0.1, 1.0]
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from tunewise.advice.features import Conditions
from tunewise.advice.observations import READING, ObservedGains
from tunewise.core import artifact_reader
from tunewise.core.json_record import JsonRecord, NonNegative

_FILE = Path(__file__).parent / "variances.json"
_SAME_MODEL = 0.01  # distance in decades at which a third is left of what holds for one model alone


@dataclass(frozen=True, kw_only=True)
class Variances(JsonRecord):
    """Holds what was learned of how gains vary; the equations are in the module.

    Attributes:
        overall: of what holds of a technique everywhere.
        size: of what holds with models of a size.
        kind: of what holds with a kind of task.
        data: of what holds with a number of examples.
        model: of what holds with one model.
        rest: of what nothing explains.
        size_reach: l_size, in decades.
        data_reach: l_data, in decades.
        family: the correlation of two techniques of one family.
        mean: the gain of a technique of which nothing is known.
        width: factor on predicted variances, so that they are as large as the errors on left-out tasks.
    """

    overall: NonNegative
    size: NonNegative
    kind: NonNegative
    data: NonNegative
    model: NonNegative
    rest: NonNegative
    size_reach: NonNegative
    data_reach: NonNegative
    family: NonNegative
    mean: float
    width: NonNegative

    @property
    def total(self) -> float:
        """Return the variance of what is explained."""
        return self.overall + self.size + self.kind + self.data + self.model


@cache
def learned() -> Variances:
    """Read the variances that were learned from the package's evidence.

    Raises:
        ArtifactError: the package's file is damaged.
    """
    value = artifact_reader.read_json(_FILE, limit_bytes=1 << 16)
    return Variances.from_json(value, _FILE, "is damaged", "install tunewise again")


def keep(variances: Variances) -> None:
    """Write the package's variances; for `benchmarks/advice.py`."""
    rounded = {name: float(f"{value:.3g}") for name, value in asdict(variances).items() if name != "_keys"}
    _FILE.write_text(json.dumps(rounded, indent=1) + "\n", "utf-8")


@dataclass(frozen=True)
class Belief:
    """Holds the expected gains of T techniques before anything is run: mean (T,) and covariance (T, T)."""

    names: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray

    def interval(self, name: str, level: float = 1.96) -> tuple[float, float, float]:
        """Return the mean and the low and high end of one technique's gain; none is above 1.

        Args:
            name: the technique.
            level: half the width in standard deviations; the default gives a 95 % interval.
        """
        index = self.names.index(name)
        half = level * float(np.sqrt(self.covariance[index, index]))
        mean = float(self.mean[index])
        return min(mean, 1.0), mean - half, min(mean + half, 1.0)

    def chances(self, draws: int = 4000) -> dict[str, float]:
        """Return the probability of each technique to be the best of these, by drawing from the belief."""
        samples = np.random.default_rng(0).multivariate_normal(self.mean, self.covariance, draws, method="eigh")
        wins = np.bincount(samples.argmax(axis=1), minlength=len(self.names)) / draws
        return {name: float(share) for name, share in zip(self.names, wins, strict=True)}

    def better(self, one: str, other: str) -> float:
        """Return the probability that one technique gains more than another."""
        i, j = self.names.index(one), self.names.index(other)
        variance = float(self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j])
        deviations = float(self.mean[i] - self.mean[j]) / math.sqrt(max(variance, 1e-12))
        return 0.5 * math.erfc(-deviations / math.sqrt(2))

    def only(self, names: Sequence[str]) -> Belief:
        """Return the belief over these techniques alone."""
        indices = [self.names.index(name) for name in names]
        return Belief(tuple(names), self.mean[indices], self.covariance[np.ix_(indices, indices)])


@dataclass(frozen=True)
class Recommender:
    """Predicts gains from the C observed comparisons, which have N gains of T techniques."""

    observed: tuple[ObservedGains, ...]
    variances: Variances

    def relation(self, one: Conditions, other: Conditions) -> float:
        """Return the covariance of one technique's gains under two sets of conditions."""
        return float(self._relations([one], [other])[0, 0])

    def similarity(self, one: Conditions, other: Conditions) -> float:
        """Return the relation, divided by that of equal conditions: 0 if what holds here says nothing there."""
        return self.relation(one, other) / max(self.variances.total, 1e-12)

    def similarities(self, some: Sequence[Conditions], conditions: Conditions) -> list[float]:
        """Return the similarity of each of some conditions to others."""
        relations = self._relations(some, [conditions])[:, 0] / max(self.variances.total, 1e-12)
        return [float(value) for value in relations]

    def neighbours(self, conditions: Conditions) -> list[tuple[ObservedGains, float]]:
        """Return the observed comparisons with the similarity of their conditions, most similar first."""
        if not self.observed:
            return []
        similarities = self.similarities([gains.conditions for gains in self.observed], conditions)
        pairs = zip(self.observed, similarities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def predict(
        self, conditions: Conditions, techniques: Sequence[str], *, names: Sequence[str] | None = None
    ) -> Belief:
        """Return the belief over the techniques' gains under these conditions, given the observed gains.

        Args:
            conditions: model, data and kind of task.
            techniques: the techniques, by the names of their observed gains.
            names: what the belief calls them; default: the same.
        """
        from scipy.linalg import solve_triangular

        known, count = self._techniques, len(self._techniques)
        between = likeness((*known, *techniques), self.variances.family)
        same = np.array([[one == other for other in known] for one in techniques])  # (techniques, known)
        mean = np.full(len(techniques), self.variances.mean)
        alone = self.variances.model + self.variances.rest
        shared = self.variances.total - self.variances.model
        covariance = between[count:, count:] * shared + alone * np.eye(len(techniques))
        if self.observed:
            comparisons, columns, _ = self._points
            parts = relation_parts(self.variances, [gains.conditions for gains in self.observed], [conditions])
            of_model, shared_with = parts["model"][comparisons, 0], shared_part(parts)[comparisons, 0]  # (N,)
            cross = between[count:][:, columns] * shared_with + same[:, columns] * of_model  # (techniques, N)
            factor, solved = self._solved
            whitened = solve_triangular(factor, cross.T, lower=True)  # (N, techniques)
            mean, covariance = mean + cross @ solved, covariance - whitened.T @ whitened
        return Belief(tuple(names or techniques), mean, covariance * self.variances.width)

    def covariance(self) -> np.ndarray:
        """Return the covariance of the observed gains, with their noise, (N, N)."""
        comparisons, columns, noise = self._points
        conditions = [gains.conditions for gains in self.observed]
        parts, pairs = relation_parts(self.variances, conditions, conditions), np.ix_(comparisons, comparisons)
        explained = shared_part(parts)[pairs] * likeness(self._techniques, self.variances.family)[columns][:, columns]
        explained += parts["model"][pairs] * (columns[:, None] == columns)
        common = np.array([gains.common_error for gains in self.observed])[comparisons] ** 2
        same = comparisons[:, None] == comparisons
        covariance: np.ndarray = explained + same * common + np.diag(self.variances.rest + noise)
        return covariance

    @property
    def residuals(self) -> np.ndarray:
        """Return the observed gains minus the mean, (N,)."""
        return np.array([gain for each in self.observed for gain in each.gains.values()]) - self.variances.mean

    @cached_property
    def _techniques(self) -> tuple[str, ...]:
        return tuple(sorted({name for gains in self.observed for name in gains.gains}))

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """List the observed gains as arrays (N,): comparison, technique, and variance of the error."""
        column = {name: place for place, name in enumerate(self._techniques)}
        places = [
            (number, column[name], gains.errors[name] ** 2)
            for number, gains in enumerate(self.observed)
            for name in gains.gains
        ]
        comparisons, columns, noise = zip(*places, strict=True)
        return np.array(comparisons), np.array(columns), np.array(noise)

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the Cholesky factor of the observed gains' covariance, (N, N), and its inverse times the residuals."""
        from scipy.linalg import cho_solve, cholesky

        factor = cholesky(self.covariance(), lower=True)
        return factor, cho_solve((factor, True), self.residuals)

    def _relations(self, some: Sequence[Conditions], others: Sequence[Conditions]) -> np.ndarray:
        """Return the relation of each pair, (some, others)."""
        parts = relation_parts(self.variances, some, others)
        return shared_part(parts) + parts["model"]


def relation_parts(
    variances: Variances, some: Sequence[Conditions], others: Sequence[Conditions]
) -> Mapping[str, np.ndarray]:
    """Return the parts of the relation of each pair of conditions by their variances' names, each (some, others)."""

    def apart(of: str) -> np.ndarray:
        one, other = (np.log10([getattr(each, of) for each in group]) for group in (some, others))
        distance: np.ndarray = np.abs(one[:, None] - other)
        return distance

    sizes = apart("parameters")
    near = np.exp(-sizes / variances.size_reach)
    same_kind = np.array([[float(one.kind == other.kind) for other in others] for one in some])
    return {
        "overall": np.full_like(near, variances.overall),
        "size": variances.size * near,
        "kind": variances.kind * near * same_kind,
        "data": variances.data * near * np.exp(-apart("train") / variances.data_reach),
        "model": variances.model * np.exp(-sizes / _SAME_MODEL),
    }


def shared_part(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return S: the sum of the parts that techniques like one another share."""
    shared: np.ndarray = parts["overall"] + parts["size"] + parts["kind"] + parts["data"]
    return shared


def likeness(names: Sequence[str], family: float) -> np.ndarray:
    """Return L, (names, names): 1 for the same technique, `family` for two of one family, between for compositions."""
    vectors = [_vector(name, family) for name in names]
    entries = sorted({entry for vector in vectors for entry in vector})
    matrix = np.array([[vector[entry] for entry in entries] for vector in vectors])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    alike: np.ndarray = matrix @ matrix.T
    return alike


def _vector(name: str, family: float) -> Counter[str]:
    """Return z before it is scaled to length 1: sqrt(1 - family) for each part's name, sqrt(family) for its family."""
    from tunewise.techniques.registry import all_techniques

    vector: Counter[str] = Counter()
    for part in name.split("+"):
        technique = all_techniques().get(part.removesuffix(READING))
        kin = technique.family if technique is not None else part
        vector[f"name {part}"] += math.sqrt(1 - family)  # type: ignore[assignment]
        vector[f"family {kin}"] += math.sqrt(family)  # type: ignore[assignment]
    return vector
