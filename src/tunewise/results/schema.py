"""Defines the content of `compare.json` and `trial.json` as typed records; what is read is written byte for byte again.

A row of a comparison is a `Row`, or a `ScoredRow` if at least one seed finished. A trial is a `TrialRecord`, or a
`FittedTrial` once it is trained, or a `FinishedTrial` once its test split is scored. Fields that may be None were not
written by older versions, or are not known for every row. Reading is strict: unknown fields are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeAlias

from tunewise.core import artifact_reader
from tunewise.core.json_record import Count, JsonRecord, NonNegative, nullable
from tunewise.core.text import model_name
from tunewise.results.diagnostics import AnswerLengths, Confusion, Majority
from tunewise.results.estimate import Estimate

SCHEMA: Literal[1] = 1
LIMIT_BYTES = 1 << 28

Settings: TypeAlias = dict[str, object]
Numbers: TypeAlias = dict[str, float]
Finding: TypeAlias = bool | float | str | Numbers  # what a technique reports about itself; numbers by name are a table
Curve: TypeAlias = tuple[tuple[float, float | None], ...]  # (step, loss)


@dataclass(frozen=True, kw_only=True)
class ModelFacts(JsonRecord):
    """Describes the base model."""

    name: str
    revision: str | None
    architecture: str
    parameters: Count
    dtype: str
    fingerprint: str

    @property
    def short_name(self) -> str:
        """Return its name for headings: the last part of a folder, or the Hub id; a model of the Hub has a revision."""
        return model_name(self.name, local=self.revision is None)


@dataclass(frozen=True, kw_only=True)
class Available(JsonRecord):
    """Counts the examples of each split, of which a sample was used."""

    validation: Count
    test: Count


@dataclass(frozen=True, kw_only=True)
class TaskFacts(JsonRecord):
    """Describes the data, and how much of it was used.

    `label_list` says whether prompts list the labels; it is absent where there was no choice.
    """

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
    label_list: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RetentionFacts(JsonRecord):
    """Describes what forgetting was measured on: retention text, and the task of the probe."""

    source: str
    sequences: Count
    kl_positions: Count
    base_nll: float
    probe: str | None = nullable()


@dataclass(frozen=True, kw_only=True)
class BudgetFacts(JsonRecord):
    """Limits what each technique could spend; `chosen` says why the steps were chosen where the user gave no budget."""

    steps: Count
    tokens: Count | None
    search: Count
    seeds: Count
    minutes: float | None = nullable()
    validation_examples: Count
    test_examples: Count | None
    epochs: float | None = None
    chosen: str | None = None


@dataclass(frozen=True, kw_only=True)
class MachineFacts(JsonRecord):
    """Describes the machine that the figures were measured on."""

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
    """Holds a test score: its mean, the 95 % interval over seeds and examples, and the mean of each seed."""

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Score(ScoreInterval):
    """Holds a test score and the name of its metric."""

    ORDER: ClassVar[tuple[str, ...]] = ("metric", "mean", "per_seed", "low", "high")
    metric: str


@dataclass(frozen=True, kw_only=True)
class Forgetting(JsonRecord):
    """Measures how far an adaptation moved from the base.

    Attributes:
        nll_rise: rise of the loss on retention text in nats per token, with the ends of its 95 % interval.
        kl: KL divergence from the base there, in nats per position.
        kl_task: KL divergence from the base where the task's answers are predicted, in nats per token.
        weight_change: ||W - W_0|| / ||W_0||.
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
    """Holds what a fit cost, and whether its adaptation can be merged and swapped.

    `evaluation_seconds` is the time of the validation losses between the steps, which `train_seconds` does not count.
    It counts `preparing_seconds`, the time before the first step of what reads something then, even where a search had
    read it already.
    """

    train_seconds: NonNegative
    preparing_seconds: NonNegative | None = None
    evaluation_seconds: NonNegative | None = None
    tokens_per_second: NonNegative | None = None
    peak_memory_bytes: Count
    optimised_parameters: Count
    stored_parameters: Count
    artifact_bytes: Count
    merges: bool | None = None
    swappable: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Cost(FitCost):
    """Holds what a fit cost, and what answering and measuring what was forgotten cost.

    With `timed_alone`, the seconds of a row whose trials ran beside others were taken once more without them; with
    `timed_on`, on this device, since workers had devices of several kinds.
    """

    scoring_peak_memory_bytes: Count | None = None
    forgetting_peak_memory_bytes: Count | None = None
    seconds_per_example: NonNegative
    prompt_tokens: NonNegative
    usd_per_1000_requests: float | None = None
    timed_alone: bool | None = None
    timed_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class Training(JsonRecord):
    """Counts what a fit was trained on; `cut` counts training examples that exceed the window and were truncated.

    `best_step` is the step whose state was kept, by its validation loss; None if the last state was kept without a
    choice. `stopped_early` is None where training could not stop before its last step.
    `preparing_tokens` were read before the first step, by this trial or by a search that prepared it: to choose on
    validation, or for a technique's own preparation.
    """

    steps: Count
    tokens: Count
    labelled_tokens: Count | None = None
    preparing_tokens: Count | None = None
    final_loss: float | None
    cut: Count
    best_step: Count | None = None
    stopped_early: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Spent(JsonRecord):
    """Holds what a row cost: its search, its seeds, and the total in seconds.

    The search is all that was trained to find the winner, which its seeds then train from the start; in files of older
    versions, whose winner went on from there, it is the search without the winner. `preparing_tokens` were read before
    first steps, by search and seeds, each preparation counted once.
    """

    search_steps: Count | None = None
    search_tokens: Count
    search_seconds: NonNegative
    trial_tokens: Count
    preparing_tokens: Count | None = None
    trial_seconds: NonNegative
    seconds: NonNegative | None = None


@dataclass(frozen=True, kw_only=True)
class SearchTrial(JsonRecord):
    """Holds a recipe that a search tried, its result, and whether it won; without a loss it failed.

    `steps` are those of the training that gave the validation loss. `tokens`, `seconds` and `total_steps` count all
    trainings of this recipe in the search. `preparing_tokens` were read before the first of them, in
    `preparing_seconds`; they are absent where nothing was, or where another recipe's trainings had read the same.
    """

    learning_rate: float | None
    settings: Settings | None = None
    steps: Count | None = None
    total_steps: Count | None = None
    tokens: Count | None = None
    seconds: NonNegative | None = None
    preparing_tokens: Count | None = None
    preparing_seconds: NonNegative | None = None
    validation_loss: float | None = nullable()
    nll_rise: float | None = None
    reason: str | None = nullable()
    won: bool | None = None

    def _order(self) -> tuple[str, ...]:
        """Return the keys in the order of a failed, a fully trained or a partly trained trial."""
        if self.reason is not None:
            return "learning_rate", "settings", "reason", "validation_loss", "won"
        if self.tokens is None:
            return "learning_rate", "settings", "validation_loss", "steps", "reason", "won"
        return super()._order()


@dataclass(frozen=True, kw_only=True)
class Row(JsonRecord):
    """Holds one technique of a comparison; no seed of it finished, unless this is a `ScoredRow`.

    Attributes:
        technique: its name, unique among the rows.
        family: the family of techniques that it belongs to.
        label: its display name.
        status: "ok"; "failed" if a seed failed; "skipped" if none was run.
        reason: why it failed or was skipped.
        learning_rate: the rate that its seeds were trained with.
        settings: the settings that its seeds were trained with.
        search: the trials of the search.
        seeds: the seeds that were run.
        spent: what search and seeds cost.
        rank: the interval of its rank among the rows, at 95 %.
        p_value: adjusted p value of its difference from the best row; None for the best.
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
        """Choose `ScoredRow` for a row with figures."""
        return Row if value.keys().isdisjoint(_FIGURES) else ScoredRow

    def _order(self) -> tuple[str, ...]:
        """Return the keys in their order: a skipped technique begins with its recipe."""
        names = super()._order()
        if self.status != "skipped":
            return names
        return "technique", "settings", *(name for name in names if name not in ("technique", "settings"))


_FIGURES = (
    *("score", "others", "nll", "validation_loss", "forgetting", "cost", "training", "curve", "validation_curve"),
    "memory",
    *("findings", "test_cut", "adaptation", "confusions", "lengths", "export_format"),
)


@dataclass(frozen=True, kw_only=True)
class ScoredRow(Row):
    """Holds a row with figures, which are means over the seeds that finished.

    Attributes:
        score: score on the test split.
        others: further metrics by name.
        nll: nats per answer token of the test split.
        validation_loss: loss of the best seed, in nats per answer token.
        forgetting: how far the model moved from the base.
        cost: what fitting and answering cost.
        training: what the first seed was trained on.
        curve: training losses of the best seed.
        validation_curve: its validation losses, if any were taken on the way.
        memory: what was changed when memory ran out.
        findings: what the technique reports about itself.
        test_cut: test prompts that exceed the window and were truncated.
        adaptation: folder of the best seed's adaptation, relative to the comparison's.
        confusions: of a classification, how often each seed predicted which label for which.
        lengths: of a generation, the lengths of each seed's answers.
        export_format: the format that most programs read among those that the adaptation can be exported to.
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
    validation_curve: Curve | None = None
    memory: str | None = nullable()
    findings: dict[str, Finding] | None = None
    test_cut: Count | None = None
    adaptation: str | None = None
    confusions: tuple[Confusion, ...] | None = None
    lengths: tuple[AnswerLengths, ...] | None = None
    export_format: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict(JsonRecord):
    """Holds the conclusions of a comparison.

    Attributes:
        best: the row with the best mean score; None if no row has one.
        ties: the rows that are statistically tied with the best.
        recommended: the row to use; None if none meets the needs.
        needs: what was required of the recommended row.
        needed_examples: test examples that would separate the best from the second; None if no number would.
        break_even: sentences on when training pays for itself.
        summary: the conclusion in two or three sentences.
        reasons: all reasons, as sentences.
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
        """Return the keys in their order; if nothing finished, `needed_examples` is left out."""
        names = super()._order()
        return names if self.best is not None else tuple(name for name in names if name != "needed_examples")


@dataclass(frozen=True, kw_only=True)
class ExpectedGain(JsonRecord):
    """Holds the gain that the advice expected of a technique, with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class AdviceFollowed(JsonRecord):
    """Holds the advice that a comparison followed.

    Attributes:
        order: the techniques that were run, in this order.
        chance: probability that a technique that was not run would have beaten the leader.
        expected: the expected gain of each technique.
    """

    order: tuple[str, ...]
    chance: float
    expected: dict[str, ExpectedGain]


@dataclass(frozen=True, kw_only=True)
class Answered(JsonRecord):
    """Holds what a technique answered, and its score."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Answer(JsonRecord):
    """Holds a test example, and what the first seed of each technique answered."""

    prompt: str
    answer: str
    rows: dict[str, Answered]


@dataclass(frozen=True, kw_only=True)
class Comparison(JsonRecord):
    """Holds the content of `compare.json`.

    Attributes:
        schema: the version of this format.
        tunewise: the version that wrote it.
        created: date and time, in ISO 8601.
        model: the base model.
        task: the data.
        retention: what forgetting was measured on.
        budget: what each technique could spend.
        settings: training settings, by their Hugging Face names.
        machine: where the figures were measured.
        rows: one per technique, in the order of the request.
        verdict: the conclusions; None before the first row.
        command: the command line that started it.
        advice: the advice that it followed.
        answers: the first test examples, with all answers.
        seconds: duration of the last run.
        estimate: what the last run was expected to take.
        process_peak_bytes: peak of memory of the whole process in the last run.
        majority: of a classification, the score of always giving the most frequent label of the training split.
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
    estimate: Estimate | None = None
    process_peak_bytes: Count | None = None
    majority: Majority | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `compare.json`.

        Raises:
            ArtifactError: the file cannot be read, or is not as tunewise writes it.
        """
        return cls.from_json(artifact_reader.read_json(path, limit_bytes=LIMIT_BYTES), path)

    @property
    def scored(self) -> list[ScoredRow]:
        """Return the rows with figures, in their order."""
        return [row for row in self.rows if isinstance(row, ScoredRow)]

    @property
    def recommended(self) -> str | None:
        """Return the name of the recommended row, if there is one."""
        return self.verdict.recommended if self.verdict is not None else None


@dataclass(frozen=True, kw_only=True)
class Stage(JsonRecord):
    """Holds what is known of a training of a search, which takes a share of a trial's steps.

    `preparing_tokens` were read before its first step, in `preparing_seconds`, by it and by no training before it.
    """

    steps: Count
    tokens: Count
    seconds: NonNegative
    preparing_tokens: Count | None = None
    preparing_seconds: NonNegative | None = None
    validation_loss: float
    nll_rise: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrialIdentity(JsonRecord):
    """Identifies a trial; `trains` is only set for the supervisor of the process that it runs in."""

    technique: str
    settings: Settings
    family: str
    seed: int
    learning_rate: float | None
    trains: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TrialRecord(TrialIdentity):
    """Holds the content of a `trial.json`: a failure, unless it is a `FittedTrial`.

    `life` is the id of the attempt at the comparison in which the trial failed; None if it would fail in every attempt.
    """

    status: Literal["ok", "failed"]
    reason: str | None
    life: str | None = nullable()
    seconds: NonNegative | None = None

    @classmethod
    def failure(cls, identity: TrialIdentity, reason: str, attempt_id: str | None) -> TrialRecord:
        """Return the record of a trial that failed."""
        return identity.extended(TrialRecord, status="failed", reason=reason, life=attempt_id)

    @classmethod
    def _class_of(cls, value: Mapping[str, object]) -> type[TrialRecord]:
        """Choose `FinishedTrial` for what has figures of the test split, `FittedTrial` for what has only others."""
        if not value.keys().isdisjoint(_TEST):
            return FinishedTrial
        return TrialRecord if value.keys().isdisjoint(_FIT) else FittedTrial


_IDENTITY = ("technique", "settings", "family", "seed", "learning_rate", "status", "reason")
_FIT = ("label", "validation_loss", "findings", "training", "curve", "validation_curve", "packed", "cost", "memory")
_TEST = ("score", "nll", "per_example", "answers", "forgetting", "confusion", "lengths", "export_format")


@dataclass(frozen=True, kw_only=True)
class FittedTrial(TrialRecord):
    """Holds a trial that is trained and saved.

    Attributes:
        label: the adaptation's display name; empty if it is the technique's name.
        validation_loss: loss in nats per answer token.
        findings: what the technique reports about itself.
        training: what it was trained on.
        curve: training loss by step.
        validation_curve: validation loss by step, if any was taken on the way.
        packed: True, or the reason why batches were padded.
        cost: what the fit cost.
        memory: what was changed when memory ran out.
    """

    ORDER: ClassVar[tuple[str, ...]] = (*_IDENTITY, *_FIT, "seconds")
    label: str
    validation_loss: float
    findings: dict[str, Finding]
    training: Training
    curve: Curve
    validation_curve: Curve | None = None
    packed: bool | str
    cost: FitCost
    memory: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrialScore(JsonRecord):
    """Holds the test score of one seed; `cut` counts prompts that exceed the window and were truncated."""

    metric: str
    mean: float
    nll: float
    others: Numbers
    examples: Count
    cut: Count


@dataclass(frozen=True, kw_only=True)
class FinishedTrial(FittedTrial):
    """Holds a trial whose test split is scored; `answers` are those to the first examples.

    `confusion` is of a classification, `lengths` of a generation; `export_format` is the format that most programs read
    among those that the adaptation can be exported to.
    """

    ORDER: ClassVar[tuple[str, ...]] = (*_IDENTITY, *_FIT, *_TEST, "seconds")
    cost: Cost = field()
    score: TrialScore
    nll: float
    per_example: tuple[float, ...]
    answers: tuple[str, ...]
    forgetting: Forgetting | None
    confusion: Confusion | None = None
    lengths: AnswerLengths | None = None
    export_format: str | None = None
