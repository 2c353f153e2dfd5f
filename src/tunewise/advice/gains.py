"""What each technique will gain in a situation, from recorded comparisons and published tables: a Gaussian process.

A gain is (score - base) / (best - base) of one comparison: 1 is the best technique's, 0 the unadapted model's.

**In words.** A technique is expected to gain its mean over all tasks, corrected by what the comparisons there are
gained above or below their own means: near comparisons count much, far ones little. How the corrections of different
techniques go together is taken from the records too, so that a technique that was never near learns from one that was.

**As equations.** The gain of technique t in comparison i, whose situation has the features x_i, is

    g_it = m_t + f_t(x_i) + noise       Cov(f_t(x), f_s(x')) = B_ts (a k(x, x') + (1 - a) exp(-d(x, x')^2 / 2 l_0^2))
    k = (1 - c) r(d(x, x'), l) + c r(d_m(x, x'), l_m)                   r(d, l) = 1 / (1 + d^2 / 2 l^2)

    in the code
    m_t    technique_means        a technique's mean over tasks, drawn to the mean of all where few tasks know it
    f_t                           how a situation differs from that mean
    B      technique_covariance   how the f of the techniques go together, drawn to independence where records are few
    d      features.distance      how far apart two situations are
    l      reach                  distance at which r is two thirds
    k      similarity             of two situations
    a      share                  of B that follows the similarity; the rest (l_0) holds for nearly the same situation
    c      model_share            of the similarity that the model alone decides, whatever the task
    d_m    distance(..., MODEL)   how far apart two models are
    noise  errors                 standard deviations of recorded gains, from their intervals
           width                  factor on variances that makes 95 % intervals hold 95 % of what was left out

This is the intrinsic coregionalisation model (Bonilla, Chai & Williams 2007; Alvarez, Rosasco & Lawrence 2012, section
4.2.2) with the rational quadratic kernel r, which falls slowly, and a kernel of the model's features added to it
(Duvenaud, Nickisch & Rasmussen 2011). B is shrunk as by Ledoit & Wolf (2004). l, a, c and the width are chosen by
leaving one task out at a time. Published tables count by how their rows differ from one another: they rarely say where
the unadapted model stood.

**By hand.** One comparison is known, of two techniques: `full` gained 0.2 of the best gain there and `lora` 0.8, each
with a standard deviation of 0.1. What will they gain with a model of ten times the size, all else alike?

>>> from tunewise.advice.features import Features, distance
>>> there = Features(
...     train=1000, generation=0, prompt_tokens=30, answer_tokens=3, parameters=1e6, examples=1000
... )
>>> gains, errors = {"full": 0.2, "lora": 0.8}, {"full": 0.1, "lora": 0.1}
>>> seen = ObservedGains("atlas", "world.notes", "notes", there, gains, errors)
>>> recommender = Recommender((seen,), ("full", "lora"), reach=1.4, share=0.5, model_share=0.0)
>>> here = there.changed(parameters=1e7)

1. The means. A task weighs 0.05 / (0.05 + 0.1^2) = 0.83, and the mean of all techniques, 0.5, weighs 1: for lora
   (0.83 x 0.8 + 1 x 0.5) / 1.83 = 0.636.

>>> recommender.technique_means.round(3).tolist()
[0.364, 0.636]

2. How near. The models are 1 apart, so that k = 1 / (1 + 1 / (2 x 1.4^2)) = 0.797; half of B follows that, and half
   exp(-1 / (2 x 0.5^2)) = 0.135: together 0.466.

>>> distance(there, here), round(recommender.similarity(there, here), 3), round(recommender.correlation(there, here), 3)
(1.0, 0.797, 0.466)

3. The correction. With a single record, B is 0.1 for each technique and nothing between them. lora gained
   0.8 - 0.636 = 0.164 more than its mean, of which 0.1 x 0.466 / (0.1 + 0.1^2) = 0.424 is expected here again:
   0.636 + 0.424 x 0.164 = 0.706.

4. How sure. The variance 0.1 falls by (0.1 x 0.466)^2 / (0.1 + 0.1^2) = 0.020 to 0.080, a standard deviation of 0.283:
   the interval goes from 0.706 - 1.96 x 0.283 = 0.15 up to the best technique's 1.

>>> belief = recommender.predict(here)
>>> belief.mean.round(3).tolist(), belief.covariance.diagonal().round(3).tolist()
([0.294, 0.706], [0.08, 0.08])
>>> [round(value, 2) for value in belief.interval("lora")]
[0.71, 0.15, 1.0]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from tunewise.advice.atlas.published import Table
from tunewise.advice.atlas.schema import Record
from tunewise.advice.features import MODEL, Features, distance

# The values of l, a and c that are tried.
REACHES = (0.7, 1.4, 2.8)
SHARES = (0.2, 0.5, 0.8)
MODEL_SHARES = (0.0, 0.6)
_MODEL_REACH = 0.3  # l_m: a model of twice the size is another one
_SAME_REACH = 0.5  # l_0
_ENOUGH_TASKS = 5  # from which on l, a and c are chosen; fewer leave their defaults
_PAPER_ERROR = 0.1  # standard deviation that a published gain has for being measured otherwise
_LEAST_ERROR = 0.03  # standard deviation of a recorded gain
_MOST_ERROR = 1.0  # standard deviation beyond which a recorded gain says nothing
_GRAND_MEAN_WEIGHT = 1.0  # tasks' worth of weight that the mean of all techniques has in a technique's own
_USUAL_VARIANCE = 0.05  # of a technique's gain from task to task
_LONE_VARIANCE = 0.1  # of each technique where there are too few records to take B of
READING = " over documents"  # what searches documents is another technique where there are none to search


@dataclass(frozen=True)
class ObservedGains:
    """Holds the gains of one comparison or published table by technique, and the standard deviation of each."""

    kind: str  # "atlas" or "paper"
    ref: str
    task: str
    features: Features
    gains: Mapping[str, float]
    errors: Mapping[str, float]


def observed_gains(records: Iterable[Record], tables: Iterable[Table] = ()) -> list[ObservedGains]:
    """Take the gains of records and tables; a record in which nothing is better than the base has none."""
    observed = [_recorded_gains(record) for record in records if record.best[1] > record.base]
    for table in tables:
        if len(table.rows) > 1:
            gains = {name: table.gain(name) for name in table.scored}
            errors = dict.fromkeys(gains, _PAPER_ERROR)
            observed.append(ObservedGains("paper", table.id, table.task, table.features.features(), gains, errors))
    return observed


def _recorded_gains(record: Record) -> ObservedGains:
    """Gains, and their errors from those of the three scores that each is made of."""
    best, best_score = record.best
    gains, errors = dict[str, float](), dict[str, float]()
    for technique in record.scored:
        if technique == "base":
            continue
        gain = record.gain(technique)
        score_error, base_error, best_error = (_deviation(record, name) for name in (technique, "base", best))
        variance = score_error**2 + ((1 - gain) * base_error) ** 2 + (gain * best_error) ** 2
        error = math.sqrt(variance) / (best_score - record.base)
        reads = bool(record.features.documents) and "knowledge" in record.scored[technique].settings
        name = technique + READING if reads else technique
        gains[name], errors[name] = gain, min(max(error, _LEAST_ERROR), _MOST_ERROR)
    return ObservedGains("atlas", record.name, record.task.name, record.features.features(), gains, errors)


def _deviation(record: Record, name: str) -> float:
    score = record.scored[name].score
    assert score is not None, f"the record {record.name} has no score of {name}, which its reading refuses"
    return (score.high - score.low) / 3.92  # a 95 % interval is 2 x 1.96 standard deviations wide


@dataclass(frozen=True)
class Belief:
    """Holds what techniques are expected to gain before anything is run: means (T,) and their covariance (T, T)."""

    names: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray

    def interval(self, name: str, level: float = 1.96) -> tuple[float, float, float]:
        """Return the mean, low and high end of one technique's gain; no gain is above 1, and 95 % is the default."""
        at = self.names.index(name)
        half = level * float(np.sqrt(self.covariance[at, at]))
        mean = float(self.mean[at])
        return min(mean, 1.0), mean - half, min(mean + half, 1.0)

    def chances(self, draws: int = 4000) -> dict[str, float]:
        """Return how likely each technique is the best of these."""
        drawn = np.random.default_rng(0).multivariate_normal(self.mean, self.covariance, draws, method="eigh")
        wins = np.bincount(drawn.argmax(axis=1), minlength=len(self.names)) / draws
        return {name: float(share) for name, share in zip(self.names, wins, strict=True)}

    def only(self, names: Sequence[str]) -> Belief:
        """Return the belief over these techniques alone."""
        at = [self.names.index(name) for name in names]
        return Belief(tuple(names), self.mean[at], self.covariance[np.ix_(at, at)])


@dataclass(frozen=True)
class Recommender:
    """Predicts gains from observed ones.

    Attributes:
        observed: the gains that are known.
        techniques: those that gains are predicted of.
        reading: those of the techniques that search documents where there are some.
        reach: l, the distance that similarity reaches.
        share: a, the share of what is peculiar to a situation that follows similarity.
        model_share: c, the share of similarity that the model alone decides.
        width: what variances are multiplied by.
    """

    observed: tuple[ObservedGains, ...]
    techniques: tuple[str, ...]
    reading: tuple[str, ...] = ()
    reach: float = 1.4
    share: float = 0.5
    model_share: float = 0.0
    width: float = 1.0

    @classmethod
    def fit(
        cls, observed: Sequence[ObservedGains], techniques: Sequence[str], reading: Sequence[str] = ()
    ) -> Recommender:
        """Choose l, a and c so that predictions of tasks left out are nearest to what was measured there."""
        default = cls(tuple(observed), tuple(techniques), tuple(reading))
        tasks = sorted({each.task for each in observed if each.kind == "atlas"})
        if len(tasks) < 2:
            return default
        best = default
        if len(tasks) >= _ENOUGH_TASKS:
            choices = product(REACHES, SHARES, MODEL_SHARES)
            candidates = [replace(default, reach=l, share=a, model_share=c) for l, a, c in choices]  # noqa: E741
            best = min(candidates, key=lambda recommender: recommender.error(tasks))
        return replace(best, width=max(best.surprise(tasks), 1.0))

    def error(self, tasks: Iterable[str]) -> float:
        """Return the mean squared error of predicting tasks left out; tasks count alike, noisy gains less."""
        means = []
        for task in tasks:
            missed, _, noise = self._left_out(task)
            means.append(np.average(missed**2, weights=1 / (_USUAL_VARIANCE + noise)))
        return float(np.mean(means))

    def surprise(self, tasks: Iterable[str]) -> float:
        """Return the squared error over the expected variance: 1 where the model is as sure as it should be."""
        left_out = [self._left_out(task) for task in tasks]
        return float(np.mean([np.mean(missed**2 / (variance + noise)) for missed, variance, noise in left_out]))

    def _left_out(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict the gains of a task without its records: by how much each is missed, its variance, its noise's."""
        ignorant, rows = self.without(task), list[tuple[float, float, float]]()
        for each in self.observed:
            if each.task != task or each.kind != "atlas":
                continue
            belief = ignorant.predict(each.features)
            for name, gain in each.gains.items():
                technique = name.removesuffix(READING)
                if technique in self.techniques and name in self._column_of:
                    at = self.techniques.index(technique)
                    rows.append((gain - belief.mean[at], belief.covariance[at, at], each.errors[name] ** 2))
        missed, variance, noise = np.array(rows).T
        return missed, variance, noise

    def without(self, task: str) -> Recommender:
        """Return the same recommender, knowing nothing of a task."""
        return replace(self, observed=tuple(each for each in self.observed if each.task != task))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the T names that means and covariances are of: the techniques, then those that search documents again.

        The latter stand for what they are where there are documents.
        """
        return (*self.techniques, *(name + READING for name in self.reading))

    @cached_property
    def _column_of(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.columns)}

    @cached_property
    def technique_means(self) -> np.ndarray:
        """Return m, (T,): each task counts once, by how exact its gains are."""
        tasks = sorted({each.task for each in self.observed if each.kind == "atlas"})
        gains = np.zeros((len(tasks), len(self.columns)))
        weights = np.zeros_like(gains)
        for row, task in enumerate(tasks):
            records = [each for each in self.observed if each.task == task and each.kind == "atlas"]
            for name, column in self._column_of.items():
                having = [each for each in records if name in each.gains]
                exactness = np.array([1 / (_USUAL_VARIANCE + each.errors[name] ** 2) for each in having])
                if having:
                    gains[row, column] = float(np.average([each.gains[name] for each in having], weights=exactness))
                    weights[row, column] = exactness.mean() * _USUAL_VARIANCE
        if not weights.any():
            return np.full(len(self.columns), 0.5)
        grand_mean = float(np.average(gains, weights=weights))
        sums = (weights * gains).sum(axis=0) + _GRAND_MEAN_WEIGHT * grand_mean
        means: np.ndarray = sums / (weights.sum(axis=0) + _GRAND_MEAN_WEIGHT)
        return means

    @cached_property
    def technique_covariance(self) -> np.ndarray:
        """Return B, (T, T): how what is peculiar to a comparison goes together over the techniques."""
        records = [each for each in self.observed if each.kind == "atlas"]
        if len(records) < 2:
            return _LONE_VARIANCE * np.eye(len(self.columns))
        peculiar = np.zeros((len(records), len(self.columns)))
        for row, record in zip(peculiar, records, strict=True):
            for name, gain in record.gains.items():
                if name in self._column_of:
                    row[self._column_of[name]] = gain - self.technique_means[self._column_of[name]]
        from sklearn.covariance import ledoit_wolf

        shrunk, _ = ledoit_wolf(peculiar, assume_centered=True)
        covariance = np.asarray(shrunk) + 1e-4 * np.eye(len(self.columns))
        new = [at for name, at in self._column_of.items() if not any(name in record.gains for record in records)]
        if len(new) < len(self.columns):  # what no comparison has may be as peculiar as the others are
            usual = float(np.delete(covariance.diagonal(), new).mean())
            covariance[new, :] = covariance[:, new] = 0.0
            covariance[new, new] = usual
        return covariance

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Lay out the N known gains: of each its comparison, its column, what it is above m, its noise's variance."""
        comparisons, columns, residuals, noise = list[int](), list[int](), list[float](), list[float]()
        for number, each in enumerate(self.observed):
            names = [name for name in each.gains if name in self._column_of]
            at = [self._column_of[name] for name in names]
            residual = np.array([each.gains[name] for name in names]) - self.technique_means[at]
            if each.kind == "paper":  # where the unadapted model stood is not known: only differences count
                residual = residual - residual.mean() if len(names) > 1 else np.zeros(len(names))
            comparisons += [number] * len(names)
            columns += at
            residuals += residual.tolist()
            noise += [each.errors[name] ** 2 for name in names]
        return np.array(comparisons, int), np.array(columns, int), np.array(residuals), np.array(noise)

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the Cholesky factor of the known gains' covariance, (N, N), and its inverse times the residuals."""
        from scipy.linalg import cho_solve, cholesky

        comparisons, columns, residuals, noise = self._points
        related = np.array(
            [[self.correlation(a.features, b.features) for b in self.observed] for a in self.observed]
        )  # (comparisons, comparisons)
        between_techniques = self.technique_covariance[np.ix_(columns, columns)]  # (N, N)
        covariance = related[np.ix_(comparisons, comparisons)] * between_techniques + np.diag(noise)
        factor = cholesky(covariance, lower=True)
        return factor, cho_solve((factor, True), residuals)

    def correlation(self, one: Features, other: Features) -> float:
        """Return how much of what is peculiar to one situation holds for another: the factor of B in the equations."""
        same = math.exp(-0.5 * (distance(one, other) / _SAME_REACH) ** 2)
        return self.share * self.similarity(one, other) + (1 - self.share) * same

    def similarity(self, one: Features, other: Features) -> float:
        """Return k: how much two situations have in common, 1 for the same, 0 for strangers."""
        whole = _rational_quadratic(distance(one, other), self.reach)
        models = _rational_quadratic(distance(one, other, MODEL), _MODEL_REACH)
        return (1 - self.model_share) * whole + self.model_share * models

    def neighbours(self, features: Features) -> list[tuple[ObservedGains, float]]:
        """Return what was observed with its similarity to a situation, nearest first."""
        pairs = [(each, self.similarity(each.features, features)) for each in self.observed]
        return sorted(pairs, key=lambda pair: -pair[1])

    def predict(self, features: Features) -> Belief:
        """Return what the techniques will gain in a situation: the mean and the covariance, given what was observed."""
        from scipy.linalg import solve_triangular

        comparisons, columns, _, _ = self._points
        names = [name + READING if features.documents and name in self.reading else name for name in self.techniques]
        at = [self._column_of[name] for name in names]
        mean, covariance = self.technique_means[at], self.technique_covariance[np.ix_(at, at)]
        if not len(comparisons):
            return Belief(self.techniques, mean, covariance * self.width)
        factor, solved = self._solved
        related = np.array([self.correlation(each.features, features) for each in self.observed])
        cross = self.technique_covariance[at][:, columns] * related[comparisons]  # (techniques, N)
        whitened = solve_triangular(factor, cross.T, lower=True)  # (N, techniques)
        return Belief(self.techniques, mean + cross @ solved, (covariance - whitened.T @ whitened) * self.width)


def _rational_quadratic(distance: float, reach: float) -> float:
    """1 / (1 + d^2 / 2 l^2)."""
    return 1 / (1 + 0.5 * (distance / reach) ** 2)
