"""What scores over seeds and test examples allow to be said: intervals, differences, ties, ranks, what more it takes.

A score is a table (seeds, examples). Seeds and examples are both drawn at random, each seed answers every example, so

    y_se = mu + a_s + b_e + e_se,     Var(mean) = (Var(seeds' means) - Var(e) / E) / S + Var(examples' means) / E

(Searle, Casella & McCulloch 1992, chapter 4). Var(e) is taken off only where other techniques' seeds make the first
part more than a guess. Each of the two parts comes with its own quantile of Student's t, and their half widths add as
squares do; such an interval is never too short (Banerjee 1960). A bootstrap over the two to five seeds that people can
afford is far too sure of itself: a percentile of three values does not know how little three values say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.95
_POWER = 0.8
_LEAST = 0.05  # share of the least variances between seeds that are taken for more
_SMALLEST = -30.0  # a p value below 10^-30 is 0
# Two failures and two successes more (Agresti & Coull 1998): without them an interval at 0 or 1 has no width at all.
_MEAN, _DIFFERENCE = (0.0, 0.0, 1.0, 1.0), (-1.0, 0.0, 0.0, 1.0)

Tables = Mapping[str, np.ndarray]  # scores (seeds, examples) by technique; a technique without chance has one seed


@dataclass(frozen=True)
class Spread:
    """A mean, its variance from the choice of seeds and from that of examples, and the degrees of freedom of each."""

    mean: float
    of_seeds: float
    of_examples: float
    seeds: float
    examples: float

    def half(self, p: float) -> float:
        """Half of the interval that leaves the truth out with probability p."""
        parts = ((self.of_seeds, self.seeds), (self.of_examples, self.examples))
        return math.sqrt(sum(stats.t.isf(p / 2, freedom) ** 2 * variance for variance, freedom in parts if variance))


@dataclass(frozen=True)
class Luck:
    """How much seeds usually differ: a variance, which counts as so many degrees of freedom beside a table's own."""

    variance: float
    freedom: float


def spread(table: np.ndarray, usual: Luck | None = None) -> Spread:
    """Where the variance of the mean of a table (seeds, examples) comes from; `usual` is that of all techniques."""
    seeds, examples = table.shape
    mean, by_seed, by_example = float(table.mean()), table.mean(axis=1), table.mean(axis=0)
    if examples < 2:
        return Spread(mean, 0.0, 0.0, 1, 1)
    of_examples = float(by_example.var(ddof=1)) / examples
    if seeds < 2:
        return Spread(mean, 0.0, of_examples, 1, examples - 1)
    between, freedom = float(by_seed.var(ddof=1)), float(seeds - 1)
    if usual is not None and usual.freedom:
        known = freedom + usual.freedom
        whole = (freedom * between + usual.freedom * usual.variance) / known
        between = max(whole - _noise(table), 0.0)
        # Satterthwaite's for a difference, but not so few that a trifle of a part gets the quantile of one degree.
        freedom = max(known * (between / whole) ** 2 if whole else known, known / 2)
    return Spread(mean, between / seeds, of_examples, freedom, examples - 1)


def _noise(table: np.ndarray) -> float:
    """What seeds' means would vary by if seeds made no difference but by chance in each example: MS_rest / E."""
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((rest**2).mean()) * table.shape[0] / ((table.shape[0] - 1) * (table.shape[1] - 1))


def seed_variance(tables: Tables) -> Luck | None:
    """How much the techniques' seeds differ; None where fewer than three techniques have several.

    Two or three seeds say little of how much a technique depends on them, those of all techniques say more: as much
    more as the techniques are alike in it (empirical Bayes; Smyth 2004, section 6.2, moderates genes' variances so).
    What has not moved from the base hardly has any luck; so that it does not set what is usual, the least variances are
    raised to what chance alone makes of equal ones in 1 of 20 (Phipson et al. 2016, sections 2 and 3).
    """
    several = [table for table in tables.values() if len(table) > 1]
    if len(several) < 3:
        return None
    variances = np.array([table.mean(axis=1).var(ddof=1) for table in several])
    if not variances.any():
        return None
    halves = np.array([(len(table) - 1) / 2 for table in several])
    logs = np.log(np.maximum(variances, 1e-9 * variances.max())) - special.digamma(halves) + np.log(halves)
    logs = np.maximum(logs, np.median(logs) + _lowest(halves))
    usual = [_winsorised(half) for half in halves]
    logs -= np.mean([mean for mean, _ in usual])
    # What they differ by beyond what few seeds explain, as a variance of logarithms.
    ratio = float(logs.var(ddof=1) / np.mean([variance for _, variance in usual]))
    extra = (ratio - 1) * float(special.polygamma(1, halves).mean())
    freedom = 2 * float(halves.sum())  # there is no more to lend than all of them have
    if extra > special.polygamma(1, freedom / 2):
        freedom = 2 * optimize.brentq(lambda half: float(special.polygamma(1, half)) - extra, 1e-3, freedom / 2)
    variance = float(np.exp(logs.mean() + special.digamma(freedom / 2) - np.log(freedom / 2)))
    return Luck(min(variance, float(variances.max())), freedom)


def _lowest(half: np.ndarray) -> np.ndarray:
    """Logarithm of the variance that 1 of 20 such are below, over that which 10 of 20 are."""
    found: np.ndarray = np.log(stats.chi2.ppf(_LEAST, 2 * half) / stats.chi2.ppf(0.5, 2 * half))
    return found


@lru_cache
def _winsorised(half: float) -> tuple[float, float]:
    """Mean and variance of the logarithms of equal variances that were estimated from so many halves of freedom."""
    places = np.maximum((np.arange(4000) + 0.5) / 4000, _LEAST)
    logs = np.log(stats.chi2.ppf(places, 2 * half) / (2 * half)) - special.digamma(half) + np.log(half)
    return float(logs.mean()), float(logs.var())


def interval(table: np.ndarray, usual: Luck | None = None) -> tuple[float, float]:
    """95 % confidence interval of the mean of a table (seeds, examples), or of one seed's (examples,).

    It stays inside [0, 1] for scores that do. `usual` is what `seed_variance` says of the other tables.
    """
    table = np.atleast_2d(table)
    shares = bool((table >= 0).all() and (table <= 1).all())
    found = spread(_with(table, _MEAN) if shares else table, usual)
    half = found.half(1 - LEVEL)
    low, high = found.mean - half, found.mean + half
    return (max(low, 0.0), min(high, 1.0)) if shares else (low, high)


def _with(table: np.ndarray, more: tuple[float, ...]) -> np.ndarray:
    return np.concatenate([table, np.tile(more, (len(table), 1))], axis=1)


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Paired by example, and by seed where both have several; what has one has no chance in it."""
    seeds = min(len(one), len(other)) if min(len(one), len(other)) > 1 else None
    found: np.ndarray = one[:seeds] - other[:seeds]
    return found


def _shared(one: np.ndarray, other: np.ndarray, usual: Luck | None) -> Luck | None:
    """The usual luck of a difference, to which each side that has several seeds adds its own."""
    return Luck(usual.variance * sum(len(each) > 1 for each in (one, other)), usual.freedom) if usual else None


def p_value(one: np.ndarray, other: np.ndarray, usual: Luck | None = None) -> float:
    """Of the paired, two-sided test that two tables have the same mean; `usual` is what `seed_variance` says."""
    table = _difference(one, other)
    if not table.any():
        return 1.0
    found = spread(_with(table, _DIFFERENCE) if np.abs(table).max() <= 1 else table, _shared(one, other, usual))
    beyond = lambda exponent: found.half(10.0**exponent) - abs(found.mean)  # noqa: E731
    if beyond(0) >= 0 or beyond(_SMALLEST) <= 0:
        return 1.0 if beyond(0) >= 0 else 0.0
    return float(10.0 ** optimize.brentq(beyond, _SMALLEST, 0))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values (Holm 1979): the chance of one false difference among all is what the level says."""
    adjusted, highest = dict[str, float](), 0.0
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        highest = max(highest, min(1.0, (len(values) - place) * values[name]))
        adjusted[name] = highest
    return adjusted


def against(name: str, tables: Tables) -> dict[str, float]:
    """Adjusted p values of the others' differences from one technique.

    Those of the best whose value is above 0.05, and the best itself, hold the truly best one in 95 of 100 comparisons:
    that one can only be left out by a false difference between itself and what came out best.
    """
    usual = seed_variance(tables)
    return holm({other: p_value(tables[name], table, usual) for other, table in tables.items() if other != name})


def ranks(tables: Tables) -> dict[str, tuple[int, int]]:
    """The ranks that each technique can have, first to last: 1 + those surely better, all less those surely worse.

    One technique's two ranks hold its true rank at the level (Mogstad, Romano, Shaikh & Wilhelm 2024).
    """
    means, usual = {name: float(table.mean()) for name, table in tables.items()}, seed_variance(tables)
    pairs = {frozenset(two): p_value(tables[two[0]], tables[two[1]], usual) for two in combinations(tables, 2)}
    found = {}
    for name in tables:
        values = holm({other: pairs[frozenset((name, other))] for other in tables if other != name})
        sure = [other for other, p in values.items() if p <= 1 - LEVEL]
        better = sum(means[other] > means[name] for other in sure)
        found[name] = (1 + better, len(tables) - (len(sure) - better))
    return found


def needed_examples(one: np.ndarray, other: np.ndarray, usual: Luck | None = None) -> int | None:
    """Test examples with which a difference as large as this is found in 8 comparisons of 10 (95 % level).

    None where no number of examples does it: there is no difference, or the seeds alone differ by more.
    """
    table = _difference(one, other)
    found = spread(table, _shared(one, other, usual))
    wanted = (found.mean / (stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(_POWER))) ** 2
    left = wanted - found.of_seeds
    return math.ceil(found.of_examples * table.shape[1] / left) if left > 0 else None
