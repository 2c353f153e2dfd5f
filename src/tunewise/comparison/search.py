"""Finds a learning rate and settings on validation, for every technique within the same allowance of training.

Successive halving (Jamieson & Talwalkar 2016): every candidate learning rate trains for a quarter of the steps, and the
two best train on to half of them. Then settings are varied at the best rate, a quarter of the steps each. The best of
these is trained to the end, and that run is the winner's first seed. A candidate follows the learning-rate schedule of
the whole run and resumes from its checkpoint, so the result is bit for bit that of training it in one go.

Scheduler libraries decide asynchronously, as results come in, so what they spend depends on the order of the
candidates. Here every technique may spend the same, and how much is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tunewise.contract.technique import Technique
from tunewise.results.schema import SearchTrial, Settings

_QUARTER, _HALF = 0.25, 0.5


@dataclass(frozen=True)
class Outcome:
    """Holds the result of training for a share of the steps; without a loss, training failed for the given reason."""

    validation_loss: float | None
    reason: str | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    nll_rise: float | None = None


Train = Callable[[Technique, float], Outcome]  # trains a recipe for a share of the steps


@dataclass(frozen=True)
class Plan:
    """Says how many learning rates and how many variations of the settings are tried."""

    rates: int
    variations: int

    @classmethod
    def within(cls, allowance: int, grid: int) -> Plan:
        """Return the largest plan that costs at most `allowance` full trainings, the winner's first seed included.

        In quarters of a training: 1 per rate, 1 more for each of the two best, 1 per variation, and to train the
        winner to its end 3 if it is a variation, else 2.

            rates + 2 + variations + 3 <= 4 * allowance
        """
        quarters = 4 * allowance
        if quarters < 8:
            return cls(1, 0)
        rates = min(grid, quarters - 4)
        return cls(rates, max(quarters - rates - 2 - 3, 0))


def find(
    technique: Technique, allowance: int, train: Train, held: Collection[str] = ()
) -> tuple[Technique, list[SearchTrial]]:
    """Search the best recipe around a resolved one.

    Args:
        technique: the recipe to start from.
        allowance: full trainings that may be spent, the winner's first seed included; 1 searches nothing.
        train: trains a recipe for a share of the steps and returns the outcome; one without a loss is a failure.
        held: settings such as "lora.r" that the user chose and that are not varied.

    Returns:
        The best recipe, and every trial of the search.
    """
    plan = Plan.within(allowance, len(technique.search_grid))
    if not technique.trains or plan.rates < 2:
        return technique, []
    outcomes: dict[Technique, Outcome] = {}

    def loss_after(share: float, recipe: Technique) -> float:
        outcomes[recipe] = train(recipe, share)
        return _ranking_loss(outcomes[recipe])

    rates = {recipe: loss_after(_QUARTER, recipe) for recipe in technique.search(plan.rates)}
    two_best = sorted(rates, key=lambda recipe: rates[recipe])[:2]
    best = min(two_best, key=lambda recipe: loss_after(_HALF, recipe))
    variations = {recipe: loss_after(_QUARTER, recipe) for recipe in best.varied(held)[: plan.variations]}
    winner = min([best, *variations], key=lambda recipe: variations.get(recipe, rates[best]))
    return winner, [_search_trial(recipe, technique, outcome, recipe == winner) for recipe, outcome in outcomes.items()]


def _ranking_loss(outcome: Outcome) -> float:
    loss = outcome.validation_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _search_trial(recipe: Technique, start: Technique, outcome: Outcome, won: bool) -> SearchTrial:
    return SearchTrial(
        learning_rate=rate_of(recipe),
        settings=_changed_settings(start.to_json()["settings"], recipe.to_json()["settings"]),
        steps=outcome.steps,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        validation_loss=outcome.validation_loss,
        nll_rise=outcome.nll_rise,
        reason=outcome.reason,
        won=won,
    )


def _changed_settings(before: Settings, after: Settings, prefix: str = "") -> Settings:
    """Return the settings that differ, except the learning rate; those of composed techniques as "part.setting"."""
    changed: Settings = {}
    for name, value in after.items():
        earlier = before[name]
        if isinstance(value, dict) and isinstance(earlier, dict):
            changed |= _changed_settings(earlier, value, f"{name}.")
        elif name != "learning_rate" and value != earlier:
            changed[prefix + name] = value
    return changed


def rate_of(recipe: Technique) -> float | None:
    """Return the learning rate of a recipe, or that of its first part that trains; None if nothing trains."""
    parts = [part for part in getattr(recipe, "parts", (recipe,)) if part.trains]
    return getattr(parts[0], "learning_rate", None) if parts else None
