"""Hyper-parameters of a recipe: their defaults, ranges and help, and how a value is checked."""

from __future__ import annotations

from dataclasses import MISSING, Field, field
from typing import Any

from tunewise.core.errors import SettingError
from tunewise.core.numbers import is_finite
from tunewise.core.text import is_encodable, show


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    search: tuple[Any, ...] = (),
) -> Any:
    """Declare a hyper-parameter: default, one sentence of help, range or choices, and the values that a search tries.

    Only the one or two settings that matter most after the learning rate have values in `search`.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Scaling:
        ...     scale: float = setting(1.0, "Factor of the update.", low=0.0, search=(0.5, 1.0, 2.0))
        >>> Scaling().scale
        1.0
    """
    facts = {"help": help, "low": low, "high": high, "choices": choices, "search": search}
    return field(default=default, metadata=facts)


def learning_rate() -> Any:
    """Declare the learning rate of a technique that trains; None stands for the default for the model's width."""
    return setting(None, "AdamW step size; default: see `reference_rate`.", low=0.0, high=100.0)


def checked(technique: str, item: Field[Any], value: Any) -> Any:
    """Return the value in the setting's type, or raise a SettingError that names setting, value and range."""
    where = f"{technique}.{item.name}"
    help_, low, high = item.metadata["help"], item.metadata["low"], item.metadata["high"]
    choices, default = item.metadata["choices"], item.default
    if value is None and default is None:
        return None
    if isinstance(value, list):
        value = tuple(value)
    shown = show(repr(value), 100)
    if isinstance(default, tuple):
        if isinstance(value, tuple) and all(isinstance(part, str) and is_encodable(part) for part in value):
            return value
        raise SettingError(f"{where} is {shown} but must be a list of names ({help_})")
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise SettingError(f"{where} is {shown} but must be true or false ({help_})")
        return value
    if isinstance(default, str):
        if not isinstance(value, str) or not is_encodable(value) or (choices and value not in choices):
            allowed = f"one of {', '.join(choices)}" if choices else "text"
            raise SettingError(f"{where} is {shown} but must be {allowed} ({help_})")
        return value
    number = int if isinstance(default, int) else float
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)
    if not is_number or (number is int and value != int(value)):
        raise SettingError(f"{where} is {shown} but must be {'a whole' if number is int else 'a'} number ({help_})")
    if (low is not None and value < low) or (high is not None and value > high):
        raise SettingError(f"{where} is {shown} but must be between {low:g} and {high:g} ({help_})")
    return number(value)


def default_of(item: Field[Any]) -> Any:
    """Return the default of a recipe's field, for listings."""
    return None if item.default is MISSING else item.default
