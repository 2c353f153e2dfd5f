"""Checks the fields of a PEFT configuration, which may be anybody's, before PEFT sees them.

Types are those that PEFT declares, and numbers are bounded: PEFT allocates as much as they say. Texts are names: PEFT
reads most of them as regular expressions, and one that is written for it can take for ever.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tunewise.core.errors import SettingError
from tunewise.core.numbers import is_finite
from tunewise.core.text import show

# Fields that nothing is built from: what is imported, from where anything is loaded, how it is run.
NOT_SETTINGS = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"}
NOT_SETTINGS |= {"peft_version", "megatron_config", "megatron_core", "runtime_config", "tokenizer_name_or_path"}
NOT_SETTINGS |= {"tokenizer_kwargs"}
_NAME = re.compile(r"\^?[\w.-]*", re.ASCII)  # a leading ^ says that a path begins there
# What numbers are at most, by the end of the field's name; the first that fits counts.
_MOST: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile(r".*(seed|prng_key)"), 2**64),  # of random numbers
    (re.compile(r".*(indices|tokens)"), 2**31),  # ids of tokens
    (re.compile(r".*(terms|niter|depth|factor|n_splits|n_tasks|n_skills|layers)"), 256),  # repetitions
    (re.compile(r"(.*_)?(r|rank)|u|rank_pattern|.*size|.*_len|vector_length"), 8192),  # a side of a matrix
    (re.compile(r"num_.*"), 2**16),  # of vectors, of subspaces
    (re.compile(r".*"), 10**6),
)


def check_values(name: str, config: type[Any], values: Mapping[str, Any]) -> None:
    """Refuse values of another type than PEFT declares, and numbers out of bounds.

    Args:
        name: the method, for errors.
        config: PEFT's configuration class of the method.
        values: by field; fields that PEFT does not have are not looked at.

    Raises:
        SettingError: names the field.
    """
    declared = get_type_hints(config)
    for field, value in values.items():
        if field not in declared:
            continue
        fits = _fits_pattern if field.endswith("_pattern") and isinstance(value, dict) else _fits
        if value is not None and not fits(value, declared[field]):
            raise SettingError(f"{name} has {field}={_shown(value)}, which is not of the type that PEFT declares")
        most = next(limit for pattern, limit in _MOST if pattern.fullmatch(field))
        for number in _leaves(value, (int, float)):
            if not is_finite(number) or abs(number) > most:
                raise SettingError(f"{name} has {field}={_shown(value)}, and numbers up to {most:,} are taken there")


def check_names(name: str, values: Mapping[str, Any]) -> None:
    """Refuse a text that is no name: no regular expression is run.

    Raises:
        SettingError: names the field.
    """
    for field, value in values.items():
        for text in _leaves(value, (str,)):
            if not is_name(text):
                raise SettingError(
                    f"{name} has {field}={_shown(text)}, a regular expression, and none is run; write names of "
                    "modules, or ends of their paths, as a list"
                )


def is_name(text: str) -> bool:
    """Tell whether a text is a name or a path of modules, which as a regular expression means itself."""
    return _NAME.fullmatch(text) is not None


def value_of(path: str, values: Mapping[str, Any]) -> Any:
    """Return the value of the first name that is a path or its end, as PEFT does; None where there is none."""
    for name, value in values.items():
        if path == name.removeprefix("^") or (not name.startswith("^") and path.endswith(f".{name}")):
            return value
    return None


def _leaves(value: Any, kinds: tuple[type, ...]) -> Iterator[Any]:
    """Yield the values of these types in a field, the keys of objects included; true and false are no numbers."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(key, kinds)
            yield from _leaves(each, kinds)
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _leaves(each, kinds)
    elif isinstance(value, kinds) and not isinstance(value, bool):
        yield value


def _fits_pattern(value: dict[str, Any], declared: object) -> bool:
    """Tell whether an object holds a number for each name, or AdaLoRA's list of the ranks that it kept."""
    return all(_fits(each, int | float | list[bool]) for each in value.values())


def _fits(value: Any, declared: object) -> bool:
    """Tell whether a JSON value has a declared type; PEFT takes whole numbers as floats and the other way round."""
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:  # PEFT's list of values is not complete; it checks them itself
        return any(type(value) is type(each) for each in inner)
    if (origin or declared) in (list, tuple, set):
        return isinstance(value, (list, tuple)) and all(_fits(each, inner[0]) for each in value if inner)
    if (origin or declared) is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values() if inner)
    check = _PLAIN.get(declared, lambda value: isinstance(value, (dict, str)))  # an enumeration or a class of PEFT's
    return check(value)


_PLAIN: Mapping[object, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    float: lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    types.NoneType: lambda value: value is None,
    Any: lambda value: True,
}


def _shown(value: object) -> str:
    return show(repr(value), 80)
