"""Which technique to run next when a comparison may stop early, and when the leader can no longer be caught.

Before anything is run there is a belief over the gains g of all techniques: a mean m and a covariance C (see `gains`).
A score is

    y_t = base + s g_t + noise        s: the scale, how much the best technique gains in score; noise: y_t's interval

The gains are taken to be jointly t distributed with nu = 4 degrees of freedom. For a scale s, the n finished techniques
o change the belief over the remaining ones u to a t distribution of nu + n degrees of freedom (Shah, Wilson &
Ghahramani 2014) with

    mean         m_u + C_uo K^-1 r                        r = (y_o - base) / s - m_o        K = C_oo + noise / s^2
    covariance   (C_uu - C_uo K^-1 C_ou) (nu + q) / (nu + n)                                q = r' K^-1 r
    likelihood   p(y_o | s) ~ (1 + q / nu)^-((nu + n) / 2) / (|K|^(1/2) s^n)

so that techniques with correlated gains learn from one another, and a surprise (q above n) makes the belief wider. The
scale is not known: it is averaged over a grid from what the leader has gained to what can still be gained, weighted by
the likelihood. With draws of the remaining scores from that,

    next   the technique of largest E[max(y_t - leader, 0)] / cost_t, the expected improvement (Mockus 1978) per cost
    stop   once P(some y_t > leader + half of its interval) <= 0.05

**By hand.** The base scored 0.2 and `a` 0.6; `b` remains. Let both gains have mean 0.8, variance 0.04 and covariance
0.02, let s be 0.5 and the noise 0. Then r = 0.4 / 0.5 - 0.8 = 0: no surprise. The mean of b stays 0.8, its covariance
falls to (0.04 - 0.02^2 / 0.04) (4 + 0) / (4 + 1) = 0.024, so that b is expected to score 0.2 + 0.5 x 0.8 = 0.6 with a
scale of 0.5 x sqrt(0.024) = 0.077. Had `a` scored 0.7, r would be 0.2, the mean of b 0.8 + 0.02 / 0.04 x 0.2 = 0.9, and
q = 0.2^2 / 0.04 = 1.

>>> import numpy as np
>>> belief = Belief(("a", "b"), np.array([0.8, 0.8]), np.array([[0.04, 0.02], [0.02, 0.04]]))
>>> for score in (0.6, 0.7):
...     gain = _posterior(belief, ["a"], ["b"], np.array([score - 0.2]), np.array([0.0]), scale=0.5)
...     print(gain.mean.round(2), gain.covariance.round(3), gain.freedom)
[0.8] [[0.024]] 5.0
[0.9] [[0.03]] 5.0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunewise.advice.gains import Belief
from tunewise.results.statistics import LEVEL

_SCALES = 25  # values of s on the grid
_DRAWS = 4000
_LEAST_SCALE = 0.02  # lower end of the grid: if the best technique gains less, there is nothing to win
_FREEDOM = 4.0  # nu
_JITTER = 1e-6  # added to the diagonal of covariances, so that they can be inverted


@dataclass(frozen=True)
class Seen:
    """Holds the score of a finished row with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Return half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Move:
    """Says what to do next.

    Attributes:
        next: the technique to run next; None to stop.
        chance: the probability that any remaining technique beats the leader.
        chances: that probability for each of them.
    """

    next: str | None
    chance: float
    chances: Mapping[str, float]


def move(
    belief: Belief, costs: Mapping[str, float], seen: Mapping[str, Seen], left: Sequence[str], ceiling: float = 1.0
) -> Move:
    """Choose the next technique to run, or stop.

    Args:
        belief: the expected gains of all techniques without `base`.
        costs: the cost of each technique, all in one unit.
        seen: the scores of the finished rows, including that of `base`.
        left: the remaining techniques, all of them in the belief.
        ceiling: the highest possible score.
    """
    if not left:
        return Move(None, 0.0, {})
    scores = _sampled_scores(belief, seen, left, ceiling)  # (draws, left)
    leader = max(seen.values(), key=lambda row: row.mean)
    beats = scores - (leader.mean + leader.half) > 0
    chance = float(beats.any(axis=1).mean())
    chances = dict(zip(left, beats.mean(axis=0).tolist(), strict=True))
    if chance <= 1 - LEVEL:
        return Move(None, chance, chances)
    improvement = np.maximum(scores - leader.mean, 0).mean(axis=0)  # (left,)
    per_cost = improvement / np.array([max(costs[name], 1e-9) for name in left])
    return Move(left[int(per_cost.argmax())], chance, chances)


def likely_moves(
    belief: Belief, costs: Mapping[str, float], seen: Mapping[str, Seen], running: str, left: Sequence[str], count: int
) -> list[str]:
    """Return the techniques that will be run after the one that runs now, if scores are as they are expected.

    Args:
        belief: the expected gains of all techniques without `base`.
        costs: the cost of each technique.
        seen: the scores of the finished rows, including that of `base`.
        running: the technique that runs.
        left: the techniques after it.
        count: how many are wanted.
    """
    expected, rest, likely = dict(seen), list(left), list[str]()
    half, current = seen["base"].half, running
    while rest and len(likely) < count:
        score = float(_sampled_scores(belief, expected, [current], 1.0).mean())
        expected[current] = Seen(score, score - half, score + half)
        step = move(belief, costs, expected, rest)
        if step.next is None:
            break
        current = step.next
        rest.remove(current)
        likely.append(current)
    return likely


def _sampled_scores(belief: Belief, seen: Mapping[str, Seen], left: Sequence[str], ceiling: float) -> np.ndarray:
    """Draw scores of the remaining techniques, (draws, left), averaged over the scale s."""
    base = seen["base"].mean
    finished = [name for name in seen if name != "base" and name in belief.names]
    differences = np.array([seen[name].mean - base for name in finished])  # (n,)
    noise = np.array([(seen[name].half / 1.96) ** 2 for name in finished])  # (n,) variances
    least = max(float(differences.max(initial=0.0)), _LEAST_SCALE)
    most = max(max(ceiling, max(row.mean for row in seen.values())) - base, least)
    random, samples, log_weights = np.random.default_rng(0), [], []
    for scale in np.linspace(least, most, _SCALES):
        gains = _posterior(belief, finished, left, differences, noise, scale)
        drawn = _sample_t(random, gains, _DRAWS // _SCALES)  # (draws of one scale, left)
        samples.append(base + scale * np.minimum(drawn, 1.0))
        log_weights.append(gains.log_likelihood)
    weights = np.exp(np.array(log_weights) - max(log_weights))
    counts = random.multinomial(_DRAWS, weights / weights.sum())
    resampled = [
        scores[random.integers(len(scores), size=count)] for scores, count in zip(samples, counts, strict=True) if count
    ]
    return np.concatenate(resampled)


@dataclass(frozen=True)
class _Posterior:
    """Holds the t distribution of the remaining gains for one scale, and the log-likelihood of that scale."""

    mean: np.ndarray  # (left,)
    covariance: np.ndarray  # (left, left)
    freedom: float
    log_likelihood: float


def _posterior(
    belief: Belief,
    finished: Sequence[str],
    left: Sequence[str],
    differences: np.ndarray,
    noise: np.ndarray,
    scale: float,
) -> _Posterior:
    """Update the belief over the remaining gains, by the equations of the module, for one scale.

    Args:
        belief: the expected gains before anything was run.
        finished: the n techniques that were run.
        left: the remaining techniques.
        differences: score - base of each finished technique, (n,).
        noise: variance of each of these scores, (n,).
        scale: s.
    """
    done, rest = ([belief.names.index(name) for name in names] for names in (finished, left))
    mean, covariance = belief.mean[rest], belief.covariance[np.ix_(rest, rest)]
    if not finished:
        return _Posterior(mean, covariance, _FREEDOM, 0.0)
    count = len(done)
    cross = belief.covariance[np.ix_(rest, done)]  # C_uo, (left, n)
    observed = belief.covariance[np.ix_(done, done)] + np.diag(noise / scale**2) + _JITTER * np.eye(count)  # K, (n, n)
    residual = differences / scale - belief.mean[done]  # r, (n,)
    solved = np.linalg.solve(observed, np.column_stack([residual, cross.T]))  # K^-1 [r, C_ou], (n, 1 + left)
    surprise = float(residual @ solved[:, 0])  # q
    mean, covariance = mean + cross @ solved[:, 0], covariance - cross @ solved[:, 1:]
    covariance = covariance * (_FREEDOM + surprise) / (_FREEDOM + count)
    log_likelihood = -0.5 * (_FREEDOM + count) * np.log1p(surprise / _FREEDOM)
    log_likelihood -= 0.5 * float(np.linalg.slogdet(observed)[1]) + count * np.log(scale)
    return _Posterior(mean, covariance, _FREEDOM + count, log_likelihood)


def _sample_t(random: np.random.Generator, gains: _Posterior, count: int) -> np.ndarray:
    """Draw from a multivariate t distribution, mean + normal sqrt(freedom / chi^2_freedom), (count, left)."""
    size = len(gains.mean)
    symmetric = (gains.covariance + gains.covariance.T) / 2 + _JITTER * np.eye(size)
    normal = random.multivariate_normal(np.zeros(size), symmetric, count, method="eigh")
    return gains.mean + normal * np.sqrt(gains.freedom / random.chisquare(gains.freedom, count))[:, None]
