"""What a file of the atlas holds, and its strict reading: nothing missing, nothing unknown, nothing of another type.

{"schema": 1, "name": "world.reviews", "model": {...}, "task": {...}, "features": {...}, "budget": {...},
 "provenance": {...}, "rows": [{...}]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from tunewise.advice.features import Features
from tunewise.core import artifact_reader
from tunewise.core.errors import ArtifactError

SCHEMA = 1
LIMIT_BYTES = 1 << 20
Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[FiniteFloat, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Strict, closed and immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(Part):
    """The base that was compared on."""

    name: Name
    architecture: Name
    parameters: Count
    fingerprint: Name


class TaskFacts(Part):
    """The data, by what it was called and hashed."""

    name: Name
    source: str
    kind: Literal["classification", "generation", "text"]
    metric: Name
    train: Count
    validation: Count
    test: Count
    fingerprint: Name


class Numbers(Part):
    """The features; see `tunewise.advice.features.Features`."""

    train: Share
    generation: Share
    labels: Share
    balance: Share
    prompt_tokens: Share
    answer_tokens: Share
    copied: Share
    unseen: Share
    documents: Share
    in_documents: Share
    special_tokens: Share
    room: Share
    parameters: Share
    biases: Share
    base_loss: FiniteFloat | None
    examples: Share

    def features(self) -> Features:
        """What the recommender compares."""
        return Features(**self.model_dump())


class Budget(Part):
    """What each technique could spend; `rows` examples make a step."""

    steps: Count
    tokens: Count | None
    rows: Count
    search: Count
    seeds: Count


class Provenance(Part):
    """How to get the figures again."""

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


class Score(Part):
    """The test score: mean and 95 % interval over seeds and examples."""

    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    per_seed: Annotated[list[FiniteFloat], Field(min_length=1)]


class Forgot(Part):
    """Rise of the loss on retention text in nats a token; share of a probe's answers that are still right."""

    nll_rise: FiniteFloat
    probe: FiniteFloat | None


class Cost(Part):
    """What the row took; `seconds` is all of it, training, search and evaluation, `train_seconds` one fit."""

    seconds: Share
    train_seconds: Share
    seconds_per_example: Share
    peak_memory_bytes: Count
    optimised_parameters: Count
    stored_parameters: Count
    artifact_bytes: Count
    prompt_tokens: Share
    merges: bool
    swappable: bool


class Row(Part):
    """One technique."""

    technique: Name
    status: Literal["ok", "failed", "skipped"]
    reason: str | None
    learning_rate: FiniteFloat | None
    settings: dict[str, Any]
    score: Score | None
    nll: FiniteFloat | None
    p_value: FiniteFloat | None
    forgetting: Forgot | None
    cost: Cost | None


class Record(Part):
    """One comparison."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,120}$")]
    model: Model
    task: TaskFacts
    features: Numbers
    budget: Budget
    provenance: Provenance
    rows: Annotated[list[Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Record:
        names = [row.technique for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("two rows have one technique")
        for row in self.rows:
            if row.status == "ok" and (row.score is None or row.cost is None or row.nll is None):
                raise ValueError(f"the row of {row.technique} is ok and has no score, loss or cost")
        if "base" not in self.scored:
            raise ValueError("the row of base, which gains are measured from, is missing or has no score")
        return self

    @property
    def scored(self) -> dict[str, Row]:
        """The rows that finished, by technique."""
        return {row.technique: row for row in self.rows if row.status == "ok"}

    @property
    def base(self) -> float:
        """The unadapted model's score."""
        return self._score("base")

    @property
    def best(self) -> tuple[str, float]:
        """The technique with the best mean score, and that score."""
        name = max(self.scored, key=self._score)
        return name, self._score(name)

    def gain(self, technique: str) -> float:
        """(score - base) / (best - base), at least -1; 0 where nothing is better than the base."""
        apart = self.best[1] - self.base
        return max((self._score(technique) - self.base) / apart, -1.0) if apart > 0 else 0.0

    def ties(self) -> set[str]:
        """The best, and what its own test could not tell from it."""
        return {name for name, row in self.scored.items() if row.p_value is None or row.p_value > 0.05}

    def _score(self, technique: str) -> float:
        score = self.scored[technique].score
        assert score is not None
        return score.mean


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        ArtifactError: it cannot be read, or is not as this version of tunewise writes it.
    """
    return record_of(artifact_reader.read_json(path, limit_bytes=LIMIT_BYTES), path)


def record_of(value: dict[str, Any], path: Path) -> Record:
    """A record from what a file holds."""
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        said = first["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"{path}: is no record of an atlas ({place}: {said[0].lower() + said[1:]})") from error
