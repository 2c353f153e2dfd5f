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

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace


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
    """Holds a sentence with links to the sources of what it says.

    Attributes:
        text: the sentence.
        links: its sources.
        source: the comparison that it quotes, in words; empty where it quotes none.
        finding: what it says of that comparison, without naming it.
        tabulated: whether it says in words what a table of the advice has in its columns.
    """

    text: str
    links: tuple[Link, ...]
    source: str = ""
    finding: str = ""
    tabulated: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the text and the links."""
        return {"text": self.text, "evidence": [asdict(link) for link in self.links]}

    def as_tabulated(self) -> Sentence:
        """Return the same as one that a table leaves out."""
        return replace(self, tabulated=True)


def with_shared_sources(rows: Iterable[Sequence[Sentence]]) -> tuple[list[str], list[str]]:
    """Put the reasons of each row of a table into a text that names a comparison by a number, such as [1].

    Returns:
        The texts of the rows, and the comparisons in the order of their numbers.
    """
    numbers: dict[str, int] = {}
    texts = [
        " ".join(
            f"{sentence.finding} [{numbers.setdefault(sentence.source, len(numbers) + 1)}]."
            if sentence.source
            else sentence.text
            for sentence in row
            if not sentence.tabulated
        )
        for row in rows
    ]
    return texts, [f"[{number}] {source}" for source, number in numbers.items()]


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
