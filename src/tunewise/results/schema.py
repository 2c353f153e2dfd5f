"""What `compare.json` and `trial.json` hold, as typed records; reading them is strict and writing gives the same bytes.

A row of a comparison is a `Row`: a `ScoredRow` where at least one seed finished. A trial is a `TrialRecord`: a
`FittedTrial` once it is trained, a `FinishedTrial` once its test split is scored. Fields that may be None were not
written by older versions, or are not known of every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeAlias

from tunewise.core import artifact_reader
from tunewise.core.json_record import Count, JsonRecord, NonNegative, nullable

SCHEMA: Literal[1] = 1
LIMIT_BYTES = 1 << 28

Settings: TypeAlias = dict[str, object]
Numbers: TypeAlias = dict[str, float]
Finding: TypeAlias = bool | float | str | Numbers  # what a technique reports of itself; numbers by name are a table
Curve: TypeAlias = tuple[tuple[float, float | None], ...]  # (step, training loss)


@dataclass(frozen=True, kw_only=True)
class ModelFacts(JsonRecord):
    """The base that was compared on."""

    name: str
    revision: str | None
    architecture: str
    parameters: Count
    dtype: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Available(JsonRecord):
    """How many examples the splits have, of which a sample was used."""

    validation: Count
    test: Count


@dataclass(frozen=True, kw_only=True)
class TaskFacts(JsonRecord):
    """The data, and how much of it was used."""

    name: str
    source: str
    kind: str
    format: str
    metric: str
    labels: tuple[str, ...]
    train: Count
    validation: Count
    test: Count
    available: Available
    window: Count
    fingerprint: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RetentionFacts(JsonRecord):
    """What forgetting was measured on: text that the base knew, and the task of the probe."""

    source: str
    sequences: Count
    kl_positions: Count
    base_nll: float
    probe: str | None = nullable()


@dataclass(frozen=True, kw_only=True)
class BudgetFacts(JsonRecord):
    """What each technique could spend."""

    steps: Count
    tokens: Count | None
    search: Count
    seeds: Count
    minutes: float | None = nullable()
    validation_examples: Count
    test_examples: Count | None


@dataclass(frozen=True, kw_only=True)
class MachineFacts(JsonRecord):
    """What the figures were measured on."""

    platform: str
    processor: str
    cores: int | None
    threads: int
    memory_bytes: Count
    device: str
    python: str
    torch: str
    transformers: str
    packing: str


@dataclass(frozen=True, kw_only=True)
class ScoreInterval(JsonRecord):
    """A test score: its mean, the 95 % interval over seeds and examples, and the mean of each seed."""

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Score(ScoreInterval):
    """A test score and the metric that it is of."""

    ORDER: ClassVar[tuple[str, ...]] = ("metric", "mean", "per_seed", "low", "high")
    metric: str


@dataclass(frozen=True, kw_only=True)
class Forgetting(JsonRecord):
    """How far the base was left.

    Attributes:
        nll_rise: rise of the loss on retention text in nats a token, with the ends of its 95 % interval.
        kl: divergence from the base there, in nats a position.
        kl_task: divergence from the base where the task's answers are predicted, in nats a token.
        weight_change: norm of the change of the weights over that of the weights.
        probe: score on a task that the base could do.
    """

    nll_rise: float
    nll_rise_low: float | None = None
    nll_rise_high: float | None = None
    kl: float | None = None
    kl_task: float | None = None
    weight_change: float | None = None
    probe: float | None = None


@dataclass(frozen=True, kw_only=True)
class FitCost(JsonRecord):
    """What a fit took, and what can be done with what came of it."""

    train_seconds: NonNegative
    tokens_per_second: NonNegative | None = None
    peak_memory_bytes: Count
    optimised_parameters: Count
    stored_parameters: Count
    artifact_bytes: Count
    merges: bool | None = None
    swappable: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Cost(FitCost):
    """What a fit took, and what answering takes."""

    scoring_peak_memory_bytes: Count | None = None
    seconds_per_example: NonNegative
    prompt_tokens: NonNegative
    usd_per_1000_requests: float | None = None


@dataclass(frozen=True, kw_only=True)
class Training(JsonRecord):
    """What a fit was trained on; `cut` counts training examples that did not fit the window."""

    steps: Count
    tokens: Count
    labelled_tokens: Count | None = None
    final_loss: float | None
    cut: Count


@dataclass(frozen=True, kw_only=True)
class Spent(JsonRecord):
    """What a row took: its search without the winner, its seeds, and everything in seconds."""

    search_tokens: Count
    search_seconds: NonNegative
    trial_tokens: Count
    trial_seconds: NonNegative
    seconds: NonNegative | None = None


@dataclass(frozen=True, kw_only=True)
class SearchTrial(JsonRecord):
    """A recipe that a search tried, how well it did, and whether it won; without a loss it failed."""

    learning_rate: float | None
    settings: Settings | None = None
    steps: Count | None = None
    tokens: Count | None = None
    seconds: NonNegative | None = None
    validation_loss: float | None = nullable()
    nll_rise: float | None = None
    reason: str | None = nullable()
    won: bool | None = None

    def _order(self) -> tuple[str, ...]:
        """Give the keys in the order of a failure, of a trial that was trained to its end, or of one that was not."""
        if self.reason is not None:
            return "learning_rate", "settings", "reason", "validation_loss", "won"
        if self.tokens is None:
            return "learning_rate", "settings", "validation_loss", "steps", "reason", "won"
        return super()._order()


@dataclass(frozen=True, kw_only=True)
class Row(JsonRecord):
    """One technique of a comparison: one that no seed finished of, unless it is a `ScoredRow`.

    Attributes:
        technique: its name, which no other row has.
        family: of techniques.
        label: its name for people.
        status: "ok"; "failed" where a seed failed; "skipped" where none was run.
        reason: why it failed or was skipped.
        learning_rate: of its seeds.
        settings: of its seeds.
        search: what was tried before.
        seeds: those that were run.
        spent: what all of it took.
        rank: the first and the last rank that it can have among the rows.
        p_value: of its difference from the best row; None for that one.
    """

    technique: str
    family: str
    label: str
    status: Literal["ok", "failed", "skipped"]
    reason: str | None
    learning_rate: float | None
    settings: Settings
    search: tuple[SearchTrial, ...] | None = None
    seeds: tuple[int, ...]
    spent: Spent | None = None
    rank: tuple[int, int] | None = None
    p_value: float | None = nullable()

    @classmethod
    def _class_of(cls, value: Mapping[str, object]) -> type[Row]:
        """Choose `ScoredRow` for what has figures."""
        return Row if value.keys().isdisjoint(_FIGURES) else ScoredRow

    def _order(self) -> tuple[str, ...]:
        """Give the keys in their order: a technique that is not run begins with its recipe."""
        names = super()._order()
        if self.status != "skipped":
            return names
        return "technique", "settings", *(name for name in names if name not in ("technique", "settings"))


_FIGURES = (
    *("score", "others", "nll", "validation_loss", "forgetting", "cost", "training", "curve", "memory"),
    *("findings", "test_cut", "adaptation"),
)


@dataclass(frozen=True, kw_only=True)
class ScoredRow(Row):
    """A row with figures: means over the seeds that finished.

    Attributes:
        score: on the test split.
        others: further metrics.
        nll: nats per answer token of the test split.
        validation_loss: of the best seed.
        forgetting: how far the base was left.
        cost: what it takes.
        training: of the first seed.
        curve: training losses of the best seed.
        memory: what was done when memory ran out.
        findings: what the technique reports of itself.
        test_cut: test prompts that did not fit the window.
        adaptation: folder of the best seed's, in the comparison's.
    """

    ORDER: ClassVar[tuple[str, ...]] = (
        *("technique", "family", "label", "status", "reason", "learning_rate", "settings", "search", "seeds"),
        *_FIGURES,
        *("spent", "rank", "p_value"),
    )
    score: Score
    others: Numbers | None = None
    nll: float
    validation_loss: float | None = nullable()
    forgetting: Forgetting | None
    cost: Cost
    training: Training | None = None
    curve: Curve | None = None
    memory: str | None = nullable()
    findings: dict[str, Finding] | None = None
    test_cut: Count | None = None
    adaptation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict(JsonRecord):
    """What a comparison shows.

    Attributes:
        best: the row with the best mean score; None where no row has one.
        ties: the rows that the test cannot tell from it.
        recommended: the row to take; None where none meets the needs.
        needs: what it had to have.
        needed_examples: test examples that would tell the best from the second; None where no number does.
        break_even: when training has paid for itself, in words.
        summary: two sentences.
        reasons: everything that speaks for it, in words.
    """

    best: str | None
    ties: tuple[str, ...]
    recommended: str | None
    needs: tuple[str, ...] | None = None
    needed_examples: int | None = nullable()
    break_even: tuple[str, ...] | None = None
    summary: str | None = None
    reasons: tuple[str, ...]

    def _order(self) -> tuple[str, ...]:
        """Give the keys in their order; where nothing finished there is nothing that more examples would tell."""
        names = super()._order()
        return names if self.best is not None else tuple(name for name in names if name != "needed_examples")


@dataclass(frozen=True, kw_only=True)
class ExpectedGain(JsonRecord):
    """The gain that advice expected of a technique, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class AdviceFollowed(JsonRecord):
    """The advice that a comparison followed.

    Attributes:
        order: what was run, in turn.
        chance: that what was left would have beaten the leader.
        expected: the gain of each technique.
    """

    order: tuple[str, ...]
    chance: float
    expected: dict[str, ExpectedGain]


@dataclass(frozen=True, kw_only=True)
class Answered(JsonRecord):
    """What a technique answered, and the metric of it."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Answer(JsonRecord):
    """A test example, and what the first seed of each technique answered."""

    prompt: str
    answer: str
    rows: dict[str, Answered]


@dataclass(frozen=True, kw_only=True)
class Comparison(JsonRecord):
    """The content of `compare.json`.

    Attributes:
        schema: the version of this format.
        tunewise: the version that wrote it.
        created: when, in ISO 8601.
        model: the base.
        task: the data.
        retention: what forgetting was measured on.
        budget: what each technique could spend.
        settings: of training, by their Hugging Face names.
        machine: what the figures were measured on.
        rows: one for each technique, in the order that was asked for.
        verdict: what it shows; None before the first row.
        command: the words that asked for it.
        advice: the advice that it followed.
        answers: the first test examples.
        seconds: what it took, the last time that it was run.
    """

    schema: Literal[1]
    tunewise: str
    created: str
    model: ModelFacts
    task: TaskFacts
    retention: RetentionFacts
    budget: BudgetFacts
    settings: Settings
    machine: MachineFacts
    rows: tuple[Row, ...]
    verdict: Verdict | None
    command: tuple[str, ...] | None = nullable()
    advice: AdviceFollowed | None = None
    answers: tuple[Answer, ...] | None = None
    seconds: NonNegative | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `compare.json`.

        Raises:
            ArtifactError: it cannot be read, or is not as tunewise writes it.
        """
        return cls.from_json(artifact_reader.read_json(path, limit_bytes=LIMIT_BYTES), path)

    @property
    def scored(self) -> list[ScoredRow]:
        """The rows with figures, in their order."""
        return [row for row in self.rows if isinstance(row, ScoredRow)]

    @property
    def recommended(self) -> str | None:
        """The row to take."""
        return self.verdict.recommended if self.verdict is not None else None


@dataclass(frozen=True, kw_only=True)
class Stage(JsonRecord):
    """What is known of a trial that is trained for a share of its steps."""

    steps: Count
    tokens: Count
    seconds: NonNegative
    validation_loss: float
    nll_rise: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrialIdentity(JsonRecord):
    """Which trial it is; `trains` is told to whoever watches over the process that it runs in."""

    technique: str
    settings: Settings
    family: str
    seed: int
    learning_rate: float | None
    trains: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TrialRecord(TrialIdentity):
    """The content of a `trial.json`: a failure, unless it is a `FittedTrial`.

    `life` names the attempt at the comparison that it failed in; None where it would fail in every one.
    """

    status: Literal["ok", "failed"]
    reason: str | None
    life: str | None = nullable()
    seconds: NonNegative | None = None

    @classmethod
    def failure(cls, identity: TrialIdentity, reason: str, life: str | None) -> TrialRecord:
        """Make the record of a trial that failed."""
        return identity.extended(TrialRecord, status="failed", reason=reason, life=life)

    @classmethod
    def _class_of(cls, value: Mapping[str, object]) -> type[TrialRecord]:
        """Choose `FinishedTrial` for what has figures of the test split, `FittedTrial` for what has others alone."""
        if not value.keys().isdisjoint(_TEST):
            return FinishedTrial
        return TrialRecord if value.keys().isdisjoint(_FIT) else FittedTrial


_IDENTITY = ("technique", "settings", "family", "seed", "learning_rate", "status", "reason")
_FIT = ("label", "validation_loss", "findings", "training", "curve", "packed", "cost", "memory")
_TEST = ("score", "nll", "per_example", "answers", "forgetting")


@dataclass(frozen=True, kw_only=True)
class FittedTrial(TrialRecord):
    """A trial that is trained and saved.

    Attributes:
        label: the adaptation's name for people; empty where it is the technique's.
        validation_loss: in nats per answer token.
        findings: what the technique reports of itself.
        training: what it was trained on.
        curve: training losses.
        packed: True, or why batches were padded.
        cost: what it took.
        memory: what was done when memory ran out.
    """

    ORDER: ClassVar[tuple[str, ...]] = (*_IDENTITY, *_FIT, "seconds")
    label: str
    validation_loss: float
    findings: dict[str, Finding]
    training: Training
    curve: Curve
    packed: bool | str
    cost: FitCost
    memory: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrialScore(JsonRecord):
    """The test score of one seed; `cut` counts prompts that did not fit the window."""

    metric: str
    mean: float
    nll: float
    others: Numbers
    examples: Count
    cut: Count


@dataclass(frozen=True, kw_only=True)
class FinishedTrial(FittedTrial):
    """A trial whose test split is scored; `answers` are those to the first examples."""

    ORDER: ClassVar[tuple[str, ...]] = (*_IDENTITY, *_FIT, *_TEST, "seconds")
    cost: Cost = field()
    score: TrialScore
    nll: float
    per_example: tuple[float, ...]
    answers: tuple[str, ...]
    forgetting: Forgetting | None
