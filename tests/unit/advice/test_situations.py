"""What advice says in stated situations, beside what the literature supports; each has its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from tunewise.advice.advise import advice_for, candidate_names
from tunewise.advice.atlas.records import shipped
from tunewise.advice.evidence import Evidence
from tunewise.advice.features import Features
from tunewise.advice.plan.plan_row import PlanRow
from tunewise.advice.published.publications import publications
from tunewise.advice.question import Question
from tunewise.techniques.registry import make

GB = 1e9
LABELS = {"generation": 0.0, "labels": 6.0, "answer_tokens": 3.0, "unseen": 0.0}
MANY_LABELS = {**LABELS, "labels": 77.0, "answer_tokens": 5.0}
DOCUMENTS = {"documents": 1.0, "in_documents": 1.0, "answer_tokens": 6.0, "train": 2000.0}
NEW_TEXT = {"prompt_tokens": 1.0, "answer_tokens": 1000.0}
SEVEN = Features(
    train=20_000.0,
    generation=1.0,
    prompt_tokens=100.0,
    answer_tokens=100.0,
    unseen=1.0,
    special_tokens=1.0,
    room=20.0,
    parameters=6.7e9,
    examples=3000.0,
)

# Parameters that are trained on the shape of Llama 7B (d 4096, f 11008, 32 blocks), four bytes each in the adaptation.
BLOCK = 4 * 2 * 4096 + 3 * (4096 + 11008)  # inputs + outputs of a block's linears
TRAINED = {
    "full": 6_738_415_616,
    "lora": 16 * 32 * BLOCK,
    "qlora": 16 * 32 * BLOCK,
    "rag+lora": 16 * 32 * BLOCK,
    "dylora": 16 * 32 * BLOCK,
    "adalora": 24 * 32 * BLOCK,
    "last_layers": 4 * 202_383_360,
    "bitfit": 32 * (5 * 4096 + 2 * 11008),
    "prompt_tuning": 20 * 4096,
    "mpt": 20 * 4096,
    "p_tuning": 20 * 4096,
    "prefix_tuning": 20 * 2 * 32 * 4096,
    "pasta": 64 * 4096,
    "icl": 0,
    "rag": 0,
}
LONGER = {"icl": 1500.0, "rag": 600.0, "rag+lora": 600.0, "prompt_tuning": 20.0, "mpt": 20.0, "p_tuning": 20.0}
PEAKS = {
    "full": 16.0,
    "qlora": 1.0,
}  # bytes per parameter of the model in training; 2.6 for what freezes 16-bit weights


def planner_of(features):
    """A plan for a model of so many parameters, in proportion to Llama 7B."""
    share = features.parameters / 6.7e9

    def row(name, memory):
        peak = PEAKS.get(name, 2.6) * features.parameters
        fits = memory is None or peak <= memory
        trained = round(TRAINED.get(name, 20_000_000) * share)
        value = {
            "technique": name,
            "verdict": "fits" if fits else "does not fit",
            "reason": None if fits else f"it needs {peak / GB:.3g} GB",
            "parameters": {"optimised": trained, "stored": trained},
            "artifact_bytes": 4 * trained + 2000,
            "memory": {"peak": peak},
            "request": {"prompt_tokens": features.prompt_tokens + LONGER.get(name, 0.0)},
        }
        return PlanRow.from_json(value)

    names = [name for name in candidate_names(documents=bool(features.documents)) if name != "base"]
    return lambda memory: [row(name, memory) for name in names]


@dataclass(frozen=True)
class Stated:
    """A situation, and what advice may say first; `out` must be ruled out."""

    says: str
    source: str
    first: set[str]
    differs: Mapping[str, float] = field(default_factory=dict)
    question: Question = field(default_factory=Question)
    out: frozenset[str] = frozenset()

    @property
    def features(self):
        return SEVEN.changed(**self.differs)


TRAINED_WELL = {"lora", "full", "adapter", "qlora"}
SITUATIONS = (
    Stated("documents hold the answers, 7B", "ovadia-2024", {"rag"}, DOCUMENTS),
    Stated("documents hold the answers, 1.6B", "soudani-2024", {"rag"}, {**DOCUMENTS, "parameters": 1.6e9}),
    Stated("documents, and only 24 questions", "soudani-2024", {"rag"}, {**DOCUMENTS, "train": 24.0}),
    Stated("quality pays on documents", "balaguer-2024", {"rag", "rag+lora"}, {**DOCUMENTS, "train": 50_000.0}),
    Stated(
        "documents change after training",
        "ovadia-2024",
        {"rag", "rag+lora"},
        DOCUMENTS,
        Question(documents_change=True),
        frozenset({"full", "lora", "icl"}),
    ),
    Stated("24 examples of 6 labels", "mosbach-2023", {"icl", "prompt_tuning"}, {**LABELS, "train": 24.0}),
    Stated("100 examples of 77 labels", "bertsch-2024", {"icl", *TRAINED_WELL}, {**MANY_LABELS, "train": 100.0}),
    Stated("60 examples of 77 labels", "bertsch-2024", {"icl"}, {**MANY_LABELS, "train": 60.0}),
    Stated("16,000 examples of 6 labels", "bertsch-2024", TRAINED_WELL, {**LABELS, "train": 16_000.0}),
    Stated("20,000 worked problems, 3B", "peft-2026", {"lora", "full"}, {"parameters": 3.2e9}),
    Stated("10,000 worked problems, 7B", "hu-2023", {"lora", "full", "adapter"}, {"train": 10_000.0}),
    Stated(
        "instructions on 8 GB", "dettmers-2023", {"qlora"}, {}, Question(memory=8 * GB), frozenset({"full", "lora"})
    ),
    Stated(
        "65B on one card of 80 GB",
        "dettmers-2023",
        {"qlora"},
        {"parameters": 65e9},
        Question(memory=80 * GB),
        frozenset({"full", "lora"}),
    ),
    Stated("20 billion tokens of a new domain", "biderman-2024", {"full"}, {**NEW_TEXT, "train": 4.9e6}),
    Stated("50,000 texts far from pretraining", "schulman-2025", {"full", "lora"}, {**NEW_TEXT, "train": 50_000.0}),
    Stated(
        "50,000 such texts on 24 GB",
        "schulman-2025",
        {"lora", "qlora", "adapter"},
        {**NEW_TEXT, "train": 50_000.0},
        Question(memory=24 * GB),
        frozenset({"full"}),
    ),
    Stated("500 tenants", "hu-2021", {"lora"}, {}, Question(tenants=500), frozenset({"full", "last_layers"})),
    Stated(
        "nothing may be forgotten",
        "biderman-2024",
        {"lora", "adapter"},
        {},
        Question(forget_nothing=True),
        frozenset({"full", "last_layers"}),
    ),
    Stated(
        "at most 6 MB on the device",
        "liu-2022",
        {"bitfit", "prompt_tuning", "mpt", "icl", "p_tuning", "pasta"},
        LABELS,
        Question(needs=("artifact<6MB",)),
        frozenset({"full", "lora", "qlora"}),
    ),
    Stated(
        "requests may not become slower",
        "hu-2021",
        {"lora", "full"},
        {},
        Question(needs=("mergeable", "prompt<150")),
        frozenset({"icl", "rag", "adapter", "prefix_tuning"}),
    ),
    Stated(
        "records to sentences, 355M",
        "hu-2021",
        {"lora", "prefix_tuning"},
        {"parameters": 3.5e8, "train": 42_000.0, "answer_tokens": 30.0},
    ),
    Stated(
        "1,000 examples, 175B",
        "hu-2021",
        {"lora", "full", "qlora", "bitfit"},
        {**LABELS, "parameters": 1.75e11, "train": 1000.0},
    ),
)


@pytest.fixture(scope="module")
def evidence():
    candidates = {name: make(name) for name in candidate_names(documents=True)}
    return Evidence.collect(candidates, records=shipped())


def asked(evidence, stated):
    names = candidate_names(documents=bool(stated.features.documents))
    candidates = {name: candidate for name, candidate in evidence.candidates.items() if name in names}
    known = replace(evidence, candidates=candidates, planner=planner_of(stated.features), swappable={"rag+lora": True})
    return advice_for(known, stated.features, stated.question)


@pytest.mark.parametrize("stated", SITUATIONS, ids=lambda stated: stated.says)
def test_what_the_literature_supports_is_advised(evidence, stated):
    assert stated.source in publications()
    advice = asked(evidence, stated)
    assert advice.advised in stated.first, [sentence.text for sentence in advice.summary[:3]]
    out = {row.forecast.technique for row in advice.rows if row.verdict == "out"}
    assert stated.out <= out
    first, because, change = (sentence.text for sentence in advice.summary[:3])
    assert first.startswith(f"Use {advice.advised}:") and because.startswith("Because ")
    assert change.startswith("It would change ")


def test_there_are_twenty_situations():
    assert len(SITUATIONS) >= 20 and len({stated.says for stated in SITUATIONS}) == len(SITUATIONS)


def test_rag_with_lora_is_second_where_documents_hold_the_answers(evidence):
    """Balaguer et al.: what retrieval and fine-tuning add is cumulative."""
    advice = asked(evidence, SITUATIONS[0])
    assert [row.forecast.technique for row in advice.rows[:2]] == ["rag", "rag+lora"]


def test_documents_that_hold_none_of_the_answers_are_not_searched_first(evidence):
    stated = Stated("", "ovadia-2024", set(), {**DOCUMENTS, "in_documents": 0.0})
    assert asked(evidence, stated).advised not in ("rag", "rag+lora")


def test_what_a_rank_cannot_hold_is_said_with_the_parameters_that_it_takes(evidence):
    """Schulman et al.: two bits a parameter, one bit a token."""
    stated = Stated("", "schulman-2025", set(), {**NEW_TEXT, "train": 200_000.0})
    why = next(row.reasons for row in asked(evidence, stated).rows if row.forecast.technique == "lora")
    tokens, held = 200_000 * 1000, 2 * TRAINED["lora"]
    words = " ".join(sentence.text for sentence in why)
    assert f"{-(-tokens // held)} times as many parameters" in words and f"{TRAINED['lora']:,}" in words


def test_three_million_parameters_make_nothing_certain_at_seven_billion():
    small = {name: record for name, record in shipped().items() if record.model.parameters < 1e8}
    candidates = {name: make(name) for name in candidate_names(documents=False)}
    alone = Evidence.collect(candidates, records=small, comparisons={})
    advice = advice_for(alone, SEVEN, Question())
    top = advice.rows[0]
    assert top.chance < 0.5 and top.forecast.high - top.forecast.low > 0.5
    known = advice_for(Evidence.collect(candidates, records=shipped()), SEVEN, Question())
    widths = [
        {row.forecast.technique: row.forecast.high - row.forecast.low for row in each.rows}["lora"]
        for each in (known, advice)
    ]
    assert widths[0] < widths[1]


def test_no_evidence_is_repeated_over_the_rows(evidence):
    for stated in SITUATIONS[:1] + SITUATIONS[5:6]:
        said = [
            sentence.text
            for row in asked(evidence, stated).rows
            for sentence in row.reasons
            if any(link.kind in ("atlas", "paper") for link in sentence.links)
        ]
        assert len(said) > 15 and max(said.count(sentence) for sentence in said) == 1
