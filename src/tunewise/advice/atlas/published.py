"""Tables from publications, for models and data that no recorded comparison covers.

    gain = score / best score of the table

because the sources rarely give the unadapted model's score. Published tables are weaker evidence than measured records
and are marked as published wherever they are used: they come from other code, often from encoders, and their learning
rates were not searched under one budget. Their features are round figures.
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
    """Holds one technique of a table; `kept` is a score on what the model could do before."""

    technique: Name
    score: float
    memory_gb: float | None
    kept: float | None


@dataclass(frozen=True, kw_only=True)
class Table(JsonRecord):
    """Holds one published table.

    `read` says where its figures were read: in the paper or its authors' files ("source"), in a full-text copy
    ("copy"), or in another source that quotes it ("secondary").
    """

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
        """Return the rows by technique."""
        return {row.technique: row for row in self.rows}

    def gain(self, technique: str) -> float:
        """Return a technique's score divided by the best score of the table."""
        return self.scored[technique].score / max(row.score for row in self.rows)

    @property
    def cited(self) -> str:
        """Return the reference of the table: authors, year, title and place."""
        return f'{self.authors} {self.year}, "{self.title}", {self.where}'


@dataclass(frozen=True, kw_only=True)
class _File(JsonRecord):
    """Holds the package's file of published tables."""

    schema: Literal[1]
    tables: tuple[Table, ...]


@cache
def tables() -> dict[str, Table]:
    """Read every table, by id.

    Raises:
        ArtifactError: the package's file is damaged.
    """
    value = artifact_reader.read_json(FILE, limit_bytes=LIMIT_BYTES)
    file = _File.from_json(value, FILE, "is damaged", "install tunewise again")
    return {table.id: table for table in file.tables}
