"""Fingerprints the rows of a split, so that a change of the rows can be told from a change of their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tunewise.core.json_record import JsonRecord
from tunewise.data.example_file import ExampleFile
from tunewise.data.examples import Example, content_bytes


@dataclass(frozen=True, kw_only=True)
class RowsFingerprint(JsonRecord):
    """Holds two SHA-256 in hex over what rows say: `content` whatever their order, and `order` in their order."""

    content: str
    order: str

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        """Take the fingerprint of the examples of a split."""
        facts = examples.facts if isinstance(examples, ExampleFile) else None
        digests = facts.contents if facts else [hashlib.sha256(content_bytes(example)).digest() for example in examples]
        in_order, sorted_ = hashlib.sha256(b"".join(digests)), hashlib.sha256(b"".join(sorted(digests)))
        return cls(content=sorted_.hexdigest(), order=in_order.hexdigest())
