"""Counts what a chat template costs while it is rendered, and ends it at a limit.

A cost is a number of characters that are read or written. A step, an entry of a list and an operation cost a few
characters each, so that one number bounds the time as well as the memory: what an operation makes is never larger than
what it cost, and what can make much of little is asked before it runs. The clock is not asked: a template that is
refused is refused on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

STEP = 8  # of a pass of a loop, or an entry that is looked at
_OPERATION = 16  # of an operator, a filter or a test
_CALL = 64  # of a macro, a function or a method
_BASE = 1 << 22  # half a million steps, less than a second
_PER_CHARACTER = 128  # of the conversation: how often a template reads what it is given
_ENTRY = 8  # of a list that is made
_PIECE = 24  # of a text that is split
_REPR = 8  # a character takes up to ten where a text is shown in quotes
_DEPTH = 200  # of lists within lists
_BITS = 4096  # of an integer
_WIDTH = 1000  # of a column, an indent or a precision


class TemplateLimitError(Exception):
    """A chat template takes more steps, or more memory, than a conversation needs."""


class Allowance:
    """Holds what one rendering may still cost.

    Args:
        given: what the template is given. Nothing in it may change, or be freed, while the allowance is used.
    """

    def __init__(self, given: object = ()) -> None:
        self._given = given
        self._sizes: dict[int, int] = {}  # of the containers in it, by identity
        self._left = _BASE + _PER_CHARACTER * self._measured(given)

    def spend(self, cost: int) -> None:
        """Take a cost off.

        Raises:
            TemplateLimitError: there is not so much left.
        """
        self._left -= cost
        if self._left < 0:
            raise TemplateLimitError

    def size(self, value: object, indent: int = 0) -> int:
        """Return how many characters and entries a value has, where a list within lists counts as often as it stands.

        Args:
            value: any value of a template.
            indent: characters before an entry, for each list around it.

        Raises:
            TemplateLimitError: there are more than what is left, or lists are nested too deeply to be compared.
        """
        if isinstance(value, str):
            return len(value) + 1
        total, waiting = 0, [(value, 0)]
        while waiting:
            value, depth = waiting.pop()
            known = None if indent else self._sizes.get(id(value))
            total += STEP + indent * depth if known is None else known
            if isinstance(value, str):
                total += len(value)
            elif isinstance(value, int):
                total += value.bit_length() >> 3
            elif known is None:
                waiting.extend((entry, depth + 1) for entry in _entries(value))
            if depth > _DEPTH or total + STEP * len(waiting) > self._left:
                raise TemplateLimitError
        return total

    def _measured(self, value: object) -> int:
        if isinstance(value, str):
            return len(value) + 1
        if not isinstance(value, dict | list):
            return 1
        total = 1
        for entry in _entries(value):
            total += self._measured(entry)
        self._sizes[id(value)] = total
        return total


def _entries(value: object) -> list[object]:
    """Return what a container holds; a namespace, a loop and a macro show nothing of what they hold."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, range, *_VIEWS)):
        return list(cast(Iterable[object], value))
    return []


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_SIZED = (str, list, tuple, dict, range, *_VIEWS)
_current: ContextVar[Allowance] = ContextVar("allowance")


@contextmanager
def allowing(given: object = ()) -> Iterator[None]:
    """Allow what a rendering of these inputs needs, in this thread and until the block ends."""
    token = _current.set(Allowance(given))
    try:
        yield
    finally:
        _current.reset(token)


def spend(cost: int = STEP) -> bool:
    """Take a cost off the rendering that is under way; returns True, so that it can stand in a condition."""
    _current.get().spend(cost)
    return True


def read(value: Any) -> Any:
    """Return a value whose text is read, shown or compared to its last entry."""
    return _spent(value, _current.get().size(value))


def show(value: Any) -> Any:
    """Return a value that is written as text."""
    return _spent(value, (1 if isinstance(value, str) else _REPR) * _current.get().size(value))


def search(value: Any) -> Any:
    """Return a value in which something is searched: keys of a dictionary are found without reading it."""
    return _spent(value, STEP) if isinstance(value, dict) else read(value)


def copy(value: Any) -> Any:
    """Return a value of which a part is copied, without what its entries hold."""
    return _spent(value, _length(value))


def _spent(value: Any, cost: int) -> Any:
    _current.get().spend(cost)
    return value


def _length(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    return _ENTRY * _count(value)


def _count(value: object) -> int:
    return len(cast(Sized, value)) if isinstance(value, _SIZED) else 0


def counted(items: Iterator[Any]) -> Iterator[Any]:
    """Yield what a filter yields one by one, for a step each."""
    for item in items:
        spend()
        yield item


# Operators.


def operate(operator: str, left: Any, right: Any) -> None:
    """Ask for what `left operator right` costs before it is computed."""
    if isinstance(left, str) and operator == "%":
        percent(left, right)
    elif operator == "*" and (isinstance(left, _SIZED) or isinstance(right, _SIZED)):
        sequence, times = (left, right) if isinstance(left, _SIZED) else (right, left)
        spend(_OPERATION + _length(sequence) * max(_integer(times), 1))
    elif isinstance(left, int) and isinstance(right, int):
        bits, more = left.bit_length(), right.bit_length()
        product = bits * abs(right) if operator == "**" and more < 16 else bits + more
        if max(bits, more, product) > _BITS or (operator == "**" and more >= 16 and bits > 1):
            raise TemplateLimitError
        spend(_OPERATION)
    else:
        spend(_OPERATION + _length(left) + _length(right))


def percent(text: str, values: object) -> None:
    """Ask for what `text % values` costs."""
    widths = 0
    for match in re.finditer(r"%(?:\([^()]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?", text):
        if "*" in match.groups() or any(_too_wide(group) for group in match.groups()):
            raise TemplateLimitError
        widths += sum(int(group) for group in match.groups() if group)
    spend(_OPERATION + len(text) + widths + text.count("%") * _REPR * _current.get().size(values))


def field_format(value: object, specification: str) -> None:
    """Ask for what a field of `str.format` costs."""
    if any(_too_wide(digits) for digits in re.findall(r"\d+", specification)):
        raise TemplateLimitError
    spend(_WIDTH + _REPR * _current.get().size(value))


def _too_wide(digits: str | None) -> bool:
    return bool(digits) and (len(str(digits)) > 4 or int(str(digits)) > _WIDTH)


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _width(value: object) -> None:
    if abs(_integer(value)) > _WIDTH:
        raise TemplateLimitError


# Filters and tests: what they cost besides the size of their arguments.

# They look at how many entries there are, not into them.
SHALLOW_FILTERS = frozenset(
    {"batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr"}
    | {"reverse", "select", "selectattr", "slice"}
)
SHALLOW_TESTS = frozenset(
    {"boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable", "mapping"}
    | {"none", "number", "sameas", "sequence", "string", "test", "true", "undefined"}
)
GATHERED = frozenset({"batch", "groupby", "join", "max", "min", "slice", "sort", "sum", "unique"})
_NUMBERS = frozenset({"divisibleby", "even", "odd", "round"})  # else they format or repeat a text


def apply(name: str, shallow: bool, value: Any, /, *args: Any, **named: Any) -> None:
    """Ask for what a filter or a test costs before it runs; a shallow one does not look into entries."""
    sizes: Callable[[object], int] = _length if shallow else _current.get().size
    spend(_OPERATION + sum(map(sizes, (value, *args, *named.values()))))
    if name in _NUMBERS and isinstance(value, _SIZED):
        raise TemplateLimitError
    further = _FURTHER.get(name)
    if further is not None:
        further(value, *args, **named)


def _replace(value: Any, old: Any = "", new: Any = "", count: Any = None, *_: Any) -> None:
    spend(str(value).count(str(old)) * len(str(new)))


def _join(values: Any, d: Any = "", *_: Any, **__: Any) -> None:
    spend(len(str(d)) * _count(values))


def _indent(value: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    _width(width)
    spend(len(str(value).splitlines()) * (len(width) if isinstance(width, str) else _integer(width)))


def _strip(value: Any, chars: Any = None) -> None:
    spend(len(str(value)) * len(chars) // _ENTRY if isinstance(chars, str) else 0)


def _of_width(value: Any, width: Any = 0, *_: Any, **named: Any) -> None:
    for number in (width, *(named.get(name) for name in ("linecount", "precision", "slices", "width"))):
        _width(number)
        spend(abs(_integer(number)))


def _json(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, *_: Any, **__: Any
) -> None:
    _width(indent)
    per_level = len(indent) if isinstance(indent, str) else _integer(indent)
    separated = sum(map(len, separators)) if separators else 2
    spend((6 if ensure_ascii else 2) * _current.get().size(value, indent=per_level) * max(separated // 2, 1))


def _squared(values: Any, *_: Any, **__: Any) -> None:
    """Pay for entries whose hashes may all be the same, or that are added up list by list."""
    spend(_count(values) * (_count(values) + _current.get().size(values)) // 16)


def _sorted(values: Any, *_: Any, **__: Any) -> None:
    spend(_ENTRY * _current.get().size(values))


def _format(value: Any, *args: Any, **named: Any) -> None:
    percent(str(value), args or named)


def _of_base(value: Any, default: Any = 0, base: Any = 10) -> None:
    spend(_ENTRY * _current.get().size(value))


def _characters(value: Any) -> None:
    spend(_PIECE * len(value) if isinstance(value, str) else 0)


_FURTHER: dict[str, Callable[..., None]] = {
    "batch": _of_width,
    "center": _of_width,
    "dictsort": _sorted,
    "format": _format,
    "groupby": _sorted,
    "indent": _indent,
    "int": _of_base,
    "join": _join,
    "list": _characters,
    "replace": _replace,
    "round": _of_width,
    "slice": _of_width,
    "sort": _sorted,
    "sum": _squared,
    "tojson": _json,
    "trim": _strip,
    "unique": _squared,
}

# Methods of texts, lists and dictionaries. Those that are not named here are not called.

_OF_STRIPPING = {"lstrip", "rstrip", "strip"}
_FROM_THE_END = {"rfind", "rindex", "rpartition", "rsplit"}  # such a search may take as long as both lengths multiplied
_OF_WIDTH = {"center", "expandtabs", "ljust", "rjust", "zfill"}
_OF_LISTS = {"copy", "count", "index"}
_OF_DICTIONARIES = {"copy", "get", "items", "keys", "values"}
METHODS = frozenset(
    {"capitalize", "casefold", "endswith", "find", "format", "format_map", "isalnum", "isalpha", "isascii"}
    | {"isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper"}
    | {"join", "lower", "partition", "removeprefix", "removesuffix", "replace", "split", "splitlines", "startswith"}
    | {"swapcase", "title", "upper"}
    | {"bit_length", "denominator", "imag", "is_integer", "numerator", "real"}
    | _OF_STRIPPING
    | _FROM_THE_END
    | _OF_WIDTH
    | _OF_LISTS
    | _OF_DICTIONARIES
)


def call_method(owner: Any, name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Ask for what a method of a text, a list or a dictionary costs before it is called."""
    given = (*args, *named.values())
    if not isinstance(owner, str):
        spend(_CALL + sum(map(_current.get().size, given)))
        if isinstance(owner, list | tuple):
            read(owner)
        elif name == "copy":
            copy(owner)
        return
    spend(_CALL + len(owner) + sum(map(_current.get().size, given)))
    first = named["sep"] if "sep" in named else given[0] if given else None
    if name in _OF_STRIPPING:
        _strip(owner, first)
    elif name == "replace" and len(given) > 1:
        _replace(owner, *given)
    elif name == "join":
        _join(first, owner)
    elif name in _OF_WIDTH:
        _width(first)
        spend(_WIDTH + (_WIDTH * owner.count("\t") if name == "expandtabs" else 0))
    if name in _FROM_THE_END and isinstance(first, str):
        spend(len(owner) * len(first) // _ENTRY)
    if name in ("split", "rsplit", "splitlines"):
        spend(_PIECE * (owner.count(first) if isinstance(first, str) and first else len(owner) // 4))


def call_function(args: Iterable[Any]) -> None:
    """Ask for what a call of a macro or of a function of the environment costs."""
    spend(_CALL + sum(map(_length, args)))
