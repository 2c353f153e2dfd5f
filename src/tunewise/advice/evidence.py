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

from dataclasses import asdict, dataclass
from typing import Any

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
