"""Where an adaptation comes from: how it was made, and its row if it belongs to a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunewise.adaptation.artifact import FILE
from tunewise.adaptation.peft_adapter import read_config
from tunewise.adaptation.record import AdaptationRecord
from tunewise.core import artifact_writer
from tunewise.core.json_record import Count, JsonRecord
from tunewise.results.schema import BudgetFacts, Comparison, Cost, Forgetting, Score, ScoredRow, Settings


@dataclass(frozen=True, kw_only=True)
class Standing(JsonRecord):
    """The figures of a comparison's row that a model card shows."""

    technique: str
    label: str | None
    score: Score
    forgetting: Forgetting | None
    cost: Cost | None
    nll: float | None
    learning_rate: float | None
    seeds: tuple[int, ...] | None
    rank: tuple[int, int] | None

    @classmethod
    def of(cls, row: ScoredRow) -> Standing:
        """Take the figures of a row."""
        return cls(**{name: getattr(row, name) for name in cls.names()})


@dataclass(frozen=True, kw_only=True)
class MeasuredOn(JsonRecord):
    """The data of a comparison, and how much of it was used."""

    name: str
    source: str
    kind: str
    metric: str
    train: Count
    validation: Count
    test: Count


@dataclass(frozen=True, kw_only=True)
class Compared(JsonRecord):
    """The comparison that an adaptation lies in: its row, the base's, and what they were measured on."""

    row: Standing
    base: Standing | None
    rows: Count
    task: MeasuredOn
    budget: BudgetFacts
    device: str | None
    created: str

    @classmethod
    def of(cls, folder: Path, technique: str) -> Compared | None:
        """Read the comparison, if `folder` is DIR/trials/<trial>/adaptation and DIR holds one; else return None."""
        place = folder.absolute()
        path = place.parents[2] / "compare.json" if len(place.parents) > 2 else place / "compare.json"
        if place.parents[1].name != "trials" or not path.is_file():
            return None
        result = Comparison.read(path)
        rows = {row.technique: Standing.of(row) for row in result.scored if row.status == "ok"}
        if technique not in rows:
            return None
        task = result.task
        return cls(
            row=rows[technique],
            base=rows.get("base"),
            rows=len(rows),
            task=MeasuredOn(
                name=task.name,
                source=task.source,
                kind=task.kind,
                metric=task.metric,
                train=task.train,
                validation=task.validation,
                test=task.test,
            ),
            budget=result.budget,
            device=result.machine.device,
            created=result.created,
        )


@dataclass(frozen=True, kw_only=True)
class Provenance(JsonRecord):
    """How an adaptation was made.

    Attributes:
        technique: its name; of another program's adapter, "peft:" and its kind.
        label: its name for people.
        settings: of the technique.
        base: name, revision and fingerprint of the model, as far as they are known.
        style: how prompts are written.
        record: what its fit wrote down.
        comparison: the one that it lies in.
    """

    technique: str
    label: str | None = None
    settings: Settings
    base: dict[str, object]
    style: dict[str, object]
    record: dict[str, object]
    comparison: Compared | None

    @classmethod
    def of(cls, facts: AdaptationRecord, comparison: Compared | None = None) -> Provenance:
        """Take from an adaptation's record how it was made."""
        return cls(
            technique=facts.technique,
            label=facts.label,
            settings=facts.settings,
            base=facts.base.to_json(),
            style=facts.style.to_json(),
            record=facts.record,
            comparison=comparison,
        )


def facts_of(folder: Path) -> Provenance:
    """Read the provenance of the adaptation in a folder; a PEFT adapter of another program has little."""
    if not (folder / FILE).is_file():  # a PEFT adapter of another program's
        config = read_config(folder)
        name = str(config.get("peft_type", "adapter")).lower()
        base = {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")}
        return Provenance(technique=f"peft:{name}", settings={}, base=base, style={}, record={}, comparison=None)
    facts = AdaptationRecord.of_file(artifact_writer.read(folder).json(FILE), folder / FILE)
    return Provenance.of(facts, Compared.of(folder, facts.technique))
