"""Tables of publications: what is known of models and data that no comparison of ours reaches.

They are evidence of another kind than measured records and are marked so wherever they are used: other code, often
encoders, learning rates that nobody searched alike. The sources rarely give the unadapted model's score, so a gain here
is a share of the table's best score. `read` says how a figure came here: from the paper's own text or its authors'
files ("source"), from full-text copies ("copy"), or from another source that quotes it ("secondary"). Features are
round figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tunewise.advice.atlas.schema import LIMIT_BYTES, Name, Numbers
from tunewise.core import artifact_reader
from tunewise.core.json_record import JsonRecord

FILE = Path(__file__).parent / "published.json"


@dataclass(frozen=True, kw_only=True)
class Published(JsonRecord):
    """One technique of a table; `kept` is a score on what the model knew before."""

    technique: Name
    score: float
    memory_gb: float | None
    kept: float | None


@dataclass(frozen=True, kw_only=True)
class Table(JsonRecord):
    """One table."""

    id: Name
    title: Name
    authors: Name
    year: int
    url: Name
    where: Name
    read: Literal["source", "copy", "secondary"]
    task: Name
    setting: Name
    metric: Name
    features: Numbers
    rows: tuple[Published, ...]

    @property
    def scored(self) -> dict[str, Published]:
        """The rows by technique."""
        return {row.technique: row for row in self.rows}

    def gain(self, technique: str) -> float:
        """Score as a share of the table's best."""
        return self.scored[technique].score / max(row.score for row in self.rows)

    @property
    def cited(self) -> str:
        """The source in words."""
        return f'{self.authors} {self.year}, "{self.title}", {self.where}'


@dataclass(frozen=True, kw_only=True)
class _File(JsonRecord):
    schema: Literal[1]
    tables: tuple[Table, ...]


@cache
def tables() -> dict[str, Table]:
    """Every table by id.

    Raises:
        ArtifactError: the package's file is damaged.
    """
    value = artifact_reader.read_json(FILE, limit_bytes=LIMIT_BYTES)
    found = _File.from_json(value, FILE, "is damaged", "install tunewise again")
    return {table.id: table for table in found.tables}
