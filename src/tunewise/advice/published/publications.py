"""Publications with results of our techniques: one JSON file for each in this folder, read strictly.

    {"schema": 1, "id": "hu-2021", "title": ..., "authors": ..., "year": ..., "url": ..., "readings": {...},
     "models": {...}, "tables": [{..., "rows": [{...}]}], "claims": [{...}], "constants": [{...}]}

Every table, claim and constant names the reading that it was taken from. Scores stand as they are printed, and figures
that could not be read again are left out. `publications` gives the files, `results` their rows one by one.

Rows of a table can be compared where their model and their budget are the same. What a publication says of its figures
is a claim; a file whose figures do not bear out its claims is refused, so that a slip of the pen is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from tunewise.core import artifact_reader
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import Check, JsonRecord, NonNegative

FOLDER = Path(__file__).parent
LIMIT_BYTES = 1 << 18

Kind = Literal[
    "classification",
    "multiple choice",
    "question answering",
    "facts from documents",
    "knowledge",
    "generation",
    "arithmetic reasoning",
    "code",
    "instruction following",
    "continued pretraining",
]
Comparable = Literal["tuned alike", "partly tuned", "untuned", "quoted", "other models", "own budgets"]
ConstantName = Literal[
    "lora_rate_over_full",
    "lora_rate_over_full_in_short_runs",
    "lora_alpha",
    "lora_rate_spread_over_ranks",
    "lora_flops_over_full",
    "stored_bits_per_parameter",
    "bits_per_token_to_learn",
    "lora_batch_size_without_loss",
    "full_bytes_per_parameter",
    "qlora_bytes_per_parameter",
    "full_memory_over_inference",
    "peft_memory_over_inference",
    "full_gain_on_documents",
    "rag_gain_after_full",
]

_PART = r"(?:[a-z][a-z0-9_]*|peft:[a-z0-9_]+)"
_TECHNIQUE = re.compile(rf"{_PART}(?:\+{_PART})*")
_SLUG = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
Words = Annotated[str, Check(lambda text: 1 <= len(text) <= 400 and text == text.strip(), "1 to 400 characters long")]
Sentence = Annotated[str, Check(lambda text: 10 <= len(text) <= 400 and text[-1] == ".", "a sentence")]
Slug = Annotated[str, Check(lambda text: _SLUG.fullmatch(text) is not None, "lower-case words joined by hyphens")]
Link = Annotated[str, Check(lambda text: re.fullmatch(r"https://\S+", text) is not None, "an https address")]
Commit = Annotated[str, Check(lambda text: _COMMIT.fullmatch(text) is not None, "40 hexadecimal digits")]
Technique = Annotated[
    str, Check(lambda text: _TECHNIQUE.fullmatch(text) is not None, "techniques or peft: names, joined by +")
]
Positive = Annotated[float, Check(lambda value: value > 0, "above 0")]
PositiveCount = Annotated[int, Check(lambda value: value > 0, "above 0")]
Share = Annotated[float, Check(lambda value: 0 <= value <= 1, "between 0 and 1")]


@dataclass(frozen=True, kw_only=True)
class Reading(JsonRecord):
    """Says how figures were read: the place is files of a repository with their commit, or a page."""

    how: Literal["authors' files", "full text", "abstract"]
    place: Words
    commit: Commit | None = None
    note: Sentence | None = None


@dataclass(frozen=True, kw_only=True)
class Model(JsonRecord):
    """Describes a base model; `parameters` is its size as the publication or the model's name gives it."""

    parameters: PositiveCount
    architecture: Literal["decoder", "encoder", "encoder-decoder"]


@dataclass(frozen=True, kw_only=True)
class Row(JsonRecord):
    """Holds one technique's figures.

    Attributes:
        technique: a technique of ours, a `peft:` name, or several joined by "+".
        model: a key of the publication's models.
        form: the variant or setting; rows of the same technique differ in it.
        budget: what the rows that it may be compared with have in common, where a table has several budgets.
        train: examples that were learnt from, or shown in the prompt, where it is not the table's number.
        score: as printed, between 0 and the table's scale.
        spread: as printed after ±, on the same scale.
        trained_parameters: how many are optimised.
        nll_rise: forgetting: rise of the loss on other text, in nats per token.
        kept: forgetting: accuracy after training on what the base could do before, between 0 and 1.
        memory_bytes: peak in training.
        train_seconds: time of training, on the publication's device.
        stored_bytes: size of the adaptation.
    """

    technique: Technique
    model: Words
    score: NonNegative
    form: Words | None = None
    budget: Words | None = None
    train: PositiveCount | None = None
    spread: NonNegative | None = None
    trained_parameters: PositiveCount | None = None
    nll_rise: float | None = None
    kept: Share | None = None
    memory_bytes: PositiveCount | None = None
    train_seconds: Positive | None = None
    stored_bytes: PositiveCount | None = None


@dataclass(frozen=True, kw_only=True)
class Table(JsonRecord):
    """Holds the rows of a published table for one task and one metric.

    Attributes:
        id: its name within the publication.
        where: the table's number, or the file of results.
        task: the data set, and what of it.
        kind: the kind of task.
        metric: how answers were scored; more is better.
        scale: the largest possible score, as printed.
        train: examples that were learnt from, or null where it is not known or differs between rows.
        about: where `train` is null, about how many examples each budget has ("" where there is none), for finding
            tables that are similar: from a range, or from tokens, counted in sequences of 4,096.
        comparable: how far it is comparable with our own records, which tune every technique's rate on validation
            examples under one budget and test it with several seeds.
        because: why, in a sentence.
        read: a key of the publication's readings.
    """

    id: Slug
    where: Words
    task: Words
    kind: Kind
    metric: Words
    scale: Literal[1, 100]
    train: PositiveCount | None
    comparable: Comparable
    because: Sentence
    read: Slug
    rows: tuple[Row, ...]
    about: dict[str, PositiveCount] | None = None

    def groups(self, *, across_models: bool = False) -> Iterator[tuple[Row, ...]]:
        """Yield the rows that can be compared with one another: those of one model, unless told, and one budget."""
        groups: dict[tuple[str, str | None], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(("" if across_models else row.model, row.budget), []).append(row)
        yield from map(tuple, groups.values())

    def __post_init__(self) -> None:
        """Check that no row stands twice and that scores lie within the scale."""
        seen = set()
        for row in self.rows:
            name = (row.technique, row.form, row.model, row.budget)
            if name in seen:
                raise ValueError(f"{self.id} has {row.technique} twice with the same model, form and budget")
            seen.add(name)
            if max(row.score, row.spread or 0) > self.scale:
                raise ValueError(f"{self.id} scores {row.technique} {row.score}, which is above {self.scale}")
        if not self.rows:
            raise ValueError(f"{self.id} has no rows")


@dataclass(frozen=True, kw_only=True)
class Claim(JsonRecord):
    """Holds what a publication says of two techniques; without tables it is a direction only.

    `better` is at least as good as `worse` (or `alike` it, at most `within` apart, in the tables' unit) in each group
    of rows of `tables` that has both, where the best row of each counts. `across_models` compares rows of different
    models, where the publication does.
    """

    says: Sentence
    better: Technique
    worse: Technique
    alike: bool = False
    within: NonNegative = 0
    measure: Literal["score", "kept"] = "score"
    tables: tuple[Slug, ...] = ()
    models: tuple[Words, ...] | None = None
    budgets: tuple[Words, ...] | None = None
    across_models: bool = False
    read: Slug

    def margins(self, table: Table) -> Iterator[float]:
        """Yield by how much the better side leads in each group of a table that has both sides."""
        for group in table.groups(across_models=self.across_models):
            if self.models and group[0].model not in self.models:
                continue
            if self.budgets and group[0].budget not in self.budgets:
                continue
            better, worse = self._best(group, self.better), self._best(group, self.worse)
            if better is not None and worse is not None:
                yield better - worse

    def holds(self, margin: float) -> bool:
        """Tell whether a margin is as the claim says."""
        return abs(margin) <= self.within + 1e-9 if self.alike else margin >= -self.within - 1e-9

    def _best(self, rows: tuple[Row, ...], technique: str) -> float | None:
        values = [row.kept if self.measure == "kept" else row.score for row in rows if row.technique == technique]
        return max((value for value in values if value is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Constant(JsonRecord):
    """Holds a figure that belongs to no table, such as the ratio of two learning rates."""

    name: ConstantName
    value: Positive
    says: Sentence
    read: Slug


@dataclass(frozen=True, kw_only=True)
class Publication(JsonRecord):
    """Holds what was read in one publication."""

    schema: Literal[1]
    id: Slug
    title: Words
    authors: Words
    year: Annotated[int, Check(lambda year: 2000 <= year <= 2100, "a year")]
    url: Link
    readings: dict[str, Reading]
    models: dict[str, Model]
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    constants: tuple[Constant, ...]

    @property
    def cited(self) -> str:
        """Return the reference: authors, year and title."""
        return f'{self.authors} {self.year}, "{self.title}"'

    def table(self, name: str) -> Table:
        """Return a table by its id; raises `KeyError` if there is none."""
        return {table.id: table for table in self.tables}[name]

    def __post_init__(self) -> None:
        """Check that what is named is there, that nothing is named in vain, and that the claims hold."""
        names = [table.id for table in self.tables]
        if len({*names}) < len(names):
            raise ValueError("two tables have the same id")
        if not (self.tables or self.claims or self.constants):
            raise ValueError("it holds no result")
        read = {part.read for parts in (self.tables, self.claims, self.constants) for part in parts}
        self._check_names("reading", {*self.readings}, read)
        self._check_names("model", {*self.models}, {row.model for table in self.tables for row in table.rows})
        for claim in self.claims:
            self._check(claim)

    def _check_names(self, what: str, given: set[str], used: set[str]) -> None:
        for name in sorted(given ^ used):
            raise ValueError(f"the {what} {name[:80]!r} is {'not used' if name in given else 'not described'}")

    def _check(self, claim: Claim) -> None:
        for name in claim.tables:
            if name not in {table.id for table in self.tables}:
                raise ValueError(f"a claim names the table {name[:80]!r}, which is not there")
            margins = list(claim.margins(self.table(name)))
            if not margins:
                raise ValueError(f'{name} has no rows for the claim "{claim.says}"')
            if not all(map(claim.holds, margins)):
                raise ValueError(f'the figures of {name} do not bear out the claim "{claim.says}"')


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row with what it belongs to; `score`, `spread` and `train` are ready for use."""

    publication: Publication
    table: Table
    row: Row

    @property
    def model(self) -> Model:
        """Return the base model."""
        return self.publication.models[self.row.model]

    @property
    def score(self) -> float:
        """Return the score between 0 and 1."""
        return self.row.score / self.table.scale

    @property
    def train(self) -> int | None:
        """Return the number of training examples, where it is known."""
        return self.row.train or self.table.train


def read(path: Path) -> Publication:
    """Read one file.

    Raises:
        ArtifactError: it is not as described above; the field, or the claim that does not hold, is named.
    """
    value = artifact_reader.read_json(path, limit_bytes=LIMIT_BYTES)
    publication = Publication.from_json(value, path, "is not a publication's record", "correct it")
    if publication.id != path.stem:
        raise ArtifactError(f'{path} holds the publication "{publication.id}"; name the file after it')
    return publication


@cache
def publications() -> dict[str, Publication]:
    """Read the package's publications, by id.

    Raises:
        ArtifactError: a file is damaged.
    """
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.json"))}


@cache
def results() -> tuple[Result, ...]:
    """Return every row of every publication.

    Raises:
        ArtifactError: a file is damaged, or names a technique that there is not.
    """
    from tunewise.techniques.registry import all_techniques

    found = tuple(
        Result(publication=publication, table=table, row=row)
        for publication in publications().values()
        for table in publication.tables
        for row in table.rows
    )
    for result in found:
        for part in result.row.technique.split("+"):
            if part not in all_techniques() and not part.startswith("peft:"):
                raise ArtifactError(
                    f'{FOLDER / result.publication.id}.json names the technique "{part}" in {result.table.id}, '
                    "which there is not; use a name that tunewise techniques lists, or one of PEFT's after peft:"
                )
    return found
