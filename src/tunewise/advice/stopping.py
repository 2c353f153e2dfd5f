"""Which technique to run next when a comparison may stop early, and when the leader cannot be caught any more.

Before anything is run there is a belief over the gains g_t of all techniques (see `gains`). A score is
base + s g_t, where s, how much the best technique gains, is not known: it is integrated over a grid, from what the
leader has gained already to what is left to gain. Given s, observed scores are observed gains with the noise of their
intervals, and what they say of the others follows from the belief's covariance: techniques that surprise alike are
believed alike. The gains are taken to be jointly t distributed, so that a surprise also makes the rest less certain
(Shah, Wilson & Ghahramani 2014). With draws from that,

    next     the technique with the largest expected improvement on the leader (Mockus 1978) for what it costs
    stop     when the chance that any technique left beats the leader by more than the test can tell is below 0.05
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunewise.advice.gains import Belief
from tunewise.results.statistics import LEVEL

_SCALES = 25  # values of s
_DRAWS = 4000
_LEAST = 0.02  # gain of the best technique below which there is nothing to win
_FREEDOM = 4.0  # degrees of freedom of the gains' joint t distribution
_JITTER = 1e-6


@dataclass(frozen=True)
class Seen:
    """A finished row: its score and the 95 % interval of it."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Move:
    """What to do: the technique to run next, or None; `chance` is that of any left one to beat the leader."""

    next: str | None
    chance: float
    chances: Mapping[str, float]


def move(
    belief: Belief, costs: Mapping[str, float], seen: Mapping[str, Seen], left: Sequence[str], ceiling: float = 1.0
) -> Move:
    """The next move.

    Args:
        belief: over the gains of all techniques, `base` not among them.
        costs: of each technique, in one unit.
        seen: the finished rows, `base` among them.
        left: the techniques that may still be run, all of them in the belief.
        ceiling: the highest score that there can be.
    """
    if not left:
        return Move(None, 0.0, {})
    drawn = _scores(belief, seen, left, ceiling)
    leader = max(seen.values(), key=lambda row: row.mean)
    beyond = drawn - (leader.mean + leader.half) > 0
    chance = float(beyond.any(axis=1).mean())
    chances = dict(zip(left, beyond.mean(axis=0).tolist(), strict=True))
    if chance <= 1 - LEVEL:
        return Move(None, chance, chances)
    worth = np.maximum(drawn - leader.mean, 0).mean(axis=0) / np.array([max(costs[name], 1e-9) for name in left])
    return Move(left[int(worth.argmax())], chance, chances)


def _scores(belief: Belief, seen: Mapping[str, Seen], left: Sequence[str], ceiling: float) -> np.ndarray:
    """Draws of the scores of those left, (draws, left)."""
    base = seen["base"].mean
    done = [name for name in seen if name != "base" and name in belief.names]
    at, of = [belief.names.index(name) for name in done], [belief.names.index(name) for name in left]
    gained = np.array([seen[name].mean - base for name in done])
    noise = np.array([(seen[name].half / 1.96) ** 2 for name in done])
    least = max(float(gained.max(initial=0.0)), _LEAST)
    most = max(max(ceiling, max(row.mean for row in seen.values())) - base, least)
    scales = np.linspace(least, most, _SCALES)
    own, cross = belief.covariance[np.ix_(of, of)], belief.covariance[np.ix_(of, at)]
    random, parts, weights = np.random.default_rng(0), [], []
    for scale in scales:
        mean, covariance, weight = belief.mean[of], own, 0.0
        if done:
            whole = belief.covariance[np.ix_(at, at)] + np.diag(noise / scale**2) + _JITTER * np.eye(len(at))
            off = gained / scale - belief.mean[at]
            solved = np.linalg.solve(whole, np.column_stack([off, cross.T]))
            surprise = float(off @ solved[:, 0])
            mean, covariance = mean + cross @ solved[:, 0], own - cross @ solved[:, 1:]
            covariance = covariance * (_FREEDOM + surprise) / (_FREEDOM + len(at))
            weight = -0.5 * (_FREEDOM + len(at)) * np.log1p(surprise / _FREEDOM)
            weight -= 0.5 * float(np.linalg.slogdet(whole)[1]) + len(at) * np.log(scale)
        drawn = _student(random, mean, covariance, _FREEDOM + len(at), _DRAWS // _SCALES)
        parts.append(base + scale * np.minimum(drawn, 1.0))
        weights.append(weight)
    share = np.exp(np.array(weights) - max(weights))
    counts = random.multinomial(_DRAWS, share / share.sum())
    rows = [part[random.integers(len(part), size=count)] for part, count in zip(parts, counts, strict=True) if count]
    return np.concatenate(rows)


def _student(
    random: np.random.Generator, mean: np.ndarray, covariance: np.ndarray, freedom: float, count: int
) -> np.ndarray:
    """Draws of a multivariate t distribution, (count, dimensions)."""
    even = (covariance + covariance.T) / 2 + _JITTER * np.eye(len(covariance))
    normal = random.multivariate_normal(np.zeros(len(mean)), even, count, method="eigh")
    return mean + normal * np.sqrt(freedom / random.chisquare(freedom, count))[:, None]
