"""Finds a learning rate and settings on validation, for every technique within the same allowance of training.

Successive halving (Jamieson & Talwalkar 2016): candidates train a quarter of the steps; the better half of the rates
goes on to half of them; then settings are varied at the best rate, a quarter each; what is best then is trained to the
end, and that run is the winner's first seed. A candidate's schedule is that of the whole run throughout and it goes on
from its checkpoint, so the end is to the bit what training it alone would have given.

Libraries of schedulers decide as results come in (asynchronously), so that what they spend depends on the order of the
candidates. Here every technique's spending is the same, and known before.
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
    """What training a share of the steps gave; without a loss it failed, for a reason."""

    validation_loss: float | None
    reason: str | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    nll_rise: float | None = None


Train = Callable[[Technique, float], Outcome]  # trains a recipe for a share of the steps


@dataclass(frozen=True)
class Plan:
    """How many rates and how many variations of settings are tried."""

    rates: int
    variations: int

    @classmethod
    def within(cls, allowance: int, grid: int) -> Plan:
        """The most that costs at most `allowance` whole trainings, the winner's first one included.

        A rate costs a quarter, the two best another quarter each, a variation a quarter, and the end what is then
        missing: three quarters where a variation wins, else a half.
        """
        quarters = 4 * allowance
        if quarters < 8:
            return cls(1, 0)
        rates = min(grid, quarters - 4)
        return cls(rates, max(quarters - rates - 2 - 3, 0))


def find(
    technique: Technique, allowance: int, train: Train, held: Collection[str] = ()
) -> tuple[Technique, list[SearchTrial]]:
    """The best recipe around a resolved one, and what was tried.

    Args:
        technique: where to start.
        allowance: whole trainings that may be spent, the winner's first one included; 1 searches nothing.
        train: trains a recipe for a share of the steps and says how well it does there; no loss is a failure.
        held: settings as "lora.r" that were given and are not varied.
    """
    plan = Plan.within(allowance, len(technique.search_grid))
    if not technique.trains or plan.rates < 2:
        return technique, []
    tried: dict[Technique, Outcome] = {}

    def up_to(recipe: Technique, share: float) -> float:
        tried[recipe] = train(recipe, share)
        return _loss(tried[recipe])

    first = {recipe: up_to(recipe, _QUARTER) for recipe in technique.search(plan.rates)}
    better = sorted(first, key=lambda recipe: first[recipe])[:2]
    best = min(better, key=lambda recipe: up_to(recipe, _HALF))
    variations = {recipe: up_to(recipe, _QUARTER) for recipe in best.varied(held)[: plan.variations]}
    winner = min([best, *variations], key=lambda recipe: variations.get(recipe, first[best]))
    return winner, [_entry(recipe, technique, outcome, recipe == winner) for recipe, outcome in tried.items()]


def _loss(outcome: Outcome) -> float:
    loss = outcome.validation_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _entry(recipe: Technique, start: Technique, outcome: Outcome, won: bool) -> SearchTrial:
    return SearchTrial(
        learning_rate=rate_of(recipe),
        settings=_changed(start.to_json()["settings"], recipe.to_json()["settings"]),
        steps=outcome.steps,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        validation_loss=outcome.validation_loss,
        nll_rise=outcome.nll_rise,
        reason=outcome.reason,
        won=won,
    )


def _changed(before: Settings, after: Settings, prefix: str = "") -> Settings:
    """The settings that differ, the learning rate apart; those of composed techniques by "part.setting"."""
    changed: Settings = {}
    for name, value in after.items():
        earlier = before[name]
        if isinstance(value, dict) and isinstance(earlier, dict):
            changed |= _changed(earlier, value, f"{name}.")
        elif name != "learning_rate" and value != earlier:
            changed[prefix + name] = value
    return changed


def rate_of(recipe: Technique) -> float | None:
    """The learning rate, or that of the first part that trains."""
    parts = [part for part in getattr(recipe, "parts", (recipe,)) if part.trains]
    return getattr(parts[0], "learning_rate", None) if parts else None
