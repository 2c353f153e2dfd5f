"""The way back from each figure of advice to its source; see `tunewise.advice.sentences` for what a link holds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunewise.advice.atlas.schema import Record
from tunewise.advice.observations import PublishedComparison
from tunewise.advice.published.publications import publications
from tunewise.core.errors import ArtifactError


def follow(
    link: Mapping[str, Any],
    advice: Mapping[str, Any],
    records: Mapping[str, Record],
    comparisons: Mapping[str, PublishedComparison],
) -> Any:
    """What stands at a link's source.

    Args:
        link: one of a sentence's `evidence`.
        advice: the whole of what `tunewise advise --json` printed.
        records: the atlas's, by name.
        comparisons: the published ones, by name.

    Raises:
        ArtifactError: it leads nowhere.
    """
    kind, ref, path = link["kind"], link["ref"], link["path"]
    try:
        if kind in ("atlas", "paper") and path == "similarity":
            return advice["similarity"][f"{kind}:{ref}"]
        if kind == "atlas":
            return _recorded(records[ref], path)
        if kind == "paper":
            technique, _, rest = path.rpartition(".")
            return (
                comparisons[ref].gain(technique) if rest == "gain" else getattr(comparisons[ref].rows[technique], rest)
            )
        if kind == "constant":
            return next(each.value for each in publications()[ref].constants if each.name == path)
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
