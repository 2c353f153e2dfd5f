"""The tables of plans, advice, the atlas and techniques at the widths of terminals."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from terminal_widths import WIDTHS, printed
from tunewise.advice.advise import advice_for
from tunewise.advice.atlas.records import find, shipped
from tunewise.advice.evidence import Evidence
from tunewise.advice.features import Features
from tunewise.advice.plan.plan_row import Memory, Parameters, PlanRow, Request, Time
from tunewise.advice.published.publications import publications
from tunewise.advice.question import Question
from tunewise.cli.views.advice import atlas_table, record_page, render_advice
from tunewise.cli.views.plan import plan_page
from tunewise.cli.views.published import published_page
from tunewise.cli.views.techniques import peft_table, render_technique, tree
from tunewise.techniques.registry import all_techniques

NAMES = ["base", "lora", "icl", "full", "peft:vera", "lora+prompt_tuning"]


def check_fits(text, width, names):
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "…" not in text
    words = {word for line in lines for word in line.split()[:2]}
    for name in names:
        assert name.split()[0] in words, f"the row {name} is missing or cut"


def plan_row(name, seconds=190.0):
    return PlanRow(
        technique=name,
        verdict="fits with",
        changed={"per_device_train_batch_size": 4, "gradient_checkpointing": True},
        parameters=Parameters(optimised=3_050_000, stored=3_050_000),
        artifact_bytes=12.2e6,
        memory=Memory(peak=1.36e9),
        time=Time(seconds=seconds),
        request=Request(prompt_tokens=1602.0, seconds=0.047),
        micro_batch=1280,
    )


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_fits(width, wide):
    rows = [plan_row(name) for name in NAMES]
    rows.append(PlanRow(technique="mpt", verdict="not possible", reason="it needs data of related tasks"))
    text = printed(plan_page(rows, 24e9, wide=wide), width)
    check_fits(text, width, [*NAMES, "mpt"])
    assert "1.36 GB" in text and "mpt: it needs data" in text
    assert ("3 min 10 s" in text) or width == 60
    for column in ("optimised", "largest batch", "request"):
        assert all(word in text for word in column.split())
    assert ("3.05M" in text) == (wide or width >= 200)


@pytest.fixture(scope="module")
def advices():
    """Advice without and with a plan."""
    features = Features(
        train=2000.0,
        generation=0.0,
        unseen=0.1,
        special_tokens=0.0,
        room=20.0,
        prompt_tokens=30.0,
        answer_tokens=4.0,
        parameters=135e6,
        examples=800.0,
    )
    evidence = Evidence.collect(all_techniques(), records=shipped())
    planned = replace(evidence, planner=lambda memory: [plan_row(name) for name in all_techniques()])
    return [advice_for(known, features, Question()) for known in (evidence, planned)]


@pytest.mark.parametrize("width", WIDTHS)
def test_advice_fits(width, advices):
    for planned, advice in enumerate(advices):
        text = printed(render_advice(advice), width)
        check_fits(text, width, [row.forecast.technique for row in advice.rows])
        assert ("memory" in text.partition("What would")[0]) >= (planned and width >= 80)
        reasons, sources = advice.reasons()
        assert len(sources) == len(set(sources)) and all(f"[{place}] " in text for place, _ in enumerate(sources, 1))
        words = set(text.split())
        assert all(reason and set(reason.split()) <= words for reason in (*reasons, *sources))


def test_a_comparison_that_several_rows_quote_is_named_once(advices):
    for advice in advices:
        reasons, sources = advice.reasons()
        quoting = [row for row in advice.rows if any(sentence.source for sentence in row.reasons)]
        assert len(quoting) > len(sources) > 0
        for row, reason in zip(advice.rows, reasons, strict=True):
            for sentence in row.reasons:
                assert sentence.tabulated or (sentence.finding or sentence.text) in reason
                assert not sentence.source or sentence.source not in reason
        assert all(
            any(source.endswith(each.source) for row in advice.rows for each in row.reasons if each.source)
            for source in sources
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_atlas_fits(width):
    records = shipped()
    text = printed(atlas_table(records.values(), Path("atlas")), width)
    check_fits(text, width, records)
    record = find(next(iter(records)))
    check_fits(printed(record_page(record), width), width, [row.technique for row in record.rows])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_published_results_fit(width, wide):
    listed = publications()
    text = printed(published_page(listed.values(), wide=wide), width)
    check_fits(text, width, [table.id for publication in listed.values() for table in publication.tables])
    assert "lora 70.4, prefix_tuning 69.7" in text or width < 120
    assert all(word in text for word in ("icl", "full+rag", "peft:ia3", "0.5133", "tuned alike" if wide else "lora"))


@pytest.mark.parametrize("width", WIDTHS)
def test_techniques_fit(width):
    assert "…" not in printed(tree(), width)
    for name in ("lora", "icl", "mpt", "adapter"):
        text = printed(render_technique(name), width)
        assert max(map(cell_len, text.splitlines())) <= width and "…" not in text
        help_words = {word for item in fields(all_techniques()[name]) for word in item.metadata["help"].split()}
        assert help_words <= set(text.split())
    facts = {
        "parameters": 12_000,
        "trains": True,
        "merges": False,
        "reason": "it needs the weights of the base as float",
    }
    rows = [{"technique": name, **facts} for name in NAMES]
    check_fits(printed(peft_table(rows, "world"), width), width, NAMES)
