"""Advice: what it says in settled situations, and that every link of its sentences leads to the figure they print."""

import math
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest

from evidence import follow
from tunewise.advice.advise import advice_for
from tunewise.advice.advise import advise as draw_up_advice
from tunewise.advice.atlas.records import shipped
from tunewise.advice.evidence import Evidence
from tunewise.advice.features import Features
from tunewise.advice.forecast import forecasts
from tunewise.advice.observations import published_comparisons
from tunewise.advice.plan.plan_row import PlanRow
from tunewise.advice.planning import planner_for
from tunewise.advice.question import Question, Situation
from tunewise.advice.ranking import rank
from tunewise.advice.rules import refusal
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.core.seeds import generator
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import tiny_base, tiny_task

GB = 1e9
SEVEN = Features(
    train=20_000.0,
    generation=1.0,
    prompt_tokens=100.0,
    answer_tokens=100.0,
    unseen=1.0,
    special_tokens=1.0,
    room=20.0,
    parameters=6.7e9,
    examples=20_000.0,
)
FAR = SEVEN.changed(train=5e6, examples=5e6, prompt_tokens=1.0, answer_tokens=4000.0)  # a new domain's whole text
PEAKS = {"full": 110 * GB, "qlora": 7 * GB}  # of a model of 7 billion parameters; its weights alone take 14 GB


def plan(memory):
    """Rows as a plan gives them."""
    rows = []
    for name in all_techniques():
        peak = PEAKS.get(name, 18 * GB)
        fits = memory is None or peak <= memory
        rows.append(
            {
                "technique": name,
                "verdict": "fits with" if fits else "does not fit",
                "with": {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
                "reason": None if fits else f"its weights and activations take {peak / GB:.3g} GB",
                "parameters": {"optimised": 4_000_000, "stored": 4_000_000},
                "artifact_bytes": 16_000_000 if name != "full" else 27 * GB,
                "memory": {"weights": 14e9, "peak": peak},
                "time": {"seconds_per_step": 2.0, "seconds_per_epoch": 2000.0, "seconds": 4000.0},
                "request": {"prompt_tokens": 100.0 if name not in ("icl", "rag") else 1500.0},
                "micro_batch": 1,
            }
        )
    return [PlanRow.from_json(row) for row in rows]


@pytest.fixture(scope="module")
def evidence():
    return Evidence.collect(all_techniques(), records=shipped())


@pytest.fixture
def planned(evidence):
    return replace(evidence, planner=plan)


@contextmanager
def fresh(base, name):
    """A technique attached to a base, and taken off again."""
    yield make(name).attach(base, generator(0, "attach"))
    base.release()


def advise(evidence, features, question):
    return advice_for(evidence, features, question).to_json()


def row(advice, name):
    return next(row for row in advice["rows"] if row["technique"] == name)


def sentences(advice):
    general = [*advice["summary"], *(change["sentence"] for change in advice["changes"])]
    return general + [sentence for row in advice["rows"] for sentence in row["why"]]


def text(advice):
    return " ".join(sentence["text"] for sentence in advice["summary"])


# What is settled; `test_situations.py` has more.


def test_what_was_published_is_quoted_with_model_task_and_reference(planned):
    advice = advise(planned, SEVEN, Question(memory=8 * GB))
    assert advice["advised"] == "qlora"
    assert {each["technique"] for each in advice["rows"] if each["verdict"] != "out"} == {"qlora"}
    why = " ".join(sentence["text"] for sentence in row(advice, "qlora")["why"])
    assert "On LLaMA 7B" in why and "Dettmers et al. 2023" in why and "similarity" in why
    assert "18 GB" in row(advice, "lora")["why"][0]["text"]
    half = next(change for change in advice["changes"] if change["change"] == "memory / 2")
    assert half["advised"] is None


def test_the_first_three_lines_say_what_to_do_why_and_what_would_change_it(planned):
    advice = advise(planned, FAR, Question())
    first, because, change = (sentence["text"] for sentence in advice["summary"][:3])
    assert first.startswith(f"Use {advice['advised']}: ") and "probability" in first
    assert because.startswith("Because ") and "Biderman" in because
    others = {each["advised"] for each in advice["changes"] if not each["same"]} - {None}
    assert change.startswith("It would change ") and all(f"({name})" in change for name in others)


def test_what_the_evidence_cannot_order_is_ordered_by_cost_and_the_words_say_so(planned):
    two = {name: planned.candidates[name] for name in ("full", "lora")}
    advice = advise(replace(planned, candidates=two), SEVEN, Question())
    because = advice["summary"][1]["text"]
    assert advice["advised"] == "lora" and "the evidence cannot order it and full" in because
    assert "16 MB to keep, and 27 GB for full" in because


@pytest.mark.parametrize("features", [SEVEN, FAR, shipped()["world.reviews"].features.features()])
def test_documents_that_change_are_for_rag(evidence, features):
    advice = advise(evidence, features.changed(documents=1.0, in_documents=0.9), Question(documents_change=True))
    assert advice["advised"] == "rag"
    assert "documents change" in row(advice, "full")["why"][0]["text"]
    without = advise(evidence, features, Question(documents_change=True))
    assert without["advised"] is None and "none are given" in row(without, "rag")["why"][0]["text"]


def test_documents_that_hold_the_answers_are_for_rag(evidence):
    features = shipped()["world.town"].features.features().changed(train=300.0, base_loss=4.5)
    advice = advise(evidence, features, Question())
    assert advice["advised"] == "rag"
    without = advise(evidence, features.changed(documents=0.0, in_documents=0.0), Question())
    assert without["advised"] != "rag"


@pytest.mark.parametrize("features", [SEVEN, FAR, shipped()["stories-3m.trec6"].features.features()])
def test_thousands_of_tenants_are_for_small_swappable_adaptations(planned, features):
    advice = advise(planned, features, Question(tenants=5000))
    possible = [row for row in advice["rows"] if row["verdict"] != "out"]
    assert all(planned.is_swappable(each["technique"]).holds for each in possible)
    assert not {"full", "last_layers"} & {each["technique"] for each in possible}
    assert {"lora", "adalora", "prompt_tuning"} <= {each["technique"] for each in possible}


def test_forgetting_nothing_has_its_price_and_says_so(evidence):
    free, keeping = advise(evidence, FAR, Question()), advise(evidence, FAR, Question(forget_nothing=True))
    assert free["advised"] == "full" and keeping["advised"] != "full"
    assert row(keeping, "full")["verdict"] == "out"
    assert "The requirements have a price: full is ruled out" in text(keeping)
    assert "price" not in text(free)


def test_a_longer_prompt_costs_more_with_more_requests(planned):
    def relative_cost(requests):
        expected = forecasts(planned, Situation.planned(SEVEN, Question(requests_per_day=requests), plan))
        return expected["icl"].month_tokens / expected["lora"].month_tokens

    assert relative_cost(1) < 1 < relative_cost(1e6)


# Needs and plans.


def test_needs_leave_out_what_lacks_them(evidence, planned):
    advice = advise(evidence, SEVEN, Question(needs=("mergeable",)))
    out = {each["technique"] for each in advice["rows"] if each["verdict"] == "out"}
    assert out == {name for name, technique in all_techniques().items() if not technique.mergeable}
    swappable = advise(evidence, SEVEN, Question(needs=("swappable",)))
    assert row(swappable, "full")["verdict"] == "out" and row(swappable, "lora")["verdict"] != "out"
    nothing = advise(planned, SEVEN, Question(needs=("mergeable", "prompt<1")))
    assert nothing["advised"] is None and "No technique meets the requirements" in text(nothing)


def test_what_only_a_plan_or_a_comparison_knows_is_refused(evidence):
    with pytest.raises(SettingError, match=r"memory: .*give a planner"):
        advise(evidence, SEVEN, Question(memory=GB))
    with pytest.raises(SettingError, match=r"memory<8GB: .*give a planner"):
        advise(evidence, SEVEN, Question(needs=("memory<8GB",)))
    with pytest.raises(SettingError, match="latency cannot be predicted"):
        Question(needs=("latency<5ms",))
    with pytest.raises(SettingError, match="tenants is 0"):
        Question(tenants=0)


def test_the_plan_decides_what_fits(planned):
    advice = advise(planned, SEVEN, Question(memory=24 * GB, time=5000.0))
    assert row(advice, "full")["verdict"] == "out" and row(advice, "lora")["verdict"] != "out"
    assert row(advice, "lora")["with"]["per_device_train_batch_size"] == 1
    assert advise(planned, SEVEN, Question(time=100.0))["advised"] is None
    assert row(advise(planned, SEVEN, Question(needs=("artifact<1GB",))), "full")["verdict"] == "out"


def test_what_the_model_turns_down_is_out_with_its_reason(evidence):
    advice = advise(replace(evidence, refused={"lora": "lora finds no linear here."}), SEVEN, Question())
    assert row(advice, "lora")["why"][0]["text"] == "Not possible here: lora finds no linear here."


# Evidence.


@pytest.mark.parametrize(
    ("features", "question"),
    [
        (SEVEN, Question()),
        (SEVEN, Question(memory=24 * GB, time=5000.0, needs=("mergeable", "artifact<1GB"))),
        (SEVEN, Question(memory=8 * GB)),
        (FAR, Question(forget_nothing=True, tenants=1000)),
        (SEVEN.changed(documents=1.0, in_documents=0.4, copied=0.3), Question(documents_change=True)),
        (SEVEN, Question(documents_change=True)),
        (shipped()["stories-3m.emotion"].features.features(), Question(needs=("retain", "forgot<1"))),
        (shipped()["world.reviews"].features.features().changed(balance=0.5), Question()),
    ],
)
def test_every_sentence_is_linked_and_every_link_leads_to_its_figure(planned, features, question):
    advice = advise(planned, features, question)
    cited = sentences(advice)
    assert len(cited) > 20
    for sentence in cited:
        assert sentence["evidence"], sentence["text"]
        for link in sentence["evidence"]:
            value = follow(link, advice, planned.records, planned.comparisons)
            assert value == link["value"], link
            assert link["shown"] in sentence["text"], (link, sentence["text"])
            if link["shown"] and isinstance(value, float | int) and not isinstance(value, bool):
                assert figure(link["shown"]) == pytest.approx(float(value), rel=0.06, abs=0.006), link


def figure(shown):
    """The number that a reader takes from what is shown."""
    number, unit = re.fullmatch(r"([-+]?[\d.,]+)\s?(\w*|%)", shown).groups()
    worth = {"": 1.0, "%": 0.01, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    return float(number.replace(",", "")) * worth


def test_a_forecast_is_what_its_row_prints(evidence):
    question = Question(tenants=3)
    expected = forecasts(evidence, Situation(SEVEN, question))
    for each in advise(evidence, SEVEN, question)["rows"]:
        forecast = expected[each["technique"]]
        assert each["gain"] == {"mean": forecast.gain, "low": forecast.low, "high": forecast.high}
        assert each["nll_rise"] == forecast.rise and each["month_tokens"] == forecast.month_tokens
        assert each["prompt_tokens"] == forecast.prompt_tokens and each["artifact_bytes"] == forecast.artifact_bytes
        assert (each["verdict"] == "out") == (refusal(forecast, Situation(SEVEN, question)) is not None)


def test_what_a_plan_says_of_a_candidate_is_in_its_forecast(planned):
    situation = Situation.planned(SEVEN, Question(memory=24 * GB), planned.planner)
    expected = forecasts(planned, situation)
    assert expected["icl"].plan is situation.plan["icl"] and expected["icl"].prompt_tokens == 1500.0
    assert expected["full"].artifact_bytes == 27 * GB
    assert not rank(planned, situation).refused.keys() & {"lora", "qlora"}


def test_what_no_record_has_is_expected_from_the_task_and_the_model_alone():
    """A sentence about it cites its class, and shows no figure that it does not have."""
    alone = Evidence.collect({"lora": all_techniques()["lora"]}, records={}, comparisons={}, swappable={"lora": False})
    situation = Situation(SEVEN, Question(needs=("swappable",)))
    forecast = forecasts(alone, situation)["lora"]
    assert not forecast.quoted and forecast.rise == 0.0 and forecast.seconds == 1.0
    assert forecast.prompt_tokens is None and forecast.artifact_bytes is None  # only a plan knows them
    sentence = refusal(forecast, situation)
    assert sentence.text == "It is not swappable, which is needed."
    assert all(link.shown in sentence.text for link in sentence.links)


def test_figures_of_the_recommender_are_in_the_rows(evidence):
    advice = advise(evidence, SEVEN, Question())
    belief = evidence.predict(SEVEN)
    for each in advice["rows"]:
        assert each["gain"]["mean"] == belief.interval(each["technique"])[0]
    assert math.isclose(sum(each["chance"] for each in advice["rows"]), 1.0)
    ranks = [each["rank"] for each in advice["rows"] if each["rank"]]
    assert ranks == list(range(1, len(ranks) + 1))


def test_a_link_that_leads_nowhere_is_an_error(evidence):
    advice = advise(evidence, SEVEN, Question())
    with pytest.raises(ArtifactError, match="leads nowhere"):
        follow({"kind": "atlas", "ref": "none", "path": "lora.gain"}, advice, evidence.records, evidence.comparisons)


def test_changes_are_asked_again(evidence):
    """Each change equals the advice for the changed situation."""
    advice = {change["change"]: change for change in advise(evidence, FAR, Question())["changes"]}
    more = FAR.changed(train=FAR.train * 10, examples=FAR.examples * 10)
    assert advice["data x 10"]["advised"] == advise(evidence, more, Question())["advised"]
    assert advice["forget nothing"]["advised"] == advise(evidence, FAR, Question(forget_nothing=True))["advised"]
    assert advice["tenants"]["advised"] == advise(evidence, FAR, Question(tenants=1000))["advised"]
    assert not advice["forget nothing"]["same"]
    with_documents = advise(evidence, FAR.changed(documents=1.0, in_documents=1.0), Question())
    assert advice["documents"]["advised"] == with_documents["advised"]
    assert "documents change" in [change["change"] for change in with_documents["changes"]]


def test_what_is_left_out_is_not_known(evidence):
    others = {ref: each for ref, each in published_comparisons().items() if each.publication.id != "hu-2023"}
    without = Evidence.collect(all_techniques(), records=shipped(), comparisons=others)
    assert without.predict(SEVEN).mean != pytest.approx(evidence.predict(SEVEN).mean)


def test_sizes_and_requests_are_those_of_a_plan():
    """Of a model that is planned here, whatever its size: nothing is scaled from a record."""
    base, task = tiny_base(), tiny_task()
    recipes = [make("lora"), make("icl"), make("prompt_tuning")]
    advice = draw_up_advice(base, task, recipes=recipes, examples=80.0)
    for each in planner_for(base, task, recipes, 80.0)(None):
        forecast = next(row.forecast for row in advice.rows if row.forecast.technique == each.technique)
        assert forecast.plan.peak == pytest.approx(each.peak, rel=0.02)
        assert (forecast.artifact_bytes, forecast.prompt_tokens) == (each.artifact_bytes, each.prompt_tokens)
    lora = next(row.forecast for row in advice.rows if row.forecast.technique == "lora")
    with fresh(base, "lora") as attachment:
        assert lora.plan.optimised_parameters == sum(tensor.numel() for tensor in attachment.params().values())
