"""Learns the variances of the model of gains from the evidence, and checks them on left-out tasks.

    maximise   -1/2 r' K^-1 r - 1/2 log det K - 1/2 sum_i ((theta_i - start_i) / spread)^2

over theta, the logarithms of the variances and reaches, the log-odds of `family` and the mean, where r are the observed
gains minus the mean and K is their covariance (`Recommender.covariance`). The last term keeps what the evidence says
nothing of near its start. Its derivative is 1/2 tr((K^-1 - K^-1 r r' K^-1) dK) (Rasmussen & Williams 2006, equation
5.9). What the observed gains of a task would have been expected to be without them needs no second model (5.12):

    mean = g - S a        covariance = S        S = ([K^-1] of the task)^-1        a = (K^-1 r) of the task
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunewise.advice.gains import Recommender, Variances, likeness, relation_parts, shared_part
from tunewise.advice.observations import ObservedGains

START = Variances(
    overall=0.03,
    size=0.03,
    kind=0.03,
    data=0.03,
    model=0.03,
    rest=0.03,
    size_reach=1.5,
    data_reach=1.5,
    family=0.5,
    mean=0.45,
    width=1.0,
)
_SPREAD = 1.5  # of theta around its start: a factor of 4.5
_LOGARITHMIC = ("overall", "size", "kind", "data", "model", "rest", "size_reach", "data_reach")
_NAMES = (*_LOGARITHMIC, "family", "mean")
_STEP = 1e-4


def learn(observed: Sequence[ObservedGains], start: Variances = START, iterations: int = 40) -> Variances:
    """Return the variances that make the evidence most likely; with `width`, so that errors are as large as expected.

    Args:
        observed: two or more comparisons.
        start: where to begin.
        iterations: at most so many steps.
    """
    from scipy.optimize import minimize

    evidence = tuple(observed)
    found = minimize(
        lambda theta: _cost(theta, evidence),
        _theta(start),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations},
    )
    variances = _variances(found.x)
    surprises = [left_out.surprise for left_out in left_out_tasks(Recommender(evidence, variances))]
    return replace(variances, width=max(float(np.mean(surprises)), 1.0)) if surprises else variances


@dataclass(frozen=True)
class LeftOut:
    """Holds what was expected of a comparison without all evidence of its task, before `width` is applied.

    Attributes:
        observed: the comparison.
        mean: the expected gains, in the order of the observed ones.
        variance: their variances, with those of the errors.
    """

    observed: ObservedGains
    mean: np.ndarray
    variance: np.ndarray

    @property
    def surprise(self) -> float:
        """Return the mean of squared error / variance: 1 if variances are right."""
        errors = np.array(list(self.observed.gains.values())) - self.mean
        return float(np.mean(errors**2 / self.variance))


def left_out_tasks(recommender: Recommender) -> Iterator[LeftOut]:
    """Predict every recorded comparison from the evidence of other tasks."""
    inverse = np.linalg.inv(recommender.covariance())
    solved = inverse @ recommender.residuals
    numbers = np.array([number for number, each in enumerate(recommender.observed) for _ in each.gains])
    gains = recommender.residuals + recommender.variances.mean
    for task in sorted({each.task for each in recommender.observed if each.kind == "atlas"}):
        points = np.flatnonzero([recommender.observed[number].task == task for number in numbers])
        covariance = np.linalg.inv(inverse[np.ix_(points, points)])
        mean = gains[points] - covariance @ solved[points]
        for number in np.unique(numbers[points]):
            own = numbers[points] == number
            if recommender.observed[number].kind == "atlas":
                yield LeftOut(recommender.observed[number], mean[own], covariance.diagonal()[own])


def _theta(variances: Variances) -> np.ndarray:
    logarithms = [math.log(max(getattr(variances, name), 1e-6)) for name in _LOGARITHMIC]
    return np.array([*logarithms, math.log(variances.family / (1 - variances.family)), variances.mean])


def _variances(theta: np.ndarray) -> Variances:
    values = dict(zip(_NAMES, theta.tolist(), strict=True))
    logarithmic: dict[str, Any] = {name: math.exp(values[name]) for name in _LOGARITHMIC}
    family = 1 / (1 + math.exp(-values["family"]))
    return Variances(**logarithmic, family=family, mean=values["mean"], width=1.0)


def _cost(theta: np.ndarray, observed: tuple[ObservedGains, ...]) -> tuple[float, np.ndarray]:
    """Return minus the objective of the module, and its derivative by theta."""
    from scipy.linalg import LinAlgError, cho_solve, cholesky

    recommender = Recommender(observed, _variances(theta))
    residuals, away = recommender.residuals, (theta - _theta(START)) / _SPREAD
    try:
        factor = cholesky(recommender.covariance(), lower=True)
    except LinAlgError:
        return 1e9, np.zeros_like(theta)
    inverse = cho_solve((factor, True), np.eye(len(residuals)))
    solved = inverse @ residuals
    cost = 0.5 * residuals @ solved + np.log(factor.diagonal()).sum() + 0.5 * away @ away
    slopes = _slopes(recommender, inverse - np.outer(solved, solved))
    return float(cost), np.array([*slopes, -solved.sum()]) + away / _SPREAD


def _slopes(recommender: Recommender, weights: np.ndarray) -> list[float]:
    """Return 1/2 tr(weights dK) for each of theta but the mean; weights are (N, N)."""
    variances, conditions = recommender.variances, [each.conditions for each in recommender.observed]
    comparisons, columns, _ = recommender._points
    alike = likeness(recommender._techniques, variances.family)[np.ix_(columns, columns)]  # (N, N)
    grouping = np.zeros((len(conditions), len(comparisons)))
    grouping[comparisons, np.arange(len(comparisons))] = 1.0
    same = columns[:, None] == columns
    shared, alone = (grouping @ (weights * each) @ grouping.T for each in (alike, same))  # (C, C)

    def parts(changed: Variances) -> dict[str, np.ndarray]:
        return dict(relation_parts(changed, conditions, conditions))

    now, slopes = parts(variances), list[float]()
    for name in _LOGARITHMIC:
        if name == "rest":
            slopes.append(0.5 * variances.rest * float(weights.trace()))
            continue
        if name in now:
            change = now[name]
        else:
            farther = replace(variances, **{name: getattr(variances, name) * math.exp(_STEP)})
            change = (shared_part(parts(farther)) - shared_part(now)) / _STEP
        slopes.append(0.5 * float(((alone if name == "model" else shared) * change).sum()))
    odds = math.log(variances.family / (1 - variances.family)) + _STEP
    closer = likeness(recommender._techniques, 1 / (1 + math.exp(-odds)))[np.ix_(columns, columns)]
    spread_out = shared_part(now)[np.ix_(comparisons, comparisons)]
    slopes.append(0.5 * float((weights * spread_out * (closer - alike)).sum()) / _STEP)
    return slopes
