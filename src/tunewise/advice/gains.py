"""What each technique will gain in a situation, from recorded comparisons and published tables: a Gaussian process.

A gain is (score - base) / (best - base) of one comparison. The gain of technique t in comparison i, with features x_i:

    g_it = m_t + f_t(x_i) + noise       Cov(f_t(x), f_s(x')) = B_ts (a k(x, x') + (1 - a) exp(-d(x, x')^2 / 2 l_0^2))
    k = (1 - c) r(d(x, x'), l) + c r(d_m(x, x'), l_m)                   r(d, l) = 1 / (1 + d^2 / 2 l^2)

This is the intrinsic coregionalisation model (Bonilla, Chai & Williams 2007; Alvarez, Rosasco & Lawrence 2012, section
4.2.2) with the rational quadratic kernel r, which falls slowly: near situations share what is peculiar to them, far
ones a little of it, and techniques share it too, as B says. A share c of that is the model's, whatever the task (a sum
of kernels, Duvenaud, Nickisch & Rasmussen 2011): d_m is the distance in `features.MODEL` alone. What neither explains
holds for nearly the same situation (l_0). m_t is a technique's mean over tasks, drawn to the mean of all techniques
where few tasks know it; B is the covariance of what is left, drawn to independence where there are few records (Ledoit
& Wolf 2004); the noise is that of the recorded intervals. How far similarity reaches (l), how much it explains (a) and
the model's share (c) are chosen by leaving one task out at a time, and so is how wide the intervals must be. Published
tables count by how their rows differ from one another: they rarely say where the unadapted model stood.
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

REACHES = (0.7, 1.4, 2.8)  # l
SHARES = (0.2, 0.5, 0.8)  # a
KINS = (0.0, 0.6)  # c
_SIZE = 0.3  # l_m: a model of twice the size is another one
_SAME = 0.5  # l_0
_ENOUGH = 5  # tasks from which on l, a and c are chosen; fewer leave their defaults
_PAPER = 0.1  # standard deviation that a published gain has for being measured otherwise
_FLOOR = 0.03  # least standard deviation of a recorded gain
_PRIOR = 1.0  # tasks' worth of weight that the mean of all techniques has in a technique's own
READING = " over documents"  # what searches documents is another technique where there are none to search
_SPREAD = 0.05  # usual variance of a technique's gain from task to task
_WIDEST = 1.0  # standard deviation beyond which a recorded gain says nothing


@dataclass(frozen=True)
class Evidence:
    """One comparison: gains by technique, and the standard deviation of each."""

    kind: str  # "atlas" or "paper"
    ref: str
    task: str
    features: Features
    gains: Mapping[str, float]
    errors: Mapping[str, float]


def evidence(records: Iterable[Record], tables: Iterable[Table] = ()) -> list[Evidence]:
    """What records and tables say of gains; where nothing is better than the base, nothing."""
    found = [_measured(record) for record in records if record.best[1] > record.base]
    for table in tables:
        if len(table.rows) > 1:
            gains = {name: table.gain(name) for name in table.scored}
            errors = dict.fromkeys(gains, _PAPER)
            found.append(Evidence("paper", table.id, table.task, table.features.features(), gains, errors))
    return found


def _measured(record: Record) -> Evidence:
    """Gains, and their errors from those of the three scores that each is made of."""
    best, apart = record.best[0], record.best[1] - record.base
    found = {name: record.gain(name) for name in record.scored if name != "base"}
    gains, errors = dict[str, float](), dict[str, float]()
    for technique, gain in found.items():
        own, bare, top = (_deviation(record, each) for each in (technique, "base", best))
        error = math.sqrt(own**2 + ((1 - gain) * bare) ** 2 + (gain * top) ** 2) / apart
        reads = bool(record.features.documents) and "knowledge" in record.scored[technique].settings
        name = technique + READING if reads else technique
        gains[name], errors[name] = gain, min(max(error, _FLOOR), _WIDEST)
    return Evidence("atlas", record.name, record.task.name, record.features.features(), gains, errors)


def _deviation(record: Record, name: str) -> float:
    score = record.scored[name].score
    assert score is not None
    return (score.high - score.low) / 3.92  # a 95 % interval is 2 x 1.96 standard deviations wide


@dataclass(frozen=True)
class Belief:
    """Gains of techniques before anything is run: means (T,) and their covariance (T, T)."""

    names: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray

    def interval(self, name: str, level: float = 1.96) -> tuple[float, float, float]:
        """Mean, low and high of one technique's gain; 95 % by default."""
        place = self.names.index(name)
        half = level * float(np.sqrt(self.covariance[place, place]))
        mean = float(self.mean[place])
        return min(mean, 1.0), mean - half, min(mean + half, 1.0)

    def chances(self, draws: int = 4000) -> dict[str, float]:
        """How likely each technique is the best of these."""
        drawn = np.random.default_rng(0).multivariate_normal(self.mean, self.covariance, draws, method="eigh")
        wins = np.bincount(drawn.argmax(axis=1), minlength=len(self.names)) / draws
        return {name: float(share) for name, share in zip(self.names, wins, strict=True)}

    def only(self, names: Sequence[str]) -> Belief:
        """Of these techniques alone."""
        places = [self.names.index(name) for name in names]
        return Belief(tuple(names), self.mean[places], self.covariance[np.ix_(places, places)])


@dataclass(frozen=True)
class Recommender:
    """The model, over evidence; `reach`, `share` and `kin` are l, a and c; variances are `width` times what B says."""

    evidence: tuple[Evidence, ...]
    techniques: tuple[str, ...]
    reading: tuple[str, ...] = ()  # those of the techniques that search documents where there are some
    reach: float = 1.4
    share: float = 0.5
    kin: float = 0.0
    width: float = 1.0

    @classmethod
    def fit(cls, found: Sequence[Evidence], techniques: Sequence[str], reading: Sequence[str] = ()) -> Recommender:
        """With the l, a and c whose predictions of tasks left out are nearest to what was measured there."""
        plain = cls(tuple(found), tuple(techniques), tuple(reading))
        tasks = sorted({each.task for each in found if each.kind == "atlas"})
        if len(tasks) < 2:
            return plain
        several = len(tasks) >= _ENOUGH
        tried = [
            replace(plain, reach=reach, share=share, kin=kin) for reach, share, kin in product(REACHES, SHARES, KINS)
        ]
        best = min(tried, key=lambda model: model.error(tasks)) if several else plain
        return replace(best, width=max(best.surprise(tasks), 1.0))

    def error(self, tasks: Iterable[str]) -> float:
        """Mean squared error of the predicted gains of tasks left out, each task alike, noisy gains less."""
        means = []
        for task in tasks:
            off, _, noise = self._left_out(task)
            means.append(np.average(off**2, weights=1 / (_SPREAD + noise)))
        return float(np.mean(means))

    def surprise(self, tasks: Iterable[str]) -> float:
        """The same over the variance that was expected: 1 where the model is as sure as it should be."""
        found = [self._left_out(task) for task in tasks]
        return float(np.mean([np.mean(off**2 / (variance + noise)) for off, variance, noise in found]))

    def _left_out(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each gain of a task that is not known: how far it was foreseen, its expected variance, and its noise's."""
        known, rows = self.without(task), list[tuple[float, float, float]]()
        for each in self.evidence:
            if each.task != task or each.kind != "atlas":
                continue
            belief = known.predict(each.features)
            for name, gain in each.gains.items():
                technique = name.removesuffix(READING)
                if technique in self.techniques and name in self._known:
                    at = self.techniques.index(technique)
                    rows.append((gain - belief.mean[at], belief.covariance[at, at], each.errors[name] ** 2))
        off, variance, noise = np.array(rows).T
        return off, variance, noise

    def without(self, task: str) -> Recommender:
        """The same, knowing nothing of a task."""
        return replace(self, evidence=tuple(each for each in self.evidence if each.task != task))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The techniques, then those that search documents as they are where there are some."""
        return (*self.techniques, *(name + READING for name in self.reading))

    @cached_property
    def _known(self) -> set[str]:
        return set(self.columns)

    @cached_property
    def means(self) -> np.ndarray:
        """m_t, (T,): each task counts once, by how exact its gains are."""
        tasks = sorted({each.task for each in self.evidence if each.kind == "atlas"})
        gains = np.zeros((len(tasks), len(self.columns)))
        weights = np.zeros_like(gains)
        for row, task in enumerate(tasks):
            for column, name in enumerate(self.columns):
                own = [each for each in self.evidence if each.task == task and name in each.gains]
                exact = np.array([1 / (_SPREAD + each.errors[name] ** 2) for each in own if each.kind == "atlas"])
                if len(exact):
                    values = [each.gains[name] for each in own if each.kind == "atlas"]
                    gains[row, column] = float(np.average(values, weights=exact))
                    weights[row, column] = exact.mean() * _SPREAD
        if not weights.any():
            return np.full(len(self.columns), 0.5)
        grand = float(np.average(gains, weights=weights))
        found: np.ndarray = ((weights * gains).sum(axis=0) + _PRIOR * grand) / (weights.sum(axis=0) + _PRIOR)
        return found

    @cached_property
    def together(self) -> np.ndarray:
        """B, (T, T): how what is peculiar to a comparison goes together over the techniques."""
        rows = [each for each in self.evidence if each.kind == "atlas"]
        count = len(self.columns)
        table = np.zeros((len(rows), count))
        for row, each in zip(table, rows, strict=True):
            for name, gain in each.gains.items():
                if name in self._known:
                    row[self.columns.index(name)] = gain - self.means[self.columns.index(name)]
        if len(rows) < 2:
            return 0.1 * np.eye(count)
        from sklearn.covariance import ledoit_wolf

        shrunk, _ = ledoit_wolf(table, assume_centered=True)
        found = np.asarray(shrunk) + 1e-4 * np.eye(count)
        new = [place for place, name in enumerate(self.columns) if not any(name in each.gains for each in rows)]
        if len(new) < count:  # what no comparison has may be as peculiar as the others are
            usual = float(np.delete(found.diagonal(), new).mean())
            found[new, :] = found[:, new] = 0.0
            found[new, new] = usual
        return found

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of every gain there is: its comparison, its technique, what it is beyond m_t, and its noise's variance."""
        owners, places, values, noise = list[int](), list[int](), list[float](), list[float]()
        for owner, each in enumerate(self.evidence):
            own = [name for name in each.gains if name in self._known]
            at = [self.columns.index(name) for name in own]
            beyond = np.array([each.gains[name] for name in own]) - self.means[at]
            if each.kind == "paper":
                beyond = beyond - beyond.mean() if len(own) > 1 else np.zeros(len(own))
            owners += [owner] * len(own)
            places += at
            values += beyond.tolist()
            noise += [each.errors[name] ** 2 for name in own]
        return np.array(owners, int), np.array(places, int), np.array(values), np.array(noise)

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray]:
        """The Cholesky factor of the gains' covariance, and its inverse times what they are beyond m_t."""
        from scipy.linalg import cho_solve, cholesky

        owners, places, values, noise = self._points
        near = np.array([[self._shared(a.features, b.features) for b in self.evidence] for a in self.evidence])
        whole = near[np.ix_(owners, owners)] * self.together[np.ix_(places, places)] + np.diag(noise)
        factor = cholesky(whole, lower=True)
        return factor, cho_solve((factor, True), values)

    def _shared(self, one: Features, other: Features) -> float:
        """How much of what is peculiar to one situation holds for another."""
        same = math.exp(-0.5 * (distance(one, other) / _SAME) ** 2)
        return self.share * self.near(one, other) + (1 - self.share) * same

    def near(self, one: Features, other: Features) -> float:
        """k: how much two situations have in common, 1 for the same, 0 for strangers."""
        whole = _quadratic(distance(one, other), self.reach)
        return (1 - self.kin) * whole + self.kin * _quadratic(distance(one, other, MODEL), _SIZE)

    def neighbours(self, features: Features) -> list[tuple[Evidence, float]]:
        """The evidence with its similarity, nearest first."""
        found = [(each, self.near(each.features, features)) for each in self.evidence]
        return sorted(found, key=lambda pair: -pair[1])

    def predict(self, features: Features) -> Belief:
        """What the techniques will gain there."""
        from scipy.linalg import solve_triangular

        owners, places, _, _ = self._points
        reading = [name + READING if features.documents and name in self.reading else name for name in self.techniques]
        own = [self.columns.index(name) for name in reading]
        mean, together = self.means[own], self.together[np.ix_(own, own)]
        if not len(owners):
            return Belief(self.techniques, mean, together * self.width)
        factor, solved = self._solved
        near = np.array([self._shared(each.features, features) for each in self.evidence])
        cross = self.together[own][:, places] * near[owners]
        reduced = solve_triangular(factor, cross.T, lower=True)
        return Belief(self.techniques, mean + cross @ solved, (together - reduced.T @ reduced) * self.width)


def _quadratic(distance: float, reach: float) -> float:
    """r: the rational quadratic kernel."""
    return 1 / (1 + 0.5 * (distance / reach) ** 2)
