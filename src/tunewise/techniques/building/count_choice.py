"""Chooses how many examples or passages stand in a prompt, on validation, from few to many.

Every number is tried on the same `QUESTIONS` validation examples. The search ends where the allowance does not cover
the next number, or where two numbers in a row have not lowered the loss. Each request pays for the length of its
prompt, so the choice is the smallest number whose loss is within one standard error of the lowest, paired over the
examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from tunewise.contract.study import AllowanceUsedUpError, Reading, Study
from tunewise.data.task import Example, sample

QUESTIONS = 24  # validation examples that every candidate of a choice is tried on
_COUNTED = 6  # of them, whose tokens stand for all where there are no weights
_WITHOUT_GAIN = 2  # numbers in a row


def questions_of(study: Study) -> Sequence[Example]:
    """Return the validation examples that every candidate is tried on."""
    return sample(study.task.validation, QUESTIONS)


@dataclass(frozen=True)
class CountChoice:
    """Holds the number that was chosen, the losses of the examples by number, and what was left untried and why."""

    chosen: int
    losses: dict[int, list[float]]
    untried: str

    @property
    def means(self) -> dict[str, float]:
        """Return the mean loss by number, as a finding."""
        return {str(count): fmean(losses) for count, losses in self.losses.items()}

    @property
    def reason(self) -> str:
        """Say why a number was chosen that has not the lowest loss; empty if it has."""
        if self.chosen not in self.losses:
            return f"{self.chosen}, untried"
        best = _best(self.losses)
        return "" if best == self.chosen else f"{self.chosen}, as good as {best} within one standard error"


def from_few(counts: Iterable[int], study: Study, what: str) -> CountChoice | None:
    """Try the numbers in turn and choose one; None where there is no number to try.

    Args:
        counts: the numbers in rising order; each is in force when it has been drawn.
        study: what gives the losses, within its allowance. If it does not cover one example or passage, that number is
            chosen untried.
        what: what is counted, in the plural.
    """
    questions, losses, untried = questions_of(study), dict[int, list[float]](), ""
    for count in counts:
        study.report(f"trying {count} {what} on validation", len(losses), 0)
        try:
            losses[count] = study.losses(questions)
        except AllowanceUsedUpError:
            untried = f"{count} and more {what}: the allowance of {study.allowance.tokens:,} tokens does not cover them"
            break
        best = _best(losses)
        if list(losses).index(best) < len(losses) - _WITHOUT_GAIN:
            untried = f"more than {count} {what}: no gain from {best} to {count}"
            break
    if not losses and not untried:
        return None
    covers_one = any(count >= 1 for count in losses) or not untried
    return CountChoice(smallest_as_good(losses) if covers_one else 1, losses, untried)


def _best(losses: dict[int, list[float]]) -> int:
    return min(losses, key=lambda count: (fmean(losses[count]), count))


def smallest_as_good(losses: dict[int, list[float]]) -> int:
    """Return the smallest number whose mean loss is within one standard error of the lowest mean.

    The standard error is that of the mean difference over the same examples.
    """
    lowest = losses[_best(losses)]
    return min(count for count in losses if _as_good(losses[count], lowest))


def _as_good(losses: Sequence[float], lowest: Sequence[float]) -> bool:
    differences = [mine - other for mine, other in zip(losses, lowest, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return fmean(differences) <= error


def unread(study: Study) -> Study:
    """Return the study for a base without weights: it counts what is read, and each loss is lower than the one before.

    A choice on it goes as far as the allowance lets it. It is made on few questions, each of which counts for several.
    """
    looks, questions = 0, questions_of(study)
    few = questions[:_COUNTED]

    def lay_out(examples: Sequence[Example]) -> Reading:
        nonlocal looks
        looks += 1
        tokens = study.lay_out(examples).tokens * len(questions) / max(len(few), 1)
        return _Unread(round(tokens), len(examples), -float(looks))

    return replace(study, task=replace(study.task, validation=tuple(few)), lay_out=lay_out)


@dataclass(frozen=True)
class _Unread:
    tokens: int
    examples: int
    loss: float

    def losses(self) -> list[tuple[float, int]]:
        return [(self.loss, 1)] * self.examples
