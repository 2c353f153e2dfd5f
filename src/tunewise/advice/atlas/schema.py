"""The schema of an atlas file, read strictly: a field that is missing, unknown or of another type is an error.

{"schema": 1, "name": "world.reviews", "model": {...}, "task": {...}, "features": {...}, "budget": {...},
 "provenance": {...}, "rows": [{...}]}
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tunewise.advice.features import Features
from tunewise.core import artifact_reader
from tunewise.core.json_record import Check, Count, JsonRecord, NonNegative
from tunewise.results import schema as results

SCHEMA: Literal[1] = 1
LIMIT_BYTES = 1 << 20
Name = Annotated[str, Check(lambda text: 1 <= len(text) <= 200, "1 to 200 characters long")]
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")
FileName = Annotated[str, Check(lambda text: _FILE_NAME.fullmatch(text) is not None, "a plain file name")]


@dataclass(frozen=True, kw_only=True)
class Model(JsonRecord):
    """Describes the base model of the comparison."""

    name: Name
    architecture: Name
    parameters: Count
    fingerprint: Name


@dataclass(frozen=True, kw_only=True)
class TaskFacts(JsonRecord):
    """Describes the data by its name, size and fingerprint."""

    name: Name
    source: str
    kind: Literal["classification", "generation", "text"]
    metric: Name
    train: Count
    validation: Count
    test: Count
    fingerprint: Name


@dataclass(frozen=True, kw_only=True)
class Numbers(JsonRecord):
    """Holds the features; see `tunewise.advice.features.Features`."""

    train: NonNegative
    generation: NonNegative
    labels: NonNegative
    balance: NonNegative
    prompt_tokens: NonNegative
    answer_tokens: NonNegative
    copied: NonNegative
    unseen: NonNegative
    documents: NonNegative
    in_documents: NonNegative
    special_tokens: NonNegative
    room: NonNegative
    parameters: NonNegative
    biases: NonNegative
    base_loss: float | None
    examples: NonNegative

    def features(self) -> Features:
        """Return the features as the recommender takes them."""
        return Features(**self.to_json())


@dataclass(frozen=True, kw_only=True)
class Budget(JsonRecord):
    """Holds the budget of each technique; a step sees `rows` examples."""

    steps: Count
    tokens: Count | None
    rows: Count
    search: Count
    seeds: Count


@dataclass(frozen=True, kw_only=True)
class Provenance(JsonRecord):
    """Says how the figures were measured: command, versions and machine; `remarks` says what is wrong with them."""

    command: str
    tunewise: Name
    created: Name
    torch: Name
    transformers: Name
    device: Name
    processor: str
    threads: Count
    retention: str
    probe: str | None
    remarks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Forgetting(results.Forgetting):
    """Holds the recorded part of a row's forgetting."""

    ORDER: ClassVar[tuple[str, ...]] = ("nll_rise", "probe")
    probe: float | None = field()


@dataclass(frozen=True, kw_only=True)
class Cost(results.Cost):
    """Holds the costs of a row; `seconds` is for search, training and evaluation, `train_seconds` for one fit."""

    ORDER: ClassVar[tuple[str, ...]] = (
        *("seconds", "train_seconds", "seconds_per_example", "peak_memory_bytes", "optimised_parameters"),
        *("stored_parameters", "artifact_bytes", "prompt_tokens", "merges", "swappable"),
    )
    seconds: NonNegative
    merges: bool = field()
    swappable: bool = field()


@dataclass(frozen=True, kw_only=True)
class Row(JsonRecord):
    """Holds the row of one technique."""

    technique: Name
    status: Literal["ok", "failed", "skipped"]
    reason: str | None
    learning_rate: float | None
    settings: results.Settings
    score: results.ScoreInterval | None
    nll: float | None
    p_value: float | None
    forgetting: Forgetting | None
    cost: Cost | None

    def __post_init__(self) -> None:
        if self.status == "ok" and (self.score is None or self.cost is None or self.nll is None):
            raise ValueError(f"the row of {self.technique} is ok, but has no score, loss or cost")
        if self.score is not None and not self.score.per_seed:
            raise ValueError(f"the row of {self.technique} has a score without seeds")


@dataclass(frozen=True, kw_only=True)
class Record(JsonRecord):
    """Holds one recorded comparison."""

    schema: Literal[1]
    name: FileName
    model: Model
    task: TaskFacts
    features: Numbers
    budget: Budget
    provenance: Provenance
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        names = [row.technique for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("two rows have the same technique")
        if "base" not in self.scored:
            raise ValueError("the row of base, which gains are measured from, is missing or has no score")

    @property
    def scored(self) -> dict[str, Row]:
        """Return the finished rows, by technique."""
        return {row.technique: row for row in self.rows if row.status == "ok"}

    @property
    def base(self) -> float:
        """Return the unadapted model's score."""
        return self._score("base")

    @property
    def best(self) -> tuple[str, float]:
        """Return the technique with the best mean score, and that score."""
        name = max(self.scored, key=self._score)
        return name, self._score(name)

    def gain(self, technique: str) -> float:
        """Return (score - base) / (best - base), at least -1; 0 if nothing is better than the base."""
        best_gain = self.best[1] - self.base
        return max((self._score(technique) - self.base) / best_gain, -1.0) if best_gain > 0 else 0.0

    def ties(self) -> set[str]:
        """Return the best technique, and those that its significance test could not tell from it."""
        return {name for name, row in self.scored.items() if row.p_value is None or row.p_value > 0.05}

    def _score(self, technique: str) -> float:
        score = self.scored[technique].score
        assert score is not None
        return score.mean


def read(path: Path) -> Record:
    """Read the record in a file.

    Raises:
        ArtifactError: the file cannot be read, or is not as this version of tunewise writes it.
    """
    return record_of(artifact_reader.read_json(path, limit_bytes=LIMIT_BYTES), path)


def record_of(value: object, path: Path) -> Record:
    """Make a record from the JSON value of a file; `path` is for errors."""
    return Record.from_json(value, path, "is no record of an atlas")
