"""Frozen dataclasses that are read from JSON strictly and written back with the keys that they were read with.

    @dataclass(frozen=True, kw_only=True)
    class Point(JsonRecord):
        x: float                        # JSON must have it
        name: str | None = None         # left out of JSON where it is None
        colour: str | None = nullable() # null in JSON where it is None; files of older versions may lack it

    Point.from_json({"x": 1, "name": "a"}, path).to_json()

Field types are JSON's (`bool`, `int`, `float`, `str`, `None`, `object` for any value), records, unions, `Literal`,
`tuple`, `dict[str, ...]`, and `Annotated` with a `Check`, under a name of its own where the check uses other names. A
whole number stays one where a `float` is declared, so that what was read is written to the same bytes.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from tunewise.core.errors import ArtifactError
from tunewise.core.numbers import is_finite
from tunewise.core.text import is_encodable

JsonObject: TypeAlias = dict[str, Any]  # an object of a JSON file, as the parser returns it

_NULLABLE = "nullable"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def nullable() -> Any:
    """Declare a field that is written as null where it is None, and that files of older versions may lack."""
    return field(default=None, metadata={_NULLABLE: True})


@dataclass(frozen=True)
class Check:
    """What a value must be beyond its type; stands in `Annotated`."""

    holds: Callable[[Any], bool]
    requirement: str


Count = Annotated[int, Check(lambda value: value >= 0, "at least 0")]
NonNegative = Annotated[float, Check(lambda value: value >= 0, "at least 0")]
Text = Annotated[str, Check(is_encodable, "text without lone surrogates")]  # what a tokenizer takes


class _MismatchError(Exception):
    """A value that is not as its record wants it: where, and what is wrong."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place or 'the file'}: {problem}")


@dataclass(frozen=True, kw_only=True)
class JsonRecord:
    """The base class of records that files hold; the module's docstring shows one.

    A subclass that adds fields to another's may give `ORDER`: all its keys, in the order in which they are written. A
    subclass whose fields depend on one another checks them in `__post_init__` and raises `ValueError`.
    """

    ORDER: ClassVar[tuple[str, ...]] = ()
    _keys: tuple[str, ...] = field(default=(), repr=False, compare=False)  # of the object that it was read from

    @classmethod
    def from_json(
        cls,
        value: object,
        source: Path | str = "",
        unlike: str = "not as tunewise writes it",
        remedy: str = "use a good copy of it or make it again",
    ) -> Self:
        """Read a record from what a file holds.

        Args:
            value: the content, as a JSON parser gives it.
            source: the file, for the error.
            unlike: what is said of a file that does not hold such a record.
            remedy: what is to be done then.

        Raises:
            ArtifactError: a field is missing, unknown or not of its type; it is named.
        """
        try:
            return _read_record(value, cls, "")
        except _MismatchError as error:
            raise ArtifactError(f"{source or cls.__name__}: {unlike} ({error}); {remedy}") from None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Give the keys that JSON may have, in their order."""
        return cls.ORDER or tuple(each.name for each in fields(cls) if each.name != "_keys")

    @classmethod
    def _class_of(cls, value: Mapping[str, object]) -> type[Self]:
        """Choose the class to read a value as: this one, or one derived from it."""
        return cls

    def _order(self) -> tuple[str, ...]:
        """Give the keys in the order in which they are written, where the record was not read from a file."""
        return self.names()

    def to_json(self) -> JsonObject:
        """Make the object that a file holds."""
        names = [*self._keys, *(name for name in self._order() if name not in self._keys)]
        return {name: _plain(getattr(self, name)) for name in names if self._is_written(name)}

    def extended(self, into: type[Extended], **values: object) -> Extended:
        """Make a record of a derived class: with the fields of this one, and these."""
        return into(**{**{each.name: getattr(self, each.name) for each in fields(self)}, **values})

    def _is_written(self, name: str) -> bool:
        value, declared = getattr(self, name), type(self).__dataclass_fields__[name]
        if name in self._keys or declared.default is MISSING:
            return True
        if self._keys:  # the file that it was read from lacked it: it is written if it was set since
            return value != declared.default
        return value is not None or _NULLABLE in declared.metadata


Extended = TypeVar("Extended", bound=JsonRecord)


@cache
def _types(record: type[Any]) -> dict[str, object]:
    hints = get_type_hints(record, include_extras=True)
    return {name: hints[name] for name in record.names()}


def _plain(value: object) -> object:
    if isinstance(value, JsonRecord):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _read_record(value: object, kind: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise _MismatchError(place, "must be an object")
    record = kind._class_of(value)
    declared = _types(record)
    inside = f"{place}." if place else ""
    for name in value:
        if name not in declared:
            raise _MismatchError(f"{inside}{ascii(name)[1:-1][:80]}", "is unknown")
    for name in declared:
        if name not in value and record.__dataclass_fields__[name].default is MISSING:
            raise _MismatchError(inside + name, "is missing")
    values = {name: _read(each, declared[name], inside + name) for name, each in value.items()}
    try:
        return record(**values, _keys=tuple(value))
    except ValueError as error:
        raise _MismatchError(place, str(error)) from None


def _read(value: object, kind: Any, place: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        result = _read(value, inner[0], place)
        for check in inner[1:]:
            if not check.holds(result):
                raise _MismatchError(place, f"must be {check.requirement}")
        return result
    if origin in (Union, types.UnionType):
        return _read_union(value, inner, place)
    if origin is Literal:
        if not any(value == each and type(value) is type(each) for each in inner):
            raise _MismatchError(place, f"must be {' or '.join(map(str, inner))}")
        return value
    if origin is tuple:
        return _read_tuple(value, inner, place)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise _MismatchError(place, "must be an object")
        return {name: _read(each, inner[1], f"{place}.{ascii(name)[1:-1][:80]}") for name, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, JsonRecord):
        return _read_record(value, kind, place)
    if kind is object or _is_plain(value, kind):
        return value
    raise _MismatchError(place, f"must be {_WORDS[kind]}")


def _is_plain(value: object, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _read_union(value: object, kinds: tuple[Any, ...], place: str) -> Any:
    others = [kind for kind in kinds if kind is not types.NoneType]
    if value is None and len(others) < len(kinds):
        return None
    problems = []
    for kind in others:
        try:
            return _read(value, kind, place)
        except _MismatchError as error:
            problems.append(error)
    raise problems[-1]


def _read_tuple(value: object, kinds: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _MismatchError(place, "must be a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _MismatchError(place, f"must have {len(kinds)} items")
    return tuple(_read(each, kind, f"{place}.{at}") for at, (each, kind) in enumerate(zip(value, kinds, strict=True)))
