"""A sentence of advice, with a link from each of its figures to its source.

A link is {"kind", "ref", "path", "value", "shown"}: in the source of that kind and name, `path` leads to `value`, which
the sentence prints as `shown`.

    atlas      ref: a record's name             path: lora.gain, lora.score.mean, lora.forgetting.nll_rise, similarity
    paper      ref: a published comparison      path: lora.score, lora.gain, similarity
    constant   ref: a publication               path: a constant's name
    plan       ref: a technique                 path: memory.peak, verdict, ...
    task       ref: a feature                   path: "" (the number itself)
    technique  ref: a technique                 path: a fact of its class: needs, mergeable, trains, ...
    request    ref: a question's field          path: ""
    change     ref: the changed situation       path: gain, was
    forecast   ref: a technique                 path: gain.mean, chance, ... in the rows of this advice
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Link:
    """Leads from one figure or fact to its source."""

    kind: str
    ref: str
    path: str
    value: object
    shown: str


@dataclass(frozen=True)
class Sentence:
    """Holds a sentence with links to the sources of what it says."""

    text: str
    links: tuple[Link, ...]

    def to_json(self) -> dict[str, object]:
        """Return the text and the links."""
        return {"text": self.text, "evidence": [asdict(link) for link in self.links]}


def say(template: str, *links: Link) -> Sentence:
    """Fill each `{}` of a sentence with the figure of a link; links beyond those are cited without a figure.

    Args:
        template: the sentence, with one `{}` for each figure.
        *links: the sources, those with figures first and in the order of the sentence.
    """
    figures = template.count("{}")
    return Sentence(template.format(*(link.shown for link in links[:figures])), tuple(links))


def escaped(text: str) -> str:
    """Double the braces of a text, so that `say` prints them."""
    return text.replace("{", "{{").replace("}", "}}")
