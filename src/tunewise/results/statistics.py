"""Computes intervals, p values, ties, ranks and needed sample sizes from scores over seeds and test examples.

The scores of a technique are a table (S seeds, E examples). Both are drawn at random and every seed answers every
example, so a two-way model with random effects of seeds (a), examples (b) and a residual (e) describes the table:

    y_se = mu + a_s + b_e + e_se,     Var(mean) = (Var(seeds' means) - Var(e) / E) / S + Var(examples' means) / E

(Searle, Casella & McCulloch 1992, chapter 4). Var(e) / E is subtracted only where the seeds of other techniques make
the estimate of the first part reliable. The half width of an interval combines both parts, each with its own quantile:

    half = sqrt(t(df_seeds)^2 * Var_seeds + t(df_examples)^2 * Var_examples)

Such an interval is never too short (Banerjee 1960). A percentile bootstrap over the two to five seeds that people can
afford is much too short, because three resampled values do not show how uncertain three values are.
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
_WINSORISED_SHARE = 0.05  # share of the smallest variances between seeds that are raised
_LOWEST_EXPONENT = -30.0  # p values below 10^-30 are reported as 0
# Two failures and two successes are added to proportions (Agresti & Coull 1998): without them an interval at 0 or 1 has
# no width. Added to ROUGE, F1 or any other scale they would be far outliers that hide what the examples say.
_PSEUDO_SCORES, _PSEUDO_DIFFERENCES = (0.0, 0.0, 1.0, 1.0), (-1.0, 0.0, 0.0, 1.0)

Tables = Mapping[str, np.ndarray]  # scores (seeds, examples) by technique; a deterministic technique has one seed


@dataclass(frozen=True)
class Spread:
    """Holds a mean and where its variance comes from.

    Attributes:
        mean: of the table.
        of_seeds: variance of the mean that comes from the choice of seeds.
        of_examples: variance of the mean that comes from the choice of examples.
        seeds: degrees of freedom of `of_seeds`.
        examples: degrees of freedom of `of_examples`.
    """

    mean: float
    of_seeds: float
    of_examples: float
    seeds: float
    examples: float

    def half(self, p: float) -> float:
        """Return sqrt(sum over both parts of t(1 - p / 2, df)^2 * variance).

        It is the half width of the interval that misses the true mean with probability p.
        """
        parts = ((self.of_seeds, self.seeds), (self.of_examples, self.examples))
        return math.sqrt(sum(stats.t.isf(p / 2, freedom) ** 2 * variance for variance, freedom in parts if variance))


@dataclass(frozen=True)
class SeedVariance:
    """Holds the usual variance between seeds' means, and the degrees of freedom that it adds to a table's own."""

    variance: float
    freedom: float


def spread(table: np.ndarray, usual: SeedVariance | None = None) -> Spread:
    """Split the variance of the mean of a table (seeds, examples) into a part of the seeds and one of the examples.

    `usual` is the variance between seeds that is usual for all techniques; see `seed_variance`.
    """
    seeds, examples = table.shape
    mean, by_seed, by_example = float(table.mean()), table.mean(axis=1), table.mean(axis=0)
    if examples < 2:
        return Spread(mean, 0.0, 0.0, 1, 1)
    of_examples = float(by_example.var(ddof=1)) / examples
    if seeds < 2:
        return Spread(mean, 0.0, of_examples, 1, examples - 1)
    between, freedom = float(by_seed.var(ddof=1)), float(seeds - 1)
    if usual is not None and usual.freedom:
        total = freedom + usual.freedom
        pooled = (freedom * between + usual.freedom * usual.variance) / total
        between = max(pooled - _chance_variance(table), 0.0)
        # Satterthwaite's degrees of freedom of a difference, with a lower limit: otherwise a negligible part could get
        # the very wide quantile of one degree of freedom.
        freedom = max(total * (between / pooled) ** 2 if pooled else total, total / 2)
    return Spread(mean, between / seeds, of_examples, freedom, examples - 1)


def _chance_variance(table: np.ndarray) -> float:
    """Return MS_residual / E, the variance that seeds' means would have if seeds differed by chance alone."""
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((residual**2).mean()) * table.shape[0] / ((table.shape[0] - 1) * (table.shape[1] - 1))


def seed_variance(tables: Tables) -> SeedVariance | None:
    """Estimate the usual variance between seeds over all techniques; None if fewer than three have several seeds.

    Two or three seeds say little about how much one technique depends on its seed. The seeds of all techniques together
    say more, the more so the more similar the techniques are in this (empirical Bayes, as Smyth 2004, section 6.2, does
    for the variances of genes). A technique that hardly changes the base hardly depends on the seed either. So that
    such techniques do not dominate, the smallest variances are raised to the 5 % quantile of equal ones
    (Phipson et al. 2016, sections 2 and 3).
    """
    several = [table for table in tables.values() if len(table) > 1]
    if len(several) < 3:
        return None
    variances = np.array([table.mean(axis=1).var(ddof=1) for table in several])
    if not variances.any():
        return None
    halves = np.array([(len(table) - 1) / 2 for table in several])
    logs = np.log(np.maximum(variances, 1e-9 * variances.max())) - special.digamma(halves) + np.log(halves)
    logs = np.maximum(logs, np.median(logs) + _log_floor(halves))
    expected = [_log_variance_moments(half) for half in halves]
    logs -= np.mean([mean for mean, _ in expected])
    # The variance of the log variances beyond what so few seeds explain.
    ratio = float(logs.var(ddof=1) / np.mean([variance for _, variance in expected]))
    extra = (ratio - 1) * float(special.polygamma(1, halves).mean())
    freedom = 2 * float(halves.sum())  # at most those of all techniques together
    if extra > special.polygamma(1, freedom / 2):
        freedom = 2 * optimize.brentq(lambda half: float(special.polygamma(1, half)) - extra, 1e-3, freedom / 2)
    variance = float(np.exp(logs.mean() + special.digamma(freedom / 2) - np.log(freedom / 2)))
    return SeedVariance(min(variance, float(variances.max())), freedom)


def _log_floor(half: np.ndarray) -> np.ndarray:
    """Return log(5 % quantile / median) of variances that were estimated with 2 * `half` degrees of freedom."""
    log_ratio: np.ndarray = np.log(stats.chi2.ppf(_WINSORISED_SHARE, 2 * half) / stats.chi2.ppf(0.5, 2 * half))
    return log_ratio


@lru_cache
def _log_variance_moments(half: float) -> tuple[float, float]:
    """Return mean and variance of the winsorised logarithms of equal variances with 2 * `half` degrees of freedom."""
    quantiles = np.maximum((np.arange(4000) + 0.5) / 4000, _WINSORISED_SHARE)
    logs = np.log(stats.chi2.ppf(quantiles, 2 * half) / (2 * half)) - special.digamma(half) + np.log(half)
    return float(logs.mean()), float(logs.var())


def interval(table: np.ndarray, usual: SeedVariance | None = None) -> tuple[float, float]:
    """Return mean -+ half, the 95 % confidence interval of the mean of a table (seeds, examples) or (examples,).

    For scores in [0, 1] it stays in [0, 1]. Where each score is 0 or 1, so that the mean is a proportion, four
    pseudo-examples (0, 0, 1, 1) are added before. Worked example: one seed answers 80 of 100 examples correctly.
    With the four pseudo-examples the mean is 82 / 104 = 0.788 and the variance of the mean is 0.788 * 0.212 / 103 =
    0.00162, so with t(103) = 1.983 the half width is 1.983 * sqrt(0.00162) = 0.080:

    >>> low, high = interval(np.array([1.0] * 80 + [0.0] * 20))
    >>> print(f"{low:.3f} {high:.3f}")
    0.709 0.868

    Args:
        table: scores.
        usual: what `seed_variance` returns for the tables of the comparison.
    """
    table = np.atleast_2d(table)
    in_unit_interval = bool((table >= 0).all() and (table <= 1).all())
    parts = spread(_with_pseudo_examples(table, _PSEUDO_SCORES) if _is_proportion(table) else table, usual)
    half = parts.half(1 - LEVEL)
    low, high = parts.mean - half, parts.mean + half
    return (max(low, 0.0), min(high, 1.0)) if in_unit_interval else (low, high)


def _is_proportion(*tables: np.ndarray) -> bool:
    """Say whether all scores are 0 or 1, as those of accuracy and exact match are."""
    return all(bool(((table == 0) | (table == 1)).all()) for table in tables)


def _with_pseudo_examples(table: np.ndarray, scores: tuple[float, ...]) -> np.ndarray:
    """Append examples on which every seed has these scores."""
    return np.concatenate([table, np.tile(scores, (len(table), 1))], axis=1)


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return one - other, paired by example, and by seed where both have several.

    A technique with one seed is deterministic and is subtracted from every seed of the other.
    """
    seeds = min(len(one), len(other)) if min(len(one), len(other)) > 1 else None
    difference: np.ndarray = one[:seeds] - other[:seeds]
    return difference


def _usual_of_difference(one: np.ndarray, other: np.ndarray, usual: SeedVariance | None) -> SeedVariance | None:
    """Return the usual variance between seeds of a difference: once for each side that has several seeds."""
    seeded = sum(len(table) > 1 for table in (one, other))
    return SeedVariance(usual.variance * seeded, usual.freedom) if usual else None


def p_value(one: np.ndarray, other: np.ndarray, usual: SeedVariance | None = None) -> float:
    """Return the p at which the interval of the mean difference, |mean| = half(p), just reaches 0.

    It is the p value of the paired, two-sided test that two techniques have the same mean. Worked example: on 100
    examples, one is right and the other wrong on 10, the other way round on 2, and they agree on the rest. With the
    pseudo-examples (-1, 0, 0, 1) the mean difference is 8 / 104 = 0.077 with a standard error of 0.035, so t = 2.18 and
    p = 0.03: at the 5 % level the techniques differ.

    >>> one = np.array([[1.0] * 10 + [0.0] * 2 + [1.0] * 88])
    >>> other = np.array([[0.0] * 10 + [1.0] * 2 + [1.0] * 88])
    >>> print(f"{p_value(one, other):.2f}")
    0.03

    Args:
        one: scores (seeds, examples).
        other: scores (seeds, examples) on the same examples.
        usual: what `seed_variance` returns for the tables of the comparison.
    """
    table = _difference(one, other)
    if not table.any():
        return 1.0
    if _is_proportion(one, other):
        table = _with_pseudo_examples(table, _PSEUDO_DIFFERENCES)
    parts = spread(table, _usual_of_difference(one, other, usual))
    excess = lambda exponent: parts.half(10.0**exponent) - abs(parts.mean)  # noqa: E731
    if excess(0) >= 0 or excess(_LOWEST_EXPONENT) <= 0:
        return 1.0 if excess(0) >= 0 else 0.0
    return float(10.0 ** optimize.brentq(excess, _LOWEST_EXPONENT, 0))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return the running maximum of min(1, (n - i) * p_i) over the n values in rising order, i = 0, ..., n - 1.

    With them, the probability of any false difference among all is at most the level (Holm 1979).
    """
    adjusted, highest = dict[str, float](), 0.0
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        highest = max(highest, min(1.0, (len(values) - place) * values[name]))
        adjusted[name] = highest
    return adjusted


def against(name: str, tables: Tables) -> dict[str, float]:
    """Return the adjusted p value of every other technique's difference from this one.

    Taken against the best mean, the techniques whose value is above 0.05 and the best itself contain the truly best one
    in 95 of 100 comparisons: it is left out only if the test finds a false difference between the two.
    """
    usual = seed_variance(tables)
    return holm({other: p_value(tables[name], table, usual) for other, table in tables.items() if other != name})


def ranks(tables: Tables) -> dict[str, tuple[int, int]]:
    """Return the interval of each technique's rank: (1 + number significantly better, n - number significantly worse).

    It contains the true rank of one technique in 95 of 100 comparisons (Mogstad, Romano, Shaikh & Wilhelm 2024).
    """
    means, usual = {name: float(table.mean()) for name, table in tables.items()}, seed_variance(tables)
    pairs = {frozenset(two): p_value(tables[two[0]], tables[two[1]], usual) for two in combinations(tables, 2)}
    intervals = {}
    for name in tables:
        values = holm({other: pairs[frozenset((name, other))] for other in tables if other != name})
        significant = [other for other, p in values.items() if p <= 1 - LEVEL]
        better = sum(means[other] > means[name] for other in significant)
        intervals[name] = (1 + better, len(tables) - (len(significant) - better))
    return intervals


def needed_examples(one: np.ndarray, other: np.ndarray, usual: SeedVariance | None = None) -> int | None:
    """Return E = Var(example's difference) / ((mean / (z(0.975) + z(0.8)))^2 - Var_seeds), rounded up.

    With so many test examples, a difference as large as this one is found in 8 of 10 comparisons at the 5 % level. The
    result is None where no number of examples is enough: there is no difference, or the seeds alone vary by more.
    """
    table = _difference(one, other)
    parts = spread(table, _usual_of_difference(one, other, usual))
    variance = (parts.mean / (stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(_POWER))) ** 2
    for_examples = variance - parts.of_seeds
    return math.ceil(parts.of_examples * table.shape[1] / for_examples) if for_examples > 0 else None
