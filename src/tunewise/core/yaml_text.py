"""Reads YAML from users within bounds of size, depth and number, so that no file takes long or much memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import yaml

MOST_CHARACTERS = 256_000
DEEPEST = 32
MOST_NODES = 20_000


_T = TypeVar("_T")


class YamlTextError(ValueError):
    """A text is not YAML, or more than is read as settings; the message is one line."""


@dataclass(frozen=True)
class PlacedValue:
    """Holds a value of a YAML text with its place.

    Attributes:
        value: what `read_yaml` would return for it.
        line: the number of its line, from 1; of a value in a mapping, the line of its key.
        parts: the values in it: of a mapping by the text of their keys, of a list by their numbers from 0.
    """

    value: object
    line: int
    parts: Mapping[str, PlacedValue] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Loads plain values; refuses aliases, which can multiply, and what is too deep or too much."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise YamlTextError("aliases (*name) are not read; write the value out")
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._depth > DEEPEST:
            raise YamlTextError(f"it is nested more than {DEEPEST} deep")
        if self._nodes > MOST_NODES:
            raise YamlTextError(f"it holds more than {MOST_NODES:,} values")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def read_yaml(text: str) -> object:
    """Return the value of a YAML text.

    Raises:
        YamlTextError: it is not YAML, or exceeds the bounds.

    Examples:
        >>> read_yaml("r: 8")
        {'r': 8}
    """
    return _read(text, lambda loader: loader.get_single_data())


def read_placed_yaml(text: str) -> PlacedValue:
    r"""Return the value of a YAML text, and all values in it, with their lines.

    Raises:
        YamlTextError: it is not YAML, exceeds the bounds, or has a key that is given twice or is no plain word.

    Examples:
        >>> read_placed_yaml("lora:\n  r: 8").parts["lora"].parts["r"].line
        2
    """

    def placed(loader: _Loader) -> PlacedValue:
        node = loader.get_single_node()
        return PlacedValue(None, 1) if node is None else _placed(loader, node, node.start_mark.line + 1)

    return _read(text, placed)


def _placed(loader: _Loader, node: yaml.Node, line: int) -> PlacedValue:
    parts: dict[str, PlacedValue] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key_line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise YamlTextError(f"line {key_line}: only plain words are read as keys; write the settings out")
            if key.value in parts:
                raise YamlTextError(f'line {key_line}: "{key.value[:60]}" is given a second time')
            parts[key.value] = _placed(loader, value, key_line)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            parts[str(number)] = _placed(loader, item, item.start_mark.line + 1)
    return PlacedValue(loader.construct_object(node, deep=True), line, parts)


def _read(text: str, load: Callable[[_Loader], _T]) -> _T:
    """Load a text within the bounds; whatever goes wrong is a `YamlTextError`."""
    if len(text) > MOST_CHARACTERS:
        raise YamlTextError(f"it has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read")
    if text.count("[") + text.count("{") > MOST_NODES:  # the scanner itself is slow on many of them
        raise YamlTextError(f"it holds more than {MOST_NODES:,} lists and mappings")
    try:
        loader = _Loader(text)
        try:
            return load(loader)
        finally:
            loader.dispose()
    except YamlTextError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        # Beside YAML's own errors: a date that does not exist, a number of too many digits, a list as a key.
        raise YamlTextError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    except (LookupError, AttributeError) as error:  # what YAML's reader makes of `!!bool maybe` or `!!int ''`
        raise YamlTextError("a value is not of the type that its tag (!!) names") from error
