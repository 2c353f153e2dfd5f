"""Records that are read from JSON strictly, and written with the keys that they were read with."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import Check, Count, JsonRecord, nullable


@dataclass(frozen=True, kw_only=True)
class Point(JsonRecord):
    x: float
    name: str | None = None
    colour: str | None = nullable()


@dataclass(frozen=True, kw_only=True)
class Shape(JsonRecord):
    kind_of: Literal["line", "area"]
    points: tuple[Point, ...]
    size: tuple[int, float]
    tags: dict[str, object]
    closed: bool
    count: Count = 0
    word: Annotated[str, Check(str.isupper, "in capitals")] = "A"

    def __post_init__(self):
        if self.closed and len(self.points) < 3:
            raise ValueError("a closed shape has three points")


SHAPE = {"kind_of": "line", "points": [{"x": 1}], "size": [1, 2.5], "tags": {"a": [None]}, "closed": False}


def test_what_is_read_is_written_as_it_was():
    for value in (SHAPE, {**SHAPE, "count": 3}, {name: SHAPE[name] for name in reversed(SHAPE)}):
        found = Shape.from_json(value).to_json()
        assert found == value and list(found) == list(value)
    assert type(Shape.from_json(SHAPE).to_json()["points"][0]["x"]) is int


def test_null_is_written_only_where_it_belongs():
    assert Point(x=1.0).to_json() == {"x": 1.0, "colour": None}
    assert Point.from_json({"x": 1.0}).to_json() == {"x": 1.0}
    assert Point.from_json({"name": None, "x": 1.0}).to_json() == {"name": None, "x": 1.0}
    later = dataclasses.replace(Point.from_json({"colour": "red", "x": 1.0}), name="a")
    assert list(later.to_json()) == ["colour", "x", "name"]
    assert Point.from_json({"x": 1.0}) == Point(x=1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind_of": "dot"}, "kind_of: must be line or area"),
        ({"points": [{"x": 1}, {"x": "1"}]}, "points.1.x: must be a number"),
        ({"points": [{}]}, "points.0.x: is missing"),
        ({"points": [{"x": 1, "y\n": 2}]}, "points.0.y\\n: is unknown"),
        ({"points": {"x": 1}}, "points: must be a list"),
        ({"points": [3]}, "points.0: must be an object"),
        ({"size": [1]}, "size: must have 2 items"),
        ({"size": [1.5, 1.5]}, "size.0: must be a whole number"),
        ({"tags": []}, "tags: must be an object"),
        ({"closed": 1}, "closed: must be true or false"),
        ({"closed": True}, "the file: a closed shape has three points"),
        ({"count": -1}, "count: must be at least 0"),
        ({"count": True}, "count: must be a whole number"),
        ({"word": "a"}, "word: must be in capitals"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    with pytest.raises(ArtifactError) as refused:
        Shape.from_json({**SHAPE, **change}, "a.json", "is no shape", "draw another")
    assert str(refused.value) == f"a.json: is no shape ({said}); draw another"


def test_a_record_grows_into_one_with_more_fields():
    @dataclass(frozen=True, kw_only=True)
    class Far(Point):
        ORDER = ("z", "x", "colour")
        z: int

    far = Point(x=2.0, colour="red").extended(Far, z=3)
    assert far.to_json() == {"z": 3, "x": 2.0, "colour": "red"}
    with pytest.raises(ArtifactError, match="name: is unknown"):
        Far.from_json({"x": 2.0, "z": 3, "name": "a"})
