"""Finds a learning rate and settings on validation, for every technique within the same allowance of training.

Successive halving (Jamieson & Talwalkar 2016): every candidate learning rate trains for a quarter of the steps, then
settings are varied at the best rate, a quarter of the steps each. Where the allowance has room for it, the two best of
all these train for half of the steps. The winner is then trained for all of them, which is its first seed.

Each of these trainings is a whole one: it begins at the start, and its learning rate and its phases follow a schedule
of its own steps. A technique that chooses weights half-way has therefore trained the chosen ones, so that its loss
depends on how many they are. Nothing is trained on from an earlier stage: what was trained there counts as spent.

Scheduler libraries decide asynchronously, as results come in, so what they spend depends on the order of the
candidates. Here every technique may spend the same, and how much is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tunewise.contract.technique import Technique
from tunewise.results.schema import SearchTrial, Settings

QUARTER, HALF = 0.25, 0.5
_FINALISTS = 2


@dataclass(frozen=True)
class Outcome:
    """Holds the result of training for a share of the steps; without a loss, training failed for the given reason.

    `preparing_tokens` were read, in `preparing_seconds`, before its first step and by no training before it.
    """

    validation_loss: float | None
    reason: str | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    preparing_tokens: int | None = None
    preparing_seconds: float | None = None
    nll_rise: float | None = None


Train = Callable[[Technique, float], Outcome]  # trains a recipe for a share of the steps, from the start
TrainAll = Callable[[Sequence[Technique], float], Sequence[Outcome]]  # the same for several, in their order


@dataclass(frozen=True)
class Plan:
    """Says how many learning rates, variations of the settings and finalists are trained."""

    rates: int
    variations: int = 0
    finalists: int = 0

    @classmethod
    def within(cls, allowance: int, grid: int, variations: int) -> Plan:
        """Return the largest plan that costs at most `allowance` full trainings, the winner's first seed included.

        In quarters of a training: 1 per rate, 1 per variation, 2 for each of two finalists, 4 for the winner.

            rates + variations + 2 * finalists + 4 <= 4 * allowance

        Args:
            allowance: full trainings.
            grid: learning rates that there are to try.
            variations: variations of the settings that there are to try.
        """
        quarters = 4 * allowance - 4
        if quarters < 2:
            return cls(1)
        rates = min(grid, quarters)
        tried = min(variations, quarters - rates)
        return cls(rates, tried, _FINALISTS if quarters - rates - tried >= 2 * _FINALISTS else 0)

    @classmethod
    def of(cls, technique: Technique, allowance: int, held: Collection[str] = ()) -> Plan:
        """Return the plan for a resolved recipe; one rate where there is nothing to search."""
        if not technique.trains:
            return cls(1)
        return cls.within(allowance, len(technique.search_grid), len(technique.varied(held)))


def find(
    technique: Technique,
    allowance: int,
    train: Train,
    held: Collection[str] = (),
    train_all: TrainAll | None = None,
) -> tuple[Technique, list[SearchTrial]]:
    """Search the best recipe around a resolved one.

    Args:
        technique: the recipe to start from.
        allowance: full trainings that may be spent, the winner's first seed included; 1 searches nothing.
        train: trains a recipe for a share of the steps and returns the outcome; one without a loss is a failure.
        held: settings such as "lora.r" that the user chose and that are not varied.
        train_all: trains the candidates of one round, possibly at once; default: one after the other with `train`.

    Returns:
        The best recipe, and every recipe that the search tried.
    """
    plan = Plan.of(technique, allowance, held)
    if plan.rates < 2:
        return technique, []
    outcomes: dict[Technique, list[Outcome]] = {}

    def losses_after(share: float, recipes: Sequence[Technique]) -> dict[Technique, float]:
        tried = train_all(recipes, share) if train_all is not None else [train(recipe, share) for recipe in recipes]
        for recipe, outcome in zip(recipes, tried, strict=True):
            outcomes.setdefault(recipe, []).append(outcome)
        return {recipe: _ranking_loss(outcome) for recipe, outcome in zip(recipes, tried, strict=True)}

    losses = losses_after(QUARTER, technique.search(plan.rates))
    best_rate = min(losses, key=lambda recipe: losses[recipe])
    losses |= losses_after(QUARTER, best_rate.varied(held)[: plan.variations])
    best_first = sorted(losses, key=lambda recipe: losses[recipe])
    finals = losses_after(HALF, best_first[: plan.finalists])
    winner = min(finals, key=lambda recipe: finals[recipe], default=best_first[0])
    return winner, [_search_trial(recipe, technique, tried, recipe == winner) for recipe, tried in outcomes.items()]


def preparations(technique: Technique, allowance: int, held: Collection[str] = ()) -> int:
    """Count what a search prepares: candidates that differ in nothing that is read before training share one.

    It is at least 1, for the winner. Settings are counted as varied at the default rate.
    """
    plan = Plan.of(technique, allowance, held)
    if plan.rates < 2:
        return 1
    candidates = [*technique.search(plan.rates), *technique.varied(held)[: plan.variations]]
    return len({repr(candidate.preparation()) for candidate in candidates})


def _ranking_loss(outcome: Outcome) -> float:
    loss = outcome.validation_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _search_trial(recipe: Technique, start: Technique, outcomes: list[Outcome], won: bool) -> SearchTrial:
    """Describe a recipe by its last training that did not fail, or by its failure if there is none."""
    trained = [outcome for outcome in outcomes if outcome.reason is None]
    outcome = (trained or outcomes)[-1]
    return SearchTrial(
        learning_rate=rate_of(recipe),
        settings=_changed_settings(start.to_json()["settings"], recipe.to_json()["settings"]),
        steps=outcome.steps,
        total_steps=sum(each.steps or 0 for each in trained) or None,
        tokens=sum(each.tokens or 0 for each in trained) if outcome.tokens is not None else None,
        seconds=sum(each.seconds or 0.0 for each in trained) if outcome.seconds is not None else None,
        preparing_tokens=sum(each.preparing_tokens or 0 for each in trained) or None,
        preparing_seconds=sum(each.preparing_seconds or 0.0 for each in trained) or None,
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
