"""Reads JSON and tool calls from a model's answer, which may hold anything.

What is longer or nested deeper than any real answer is not read at all, so that no answer takes long.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal, DecimalException
from typing import NamedTuple

MOST_CHARACTERS, DEEPEST = 1_000_000, 100
_LEXEMES = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?$)|[\[\]{}]', re.DOTALL)
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_VALUE_START = re.compile(r"[^\s;]")
_LIST_MARK = "[TOOL_CALLS]"  # of Mistral's templates


class Call(NamedTuple):
    """Holds the name of a tool and what it is called with, as a parsed JSON value whose numbers are decimals."""

    name: str
    arguments: object


class NotJsonError(ValueError):
    """A text is not JSON, or more than is read of an answer."""


def parse_json(text: str) -> object:
    """Parse a text that is one JSON value.

    Raises:
        NotJsonError: it is not JSON, is longer than `MOST_CHARACTERS` or nested deeper than `DEEPEST`.
    """
    _check_bounds(text)
    try:
        return _DECODER.decode(text)
    except (ValueError, DecimalException) as error:
        raise NotJsonError(str(error)) from None


def canonical(value: object) -> object:
    """Return a form of a parsed value that is equal and hashes alike for equal JSON: the order of keys is ignored.

    Numbers are equal by value, 1 and 1.0; true is not 1.
    """
    if isinstance(value, Mapping):
        return "object", frozenset((key, canonical(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", tuple(map(canonical, value))
    return type(value).__name__, value


def tool_calls(text: str) -> Counter[Call] | None:
    """Return the calls of `calls_of` with arguments in the form of `canonical`, each with how often it is made."""
    calls = calls_of(text)
    return None if calls is None else Counter(Call(call.name, canonical(call.arguments)) for call in calls)


def calls_of(text: str) -> list[Call] | None:
    """Return the calls that an answer makes, none where it makes none, or None where a call cannot be read.

    Calls are `<tool_call>` blocks with JSON inside, a JSON list after `[TOOL_CALLS]`, or an answer that is nothing but
    JSON objects or a list of them. An object has a `name` and `arguments` or `parameters`, which may be JSON text, or
    holds both under `function`.
    """
    if len(text) > MOST_CHARACTERS:
        return None
    is_marked = True
    try:
        if "<tool_call>" in text:
            values = [value for block in _BLOCK.findall(text) for value in _json_values(block)]
        elif _LIST_MARK in text:
            values = _json_values(text.partition(_LIST_MARK)[2])
        else:
            is_marked = False
            values = _json_values(text) if text.lstrip().startswith(("{", "[")) else []
    except NotJsonError:
        return None if is_marked else []
    calls = [call for value in values if (call := _call(value, needs_arguments=not is_marked)) is not None]
    if is_marked:
        return calls if calls and len(calls) == len(values) else None
    return calls if len(calls) == len(values) else []  # JSON that calls nothing is a text


def text_before_calls(text: str) -> str:
    """Return what an answer says before its first call."""
    places = [place for mark in ("<tool_call>", _LIST_MARK) if (place := text.find(mark)) >= 0]
    return text[: min(places)].strip() if places else ""


def _json_values(text: str) -> list[object]:
    """Return JSON values that follow one another, parted by white space or semicolons; a list counts as its items."""
    _check_bounds(text)
    values: list[object] = []
    place = 0
    while (start := _VALUE_START.search(text, place)) is not None:
        try:
            value, place = _DECODER.raw_decode(text, start.start())
        except (ValueError, DecimalException) as error:
            raise NotJsonError(str(error)) from None
        values += value if isinstance(value, list) else [value]
    return values


def _call(value: object, *, needs_arguments: bool) -> Call | None:
    """Return the call that a JSON object describes, or None."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    key = next((key for key in ("arguments", "parameters") if key in value), None)
    if key is None and needs_arguments:
        return None
    arguments = value[key] if key is not None else None
    if isinstance(arguments, str):
        with suppress(NotJsonError):
            arguments = parse_json(arguments)
    return Call(value["name"], {} if arguments is None else arguments)


def _check_bounds(text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise NotJsonError(f"it has {len(text):,} characters and at most {MOST_CHARACTERS:,} are read")
    depth = 0
    for lexeme in _LEXEMES.finditer(text):
        first = lexeme[0][0]
        if first in "[{":
            depth += 1
            if depth > DEEPEST:
                raise NotJsonError(f"it is nested deeper than {DEEPEST}")
        elif first in "]}":
            depth -= 1


def _refuse_constant(name: str) -> object:
    raise NotJsonError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse_constant)
