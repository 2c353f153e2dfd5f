"""The atlas: its files are read strictly, a comparison becomes a record, and a user's own records count."""

import copy
import json

import pytest
from rich.console import Console

from tunewise.advice.atlas import records
from tunewise.advice.atlas.schema import read, record_of
from tunewise.advice.atlas.staleness import REMEDY, remarks, stale_rows
from tunewise.cli.views.advice import record_page
from tunewise.core.errors import ArtifactError
from tunewise.techniques.registry import all_techniques

NAME = "world.reviews"


@pytest.fixture
def value():
    return records.shipped()[NAME].to_json()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(records.HOME, str(tmp_path))
    return tmp_path / "atlas"


def test_records_of_the_package_are_whole():
    for name, record in records.shipped().items():
        assert record.name == name
        assert record.provenance.command.startswith("tunewise compare")
        assert set(record.scored) <= set(all_techniques())
        best, score = record.best
        assert record.gain("base") == 0.0 and (record.gain(best) == 1.0 or score == record.base)
        assert best in record.ties()
        features = record.features
        assert features.parameters == record.model.parameters and features.train == record.task.train
        assert features.base_loss is not None and features.generation == (record.task.kind != "classification")


def test_a_record_survives_writing_and_reading(home, value):
    record = records.shipped()[NAME]
    path = records.add(record)
    assert path == home / f"{NAME}.json"
    assert read(path) == record == records.all_records()[NAME]
    assert json.loads(path.read_text("utf-8")) == value


def test_own_records_replace_those_of_the_same_name(home, value):
    value["rows"][0]["score"]["mean"] = 0.125
    records.add(record_of(value, home))
    assert records.all_records()[NAME].base == 0.125
    assert records.shipped()[NAME].base != 0.125


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("budget"), "budget"),
        (lambda v: v.update(more=1), "more"),
        (lambda v: v.update(schema=2), "schema"),
        (lambda v: v.update(name="../evil"), "name"),
        (lambda v: v["features"].update(train="many"), "features.train"),
        (lambda v: v["features"].pop("balance"), "features.balance"),
        (lambda v: v["rows"][3]["score"].update(mean=None), "rows.3.score.mean"),
        (lambda v: v["rows"][3].update(score=None), "has no score"),
        (lambda v: v["rows"][3].update(technique="icl"), "two rows"),
        (lambda v: v["rows"].pop(0), "the row of base"),
        (lambda v: v["rows"][3]["cost"].update(artifact_bytes=-1), "artifact_bytes"),
        (lambda v: v["rows"][3]["cost"].update(merges=1), "merges"),
    ],
)
def test_what_is_not_a_record_is_refused_in_one_sentence(tmp_path, value, change, message):
    changed = copy.deepcopy(value)
    change(changed)
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(ArtifactError) as refused:
        read(path)
    error = str(refused.value)
    assert error.startswith(f"{path}: is no record of an atlas") and message in error and "\n" not in error


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": NaN}', '{"a": 1, "a": 2}', "\x00", "{" * 100])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ArtifactError):
        read(path)


def test_rows_of_before_the_defaults_changed_are_stale(capsys):
    old, new = records.shipped()["world.town"], records.shipped()["smollm2-135m.emotion"]
    stale = stale_rows(old)
    assert {"prefix_tuning", "fish_mask", "lst", "threshold_mask", "lt_sft", "diff_pruning", "lora", "full"} <= {*stale}
    assert "mix" in stale["lst"] and "reach" in stale["threshold_mask"]  # found from the settings themselves
    assert not {"base", "adapter", "bitfit"} & {*stale}
    assert stale_rows(new) == {} and remarks(new) == []
    Console(width=300).print(record_page(old))
    assert REMEDY in capsys.readouterr().out


def test_a_setting_that_a_search_chose_or_that_is_given_is_not_stale(home, value):
    for row in value["rows"]:
        if row["technique"] == "lora":
            row["settings"]["r"] = 64  # one of the values that are searched
        if row["technique"] == "mpt":
            row["settings"]["sources"] = ["anything"]
        if row["technique"] == "bitfit":
            row["settings"]["source"] = "odd"
    value["provenance"]["created"] = "2027-01-01T00:00:00+00:00"
    stale = stale_rows(record_of(value, home))
    assert not {"lora", "mpt", "full"} & {*stale} and "odd" in stale["bitfit"]


def test_records_whose_intervals_are_too_wide_say_so():
    """Until this moment, intervals of every metric were computed as if scores were 0 or 1."""
    corrected = "2026-11-29T00:03:27+00:00"
    for name, record in records.all_records().items():
        outdated = record.task.metric not in ("accuracy", "exact_match") and record.provenance.created < corrected
        assert bool(record.provenance.remarks) == outdated, name


def test_a_record_shows_what_is_wrong_with_it(capsys):
    name, record = next((n, r) for n, r in records.all_records().items() if r.provenance.remarks)
    Console(width=300).print(record_page(record))
    assert record.provenance.remarks[0] in capsys.readouterr().out, name
