"""What is read before training: once for all trainings of a search, counted once, and the same with and without it."""

import json

import pytest

from tunewise.comparison import row as rows
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.row import Runs
from tunewise.contract.study import Allowance, Readings
from tunewise.fitting import scoring, source_training
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.settings import TrainSettings
from tunewise.results.report.page import render_html
from tunewise.results.report.tables import markdown
from tunewise.results.schema import Comparison
from tunewise.techniques.additive import lst
from tunewise.techniques.partial import fish_mask
from tunewise.techniques.registry import make
from tunewise.testing import example_settings, tiny_base, tiny_task

SETTINGS = TrainSettings(max_steps=8, per_device_train_batch_size=4)
SOURCES = example_settings()


@pytest.fixture
def context():
    base = tiny_base()
    return ComparisonContext(
        base, tiny_task(), validation=8, test=8, retention=Retention.measure(base, None), attempt_id="now"
    )


def row_of(context, folder, recipe, search, seeds=1):
    budget = Budget(steps=8, search=search, seeds=seeds)
    runs = Runs(context, budget, SETTINGS, folder / "trials", (), lambda *told: None, None)
    row, records = runs.row(recipe.resolved(context.base), 1)
    assert row.status == "ok", row.reason
    return row, records


def counting(monkeypatch, module, name):
    """Count the calls of a function."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **more: (calls.append(1), function(*given, **more))[1])
    return calls


@pytest.mark.parametrize(
    ("name", "settings", "module", "function", "candidates", "reads"),
    [
        ("fish_mask", {}, fish_mask, "fisher", 7, 1),  # neither rate nor density matters to it
        (
            "lst",
            {"lst": {"init": "fisher"}},
            lst,
            "importance",
            7,
            3,
        ),  # a side network of each width, where it is pruned by gradients
        ("icl+lora", {}, scoring, "_answer_nats", None, None),
    ],
)
def test_trainings_of_a_search_read_once_what_they_have_in_common(
    context, tmp_path, monkeypatch, name, settings, module, function, candidates, reads
):
    calls = counting(monkeypatch, module, function)
    row, records = row_of(context, tmp_path, make(name, settings), search=3)
    if reads is None:  # losses are taken in trainings too: choosing examples must not be among these
        anew = [trial for trial in row.search if trial.preparing_tokens]
        assert len(anew) == 3 and {trial.settings.get("lora.r") for trial in anew} == {None, 4, 64}
    else:
        assert len(row.search) == candidates and len(calls) == reads
    tokens = records[0].training.preparing_tokens
    assert tokens > 0 and records[0].cost.preparing_seconds > 0
    assert row.spent.preparing_tokens == sum(trial.preparing_tokens or 0 for trial in row.search) >= tokens
    assert not (tmp_path / "preparing").exists()


@pytest.mark.slow
def test_sources_are_trained_on_once_for_each_candidate_that_they_depend_on(context, tmp_path, monkeypatch):
    calls = counting(monkeypatch, source_training, "train")
    row, _ = row_of(context, tmp_path, make("mpt", SOURCES), search=4)
    # Two teachers and the distillation of each of five rates and a length; stages of half the steps add none.
    assert len(row.search) == 6 and len(calls) == 3 * 6
    assert sum(trial.steps == 4 for trial in row.search) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fish_mask", "lst", "mpt", "icl+lora", "rag+lora"])
def test_the_winner_is_what_it_would_be_without_a_search(context, tmp_path, name):
    row, records = row_of(context, tmp_path / "searched", make(name, SOURCES), search=3)
    settings = row.settings if "+" in name else {name: row.settings}
    again, alone = row_of(context, tmp_path / "alone", make(name, settings), search=1)
    for key in ("validation_loss", "per_example", "nll", "training", "findings", "forgetting"):
        assert getattr(records[0], key) == getattr(alone[0], key), key
    assert again.spent.preparing_tokens == alone[0].training.preparing_tokens
    assert again.spent.search_steps is None


def test_each_seed_prepares_itself_once_and_what_was_searched_is_counted(context, tmp_path, monkeypatch):
    calls = counting(monkeypatch, fish_mask, "fisher")
    row, records = row_of(context, tmp_path, make("fish_mask"), search=2, seeds=2)
    assert len(calls) == 2
    assert row.spent.preparing_tokens == sum(record.training.preparing_tokens for record in records)
    assert row.spent.search_steps == sum(trial.total_steps for trial in row.search) == 4 * 2


@pytest.mark.slow
def test_a_search_that_was_killed_counts_what_it_read_once(context, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    stages = []
    run_stage = rows.run_stage

    def killed(*given, **more):
        if len(stages) == 3:
            raise Killed
        stages.append(run_stage(*given, **more))
        return stages[-1]

    whole, _ = row_of(context, tmp_path / "whole", make("fish_mask"), search=3)
    monkeypatch.setattr(rows, "run_stage", killed)
    with pytest.raises(Killed):
        row_of(context, tmp_path / "parts", make("fish_mask"), search=3)
    monkeypatch.setattr(rows, "run_stage", run_stage)
    parts, _ = row_of(context, tmp_path / "parts", make("fish_mask"), search=3)
    assert [trial.preparing_tokens for trial in parts.search] == [trial.preparing_tokens for trial in whole.search]
    assert parts.spent.preparing_tokens == whole.spent.preparing_tokens
    assert parts.validation_loss == whole.validation_loss


def test_a_row_that_ends_once_more_leaves_what_a_later_one_has_read(context, tmp_path, monkeypatch):
    """A search is killed in the second row; the next process comes through the first one before it goes on."""

    class Killed(BaseException):
        pass

    first, second = make("lora"), make("fish_mask")
    whole, _ = row_of(context, tmp_path / "whole", second, search=3)
    row_of(context, tmp_path / "parts", first, search=3)
    run_stage, stages = rows.run_stage, []

    def killed(*given, **more):
        if len(stages) == 2:
            raise Killed
        stages.append(run_stage(*given, **more))
        return stages[-1]

    monkeypatch.setattr(rows, "run_stage", killed)
    with pytest.raises(Killed):
        row_of(context, tmp_path / "parts", second, search=3)
    monkeypatch.setattr(rows, "run_stage", run_stage)
    for recipe in (first, second):
        parts, _ = row_of(context, tmp_path / "parts", recipe, search=3)
    assert [trial.preparing_tokens for trial in parts.search] == [trial.preparing_tokens for trial in whole.search]
    assert parts.spent.preparing_tokens == whole.spent.preparing_tokens
    assert not (tmp_path / "parts" / "preparing").exists()


def test_readings_are_kept_only_where_they_are_asked_for_and_count_each_time():
    for keeps, calls in ((True, 1), (False, 2)):
        readings, allowance, made = Readings(keeps), Allowance(100), []

        def read(made=made, allowance=allowance):
            allowance.spend(30)
            made.append(1)
            return "read"

        for _ in range(2):
            assert readings.once(("what", 0), read, allowance) == "read"
        assert len(made) == calls and allowance.spent == 60


def test_tables_say_what_was_read_before_training(tmp_path):
    recipes = [make("base"), make("lora"), make("fish_mask")]
    result = compare(tiny_base(), tiny_task(), recipes, tmp_path, budget=Budget(steps=4, search=2), settings=SETTINGS)
    record = Comparison.from_json(json.loads((tmp_path / "compare.json").read_text()))
    tokens = result["rows"][2]["training"]["preparing_tokens"]
    table = markdown(record)
    head = next(line for line in table.splitlines() if line.startswith("| technique")).split(" | ")
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    cells = {line[0].removeprefix("| ").split()[0]: line for line in lines}
    place = head.index("prepared")
    assert cells["fish_mask"][place] == str(tokens) and cells["lora"][place] == ""
    page = render_html(record)
    assert "tokens read before training" in page and "seconds of preparation" in page
    assert f"Before training: {tokens:,} tokens read." in page
    assert "prepared" not in markdown(Comparison.from_json({**result, "rows": result["rows"][:2]}))
