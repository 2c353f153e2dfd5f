"""A Gaussian process that predicts what each technique gains in a situation, from recorded and published scores.

The gain of a technique in a comparison is (score - base) / (best - base): 1 for the best, 0 for the unadapted model.

**In words.** A technique is expected to gain its mean over all tasks, corrected by how far the gains of recorded
comparisons were above or below their means: similar comparisons count much, others little. How the corrections of
different techniques correlate is estimated from the records too, so that a technique without a similar record learns
from one that has one.

**As equations.** The gain of technique t in comparison i, whose situation has the features x_i, is

    g_it = m_t + f_t(x_i) + noise       Cov(f_t(x), f_s(x')) = B_ts (a k(x, x') + (1 - a) exp(-d(x, x')^2 / 2 l_0^2))
    k = (1 - c) r(d(x, x'), l) + c r(d_m(x, x'), l_m)                   r(d, l) = 1 / (1 + d^2 / 2 l^2)

    in the code
    m_t    technique_means        a technique's mean over tasks, shrunk to the mean of all if few tasks have it
    f_t                           how far the gain in a situation is from that mean
    B      technique_covariance   covariance of the f of the techniques, shrunk to independence if records are few
    d      features.distance      how far apart two situations are
    l      reach                  length scale: the distance at which r is two thirds
    k      similarity             similarity of two situations
    a      share                  share of B that follows k; the rest (l_0) holds for nearly the same situation only
    c      model_share            share of k that depends on the model alone, whatever the task
    d_m    distance(..., MODEL)   how far apart two models are
    noise  errors                 standard deviations of recorded gains, from their intervals
           width                  factor on variances, so that 95 % intervals contain 95 % of left-out gains

This is the intrinsic coregionalisation model (Bonilla, Chai & Williams 2007; Alvarez, Rosasco & Lawrence 2012, section
4.2.2) with the rational quadratic kernel r, which falls slowly, and a kernel of the model's features added to it
(Duvenaud, Nickisch & Rasmussen 2011). B is shrunk as by Ledoit & Wolf (2004). l, a, c and the width are chosen by
leaving one task out at a time. Published tables count only by how their rows differ from one another: they rarely give
the unadapted model's score.

**By hand.** One comparison is known, of two techniques: `full` gained 0.2 of the best gain there and `lora` 0.8, each
with a standard deviation of 0.1. What will they gain with a model of ten times the size, all else equal?

>>> from tunewise.advice.features import Features, distance
>>> recorded = Features(
...     train=1000, generation=0, prompt_tokens=30, answer_tokens=3, parameters=1e6, examples=1000
... )
>>> gains, errors = {"full": 0.2, "lora": 0.8}, {"full": 0.1, "lora": 0.1}
>>> observed = ObservedGains("atlas", "world.notes", "notes", recorded, gains, errors)
>>> recommender = Recommender((observed,), ("full", "lora"), reach=1.4, share=0.5, model_share=0.0)
>>> larger = recorded.changed(parameters=1e7)

1. The means. A task weighs 0.05 / (0.05 + 0.1^2) = 0.83, and the mean of all techniques, 0.5, weighs 1: for lora
   (0.83 x 0.8 + 1 x 0.5) / 1.83 = 0.636.

>>> recommender.technique_means.round(3).tolist()
[0.364, 0.636]

2. The similarity. The models are 1 apart, so that k = 1 / (1 + 1 / (2 x 1.4^2)) = 0.797; half of B follows that, and
   half exp(-1 / (2 x 0.5^2)) = 0.135: together 0.466.

>>> distance(recorded, larger), round(recommender.similarity(recorded, larger), 3)
(1.0, 0.797)
>>> round(recommender.correlation(recorded, larger), 3)
0.466

3. The correction. With a single record, B is 0.1 on the diagonal and 0 elsewhere. lora gained 0.8 - 0.636 = 0.164
   more than its mean, of which a share of 0.1 x 0.466 / (0.1 + 0.1^2) = 0.424 is expected again:
   0.636 + 0.424 x 0.164 = 0.706.

4. The uncertainty. The variance 0.1 falls by (0.1 x 0.466)^2 / (0.1 + 0.1^2) = 0.020 to 0.080, a standard deviation of
   0.283: the interval goes from 0.706 - 1.96 x 0.283 = 0.15 up to the best technique's 1.

>>> belief = recommender.predict(larger)
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

# The values of l, a and c that `Recommender.fit` tries.
REACHES = (0.7, 1.4, 2.8)
SHARES = (0.2, 0.5, 0.8)
MODEL_SHARES = (0.0, 0.6)
_MODEL_REACH = 0.3  # l_m: a model of twice the size counts as a different one
_SAME_REACH = 0.5  # l_0
_ENOUGH_TASKS = 5  # with fewer tasks, l, a and c keep their defaults
_PAPER_ERROR = 0.1  # standard deviation of a published gain, which other code measured in another way
_LEAST_ERROR = 0.03  # lower bound of a recorded gain's standard deviation
_MOST_ERROR = 1.0  # upper bound of it, at which a recorded gain says almost nothing
_GRAND_MEAN_WEIGHT = 1.0  # weight, in tasks, of the mean of all techniques in the mean of one
_USUAL_VARIANCE = 0.05  # typical variance of a technique's gain from task to task
_LONE_VARIANCE = 0.1  # diagonal of B if there are too few records to estimate it
READING = " over documents"  # suffix: with documents to search, a technique counts as a different one


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
    """Compute the gains of records and tables; records in which nothing is better than the base are left out."""
    observed = [_recorded_gains(record) for record in records if record.best[1] > record.base]
    for table in tables:
        if len(table.rows) > 1:
            gains = {name: table.gain(name) for name in table.scored}
            errors = dict.fromkeys(gains, _PAPER_ERROR)
            observed.append(ObservedGains("paper", table.id, table.task, table.features.features(), gains, errors))
    return observed


def _recorded_gains(record: Record) -> ObservedGains:
    """Compute the gains of a record, and their errors by propagating those of the scores, the base and the best."""
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
    assert score is not None, f"the record {record.name} has no score of {name}, which reading it refuses"
    return (score.high - score.low) / 3.92  # a 95 % interval is 2 x 1.96 standard deviations wide


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

    def only(self, names: Sequence[str]) -> Belief:
        """Return the belief over these techniques alone."""
        indices = [self.names.index(name) for name in names]
        return Belief(tuple(names), self.mean[indices], self.covariance[np.ix_(indices, indices)])


@dataclass(frozen=True)
class Recommender:
    """Predicts gains from observed ones.

    Attributes:
        observed: the gains of records and published tables.
        techniques: the techniques whose gains are predicted.
        reading: the techniques that search documents if there are any.
        reach: l, the length scale of the similarity.
        share: a, the share of the deviations from the means that follows the similarity.
        model_share: c, the share of the similarity that depends on the model alone.
        width: the factor on variances.
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
        """Choose l, a and c so that left-out tasks are predicted with the least squared error, and fit the width."""
        default = cls(tuple(observed), tuple(techniques), tuple(reading))
        tasks = sorted({comparison.task for comparison in observed if comparison.kind == "atlas"})
        if len(tasks) < 2:
            return default
        best = default
        if len(tasks) >= _ENOUGH_TASKS:
            choices = product(REACHES, SHARES, MODEL_SHARES)
            candidates = [replace(default, reach=l, share=a, model_share=c) for l, a, c in choices]  # noqa: E741
            best = min(candidates, key=lambda recommender: recommender.error(tasks))
        return replace(best, width=max(best.surprise(tasks), 1.0))

    def error(self, tasks: Iterable[str]) -> float:
        """Return the mean squared error of predicting left-out tasks; every task counts the same, noisy gains less."""
        means = []
        for task in tasks:
            errors, _, noise = self._left_out(task)
            means.append(np.average(errors**2, weights=1 / (_USUAL_VARIANCE + noise)))
        return float(np.mean(means))

    def surprise(self, tasks: Iterable[str]) -> float:
        """Return the mean of squared error / expected variance: 1 if the predicted variances are right."""
        left_out = [self._left_out(task) for task in tasks]
        return float(np.mean([np.mean(errors**2 / (variance + noise)) for errors, variance, noise in left_out]))

    def _left_out(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict a task's gains without its records: the errors, the predicted variances and those of the noise."""
        other_tasks, rows = self.without(task), list[tuple[float, float, float]]()
        for comparison in self.observed:
            if comparison.task != task or comparison.kind != "atlas":
                continue
            belief = other_tasks.predict(comparison.features)
            for name, gain in comparison.gains.items():
                technique = name.removesuffix(READING)
                if technique in self.techniques and name in self._column_of:
                    index = self.techniques.index(technique)
                    variance = belief.covariance[index, index]
                    rows.append((gain - belief.mean[index], variance, comparison.errors[name] ** 2))
        errors, variances, noise = np.array(rows).T
        return errors, variances, noise

    def without(self, task: str) -> Recommender:
        """Return the same recommender without what was observed on a task."""
        return replace(self, observed=tuple(gains for gains in self.observed if gains.task != task))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the T columns: the techniques, then those that search documents once more.

        The second column of a technique that searches documents is for situations with documents.
        """
        return (*self.techniques, *(name + READING for name in self.reading))

    @cached_property
    def _column_of(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.columns)}

    @cached_property
    def technique_means(self) -> np.ndarray:
        """Return m, (T,): each task counts once, weighted by the precision of its gains."""
        tasks = sorted({comparison.task for comparison in self.observed if comparison.kind == "atlas"})
        gains = np.zeros((len(tasks), len(self.columns)))
        weights = np.zeros_like(gains)
        for row, task in enumerate(tasks):
            records = [record for record in self.observed if record.task == task and record.kind == "atlas"]
            for name, column in self._column_of.items():
                having = [record for record in records if name in record.gains]
                precision = np.array([1 / (_USUAL_VARIANCE + record.errors[name] ** 2) for record in having])
                if having:
                    gains[row, column] = float(np.average([record.gains[name] for record in having], weights=precision))
                    weights[row, column] = precision.mean() * _USUAL_VARIANCE
        if not weights.any():
            return np.full(len(self.columns), 0.5)
        grand_mean = float(np.average(gains, weights=weights))
        sums = (weights * gains).sum(axis=0) + _GRAND_MEAN_WEIGHT * grand_mean
        means: np.ndarray = sums / (weights.sum(axis=0) + _GRAND_MEAN_WEIGHT)
        return means

    @cached_property
    def technique_covariance(self) -> np.ndarray:
        """Return B, (T, T): the covariance over techniques of a comparison's deviations from the means."""
        records = [record for record in self.observed if record.kind == "atlas"]
        if len(records) < 2:
            return _LONE_VARIANCE * np.eye(len(self.columns))
        deviations = np.zeros((len(records), len(self.columns)))
        for row, record in zip(deviations, records, strict=True):
            for name, gain in record.gains.items():
                if name in self._column_of:
                    row[self._column_of[name]] = gain - self.technique_means[self._column_of[name]]
        from sklearn.covariance import ledoit_wolf

        shrunk, _ = ledoit_wolf(deviations, assume_centered=True)
        covariance = np.asarray(shrunk) + 1e-4 * np.eye(len(self.columns))
        recorded = {name for record in records for name in record.gains}
        new = [column for name, column in self._column_of.items() if name not in recorded]
        if len(new) < len(self.columns):  # a technique without records deviates as much as the others do
            usual = float(np.delete(covariance.diagonal(), new).mean())
            covariance[new, :] = covariance[:, new] = 0.0
            covariance[new, new] = usual
        return covariance

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """List the N observed gains as arrays (N,): comparison, column, gain - m, and variance of the noise."""
        comparisons, columns, residuals, noise = list[int](), list[int](), list[float](), list[float]()
        for number, observed in enumerate(self.observed):
            names = [name for name in observed.gains if name in self._column_of]
            indices = [self._column_of[name] for name in names]
            residual = np.array([observed.gains[name] for name in names]) - self.technique_means[indices]
            if observed.kind == "paper":  # the unadapted model's score is not known: only differences count
                residual = residual - residual.mean() if len(names) > 1 else np.zeros(len(names))
            comparisons += [number] * len(names)
            columns += indices
            residuals += residual.tolist()
            noise += [observed.errors[name] ** 2 for name in names]
        return np.array(comparisons, int), np.array(columns, int), np.array(residuals), np.array(noise)

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the Cholesky factor of the observed gains' covariance, (N, N), and its inverse times the residuals."""
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
        """Return a k(x, x') + (1 - a) exp(-d^2 / 2 l_0^2): the correlation of the deviations in two situations."""
        same = math.exp(-0.5 * (distance(one, other) / _SAME_REACH) ** 2)
        return self.share * self.similarity(one, other) + (1 - self.share) * same

    def similarity(self, one: Features, other: Features) -> float:
        """Return k: the similarity of two situations, 1 for the same one and near 0 for unrelated ones."""
        whole = _rational_quadratic(distance(one, other), self.reach)
        models = _rational_quadratic(distance(one, other, MODEL), _MODEL_REACH)
        return (1 - self.model_share) * whole + self.model_share * models

    def neighbours(self, features: Features) -> list[tuple[ObservedGains, float]]:
        """Return the observed gains with their similarity to a situation, most similar first."""
        pairs = [(observed, self.similarity(observed.features, features)) for observed in self.observed]
        return sorted(pairs, key=lambda pair: -pair[1])

    def predict(self, features: Features) -> Belief:
        """Return the belief over the techniques' gains in a situation, given the observed gains."""
        from scipy.linalg import solve_triangular

        comparisons, columns, _, _ = self._points
        names = [name + READING if features.documents and name in self.reading else name for name in self.techniques]
        indices = [self._column_of[name] for name in names]
        mean, covariance = self.technique_means[indices], self.technique_covariance[np.ix_(indices, indices)]
        if not len(comparisons):
            return Belief(self.techniques, mean, covariance * self.width)
        factor, solved = self._solved
        related = np.array([self.correlation(gains.features, features) for gains in self.observed])  # (comparisons,)
        cross = self.technique_covariance[indices][:, columns] * related[comparisons]  # (techniques, N)
        whitened = solve_triangular(factor, cross.T, lower=True)  # (N, techniques)
        return Belief(self.techniques, mean + cross @ solved, (covariance - whitened.T @ whitened) * self.width)


def _rational_quadratic(distance: float, reach: float) -> float:
    """1 / (1 + d^2 / 2 l^2)."""
    return 1 / (1 + 0.5 * (distance / reach) ** 2)
