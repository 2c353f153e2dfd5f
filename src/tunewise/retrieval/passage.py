"""Defines documents, their passages, and the hits of a search."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Document:
    """Holds a text and the name that it is cited by: a path below its folder with forward slashes, or an id."""

    name: str
    text: str

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of name and text, in hex."""
        return hashlib.sha256(f"{self.name}\0{self.text}".encode()).hexdigest()


@dataclass(frozen=True)
class Passage:
    """Holds a part of a document, `text[start:end]`, in characters of the document's text.

    `heading` is the path of headings above it, as in "Manual > Brakes"; empty where there are none.
    """

    document: str
    start: int
    end: int
    text: str
    heading: str = ""

    @property
    def id(self) -> str:
        """Return document and span, as an answer cites them."""
        return f"{self.document}:{self.start}-{self.end}"

    @property
    def indexed(self) -> str:
        """Return the text that is searched: the passage below its headings."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


@dataclass(frozen=True)
class Hit:
    """Holds a passage that a search found; a higher score is better."""

    passage: Passage
    score: float
