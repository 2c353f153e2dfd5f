"""Tables of publications: what is known of models and data that no comparison of ours reaches.

They are evidence of another kind than measured records and are marked so wherever they are used: other code, often
encoders, learning rates that nobody searched alike. The sources rarely give the unadapted model's score, so a gain here
is a share of the table's best score. `read` says how a figure came here: from the paper's own text or its authors'
files ("source"), from full-text copies ("copy"), or from another source that quotes it ("secondary"). Features are
round figures.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, ValidationError

from tunewise.advice.atlas.schema import LIMIT_BYTES, Name, Numbers, Part
from tunewise.core import artifact_reader
from tunewise.core.errors import ArtifactError

FILE = Path(__file__).parent / "published.json"


class Published(Part):
    """One technique of a table; `kept` is a score on what the model knew before."""

    technique: Name
    score: FiniteFloat
    memory_gb: FiniteFloat | None
    kept: FiniteFloat | None


class Table(Part):
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
    rows: Annotated[list[Published], Field(min_length=1)]

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


class _File(Part):
    schema_: Annotated[Literal[1], Field(alias="schema")]
    tables: list[Table]


@cache
def tables() -> dict[str, Table]:
    """Every table by id.

    Raises:
        ArtifactError: the package's file is damaged.
    """
    try:
        found = _File.model_validate(artifact_reader.read_json(FILE, limit_bytes=LIMIT_BYTES)).tables
    except ValidationError as error:
        raise ArtifactError(f"{FILE}: damaged ({error.errors()[0]['msg']}); install tunewise again") from error
    return {table.id: table for table in found}
