"""Sentences that say where their figures are from, and the way back from each figure to its source.

A link is {"kind", "ref", "path", "value", "shown"}: in the source of that kind and name, `path` leads to `value`, which
stands in the sentence as `shown`.

    atlas      ref: a record's name         path: lora.gain, lora.score.mean, lora.cost.artifact_bytes, similarity
               ref: all                     path: lora.gain, the mean over all records
    paper      ref: a published table's id  path: lora.score, lora.memory_gb, similarity
    plan       ref: a technique             path: memory.peak, verdict, ...
    task       ref: a feature               path: "" (the number itself)
    technique  ref: a technique             path: a fact of its class: needs, mergeable, trains, ...
    request    ref: what was asked          path: ""
    change     ref: what is different       path: gain, was
    forecast   ref: a technique             path: gain.mean, chance, ... of this advice's own rows
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunewise.advice.atlas.published import Table
from tunewise.advice.atlas.schema import Record
from tunewise.core.errors import ArtifactError

ALL = "all"  # the records together


@dataclass(frozen=True)
class Link:
    """One figure or fact, and its source."""

    kind: str
    ref: str
    path: str
    value: Any
    shown: str


@dataclass(frozen=True)
class Sentence:
    """A sentence with the sources of what it says."""

    text: str
    links: tuple[Link, ...]

    def to_json(self) -> dict[str, Any]:
        """Text and links."""
        return {"text": self.text, "evidence": [asdict(link) for link in self.links]}


def say(template: str, *links: Link) -> Sentence:
    """A sentence whose `{}` are filled with what the links show; a link beyond them is cited without a figure."""
    places = template.count("{}")
    return Sentence(template.format(*(link.shown for link in links[:places])), tuple(links))


def follow(
    link: Mapping[str, Any],
    advice: Mapping[str, Any],
    records: Mapping[str, Record],
    tables: Mapping[str, Table],
) -> Any:
    """What stands at a link's source.

    Args:
        link: one of a sentence's `evidence`.
        advice: the whole of what `tunewise advise --json` printed.
        records: the atlas's, by name.
        tables: the published ones, by id.

    Raises:
        ArtifactError: it leads nowhere.
    """
    kind, ref, path = link["kind"], link["ref"], link["path"]
    try:
        if kind in ("atlas", "paper") and path == "similarity":
            return advice["similarity"][f"{kind}:{ref}"]
        if kind == "atlas" and ref == ALL:
            technique = path.partition(".")[0]
            gains = [record.gain(technique) for record in records.values() if technique in record.scored]
            return sum(gains) / len(gains)
        if kind == "atlas":
            return _recorded(records[ref], path)
        if kind == "paper":
            technique, _, rest = path.partition(".")
            return _walk(tables[ref].scored[technique], rest.split("."))
        if kind == "plan":
            return _walk(_row(advice["plan"], ref), path.split("."))
        if kind == "forecast":
            return _walk(_row(advice["rows"], ref), path.split("."))
        if kind == "change":
            return next(change for change in advice["changes"] if change["change"] == ref)[path]
        if kind == "technique":
            from tunewise.techniques.registry import make

            return getattr(make(ref), path)
        return {"task": advice["features"], "request": advice["request"]}[kind][ref]
    except (KeyError, AttributeError, TypeError, StopIteration, ZeroDivisionError) as error:
        raise ArtifactError(f"the evidence {kind}:{ref}:{path} leads nowhere ({error!r})") from error


def _recorded(record: Record, path: str) -> Any:
    technique, _, rest = path.partition(".")
    if rest == "gain":
        return record.gain(technique)
    return _walk(record.scored[technique], rest.split("."))


def _row(rows: Iterable[Mapping[str, Any]], technique: str) -> Mapping[str, Any]:
    return next(row for row in rows if row["technique"] == technique)


def _walk(value: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        value = value[step] if isinstance(value, Mapping) else getattr(value, step)
    return value
