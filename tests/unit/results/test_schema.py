"""The record of a comparison: files of earlier versions keep their bytes, and what is not as it should be is named."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from comparison_result import hostile, result
from tunewise.core.artifact_reader import read_json
from tunewise.core.artifact_writer import write_json
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import JsonRecord
from tunewise.results.schema import (
    Comparison,
    FinishedTrial,
    FitCost,
    FittedTrial,
    Row,
    ScoredRow,
    SearchTrial,
    TrialIdentity,
    TrialRecord,
    Verdict,
)

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
COMPARISONS = [GOLDEN / "compare.json", *sorted((ROOT / "benchmarks" / "results" / "atlas").glob("*/compare.json"))]
KINDS = {"compare": Comparison, "trial": TrialRecord}
FREE = ("settings", "findings")  # what a technique calls its own


def anew(value):
    """The same record as a program makes it, which knows nothing of a file's keys."""
    if isinstance(value, JsonRecord):
        names = [each.name for each in dataclasses.fields(value) if each.name != "_keys"]
        return type(value)(**{name: anew(getattr(value, name)) for name in names})
    if isinstance(value, dict):
        return {name: anew(each) for name, each in value.items()}
    return tuple(map(anew, value)) if isinstance(value, tuple) else value


def places(value, path=()):
    """(path, is an object) of everything in a value, of a list the first item alone, but every kind of row."""
    yield path, isinstance(value, dict)
    if isinstance(value, dict) and path[-1:] not in [(name,) for name in FREE]:
        for name, each in value.items():
            yield from places(each, (*path, name))
    if isinstance(value, list):
        for at in range(len(value)) if path == ("rows",) else range(min(len(value), 1)):
            yield from places(value[at], (*path, at))


def wrong(value):
    """A value of another type."""
    if isinstance(value, (bool, list)) or value is None:
        return {}
    return "many" if isinstance(value, (int, float)) else 7 if isinstance(value, str) else []


def changed(value, path, change):
    """A copy in which what holds the end of the path is changed."""
    whole = copy.deepcopy(value)
    at = whole
    for name in path[:-1]:
        at = at[name]
    change(at, path[-1])
    return whole


def refusal(kind, value):
    with pytest.raises(ArtifactError) as refused:
        kind.from_json(value, "some/file.json")
    message = str(refused.value)
    assert message.startswith("some/file.json: not as tunewise writes it (") and "\n" not in message
    return message


@pytest.fixture(params=KINDS)
def golden(request):
    return KINDS[request.param], json.loads((GOLDEN / f"{request.param}.json").read_text("utf-8"))


@pytest.mark.parametrize("path", [*COMPARISONS, GOLDEN / "trial.json"], ids=lambda path: "/".join(path.parts[-2:]))
def test_what_earlier_versions_wrote_keeps_its_bytes(path, tmp_path):
    kind = TrialRecord if path.name == "trial.json" else Comparison
    record = kind.from_json(read_json(path, limit_bytes=1 << 28), path)
    for place, each in (("read", record), ("made", anew(record))):
        write_json(tmp_path / place, each.to_json())
        assert (tmp_path / place).read_bytes() == path.read_bytes(), place
    assert anew(record) == record


def test_every_mistyped_field_is_named(golden):
    kind, value = golden

    def mistype(at, name):
        at[name] = wrong(at[name])

    for path, _ in places(value):
        if path:
            message = refusal(kind, changed(value, path, mistype))
            assert f"({'.'.join(map(str, path))}: " in message, message


def test_every_unknown_field_is_named(golden):
    kind, value = golden
    named = 0
    for path, is_object in places(value):
        if is_object and not {*FREE, "others", "rows"} & {*path[-1:]}:
            odd = (*path, "odd")
            assert f"({'.'.join(map(str, odd))}: is unknown)" in refusal(
                kind, changed(value, odd, lambda at, name: at.update({name: 1}))
            )
            named += 1
    assert named >= 5


def test_a_missing_field_is_named_unless_older_versions_had_none(golden):
    kind, value = golden
    optional = set()
    for path, _ in places(value):
        if not path or isinstance(path[-1], int) or "others" in path[:-1] or path[-2:-1] == ("rows",):
            continue
        less = changed(value, path, lambda at, name: at.pop(name))
        try:
            record = kind.from_json(less, "some/file.json")
        except ArtifactError:
            assert f"({'.'.join(map(str, path))}: is missing)" in refusal(kind, less)
        else:
            assert record.to_json() == less
            optional.add(path[-1])
    assert not optional & {"schema", "rows", "verdict", "technique", "status", "mean", "low", "train_seconds", "best"}
    assert not optional & {"seed", "packed", "per_example", "nll", "seeds", "fingerprint", "artifact_bytes"}


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("schema",), 2, "must be 1"),
        (("schema",), True, "must be 1"),
        (("rows", 0, "status"), "fine", "must be ok or failed or skipped"),
        (("rows", 0, "cost", "artifact_bytes"), -1, "must be at least 0"),
        (("rows", 0, "cost", "artifact_bytes"), 1.5, "must be a whole number"),
        (("rows", 0, "score", "mean"), float("nan"), "must be a number"),
        (("rows", 0, "score", "mean"), True, "must be a number"),
        (("rows", 0, "rank"), [1], "must have 2 items"),
        (("rows", 0, "findings"), {"ranks": [1]}, "must be an object"),
        (("rows", 0, "curve"), [[1, 2.0], [2]], "must have 2 items"),
        (("task", "labels"), "praise", "must be a list"),
    ],
)
def test_what_is_wrong_is_said(path, value, problem):
    whole = json.loads((GOLDEN / "compare.json").read_text("utf-8"))
    message = refusal(Comparison, changed(whole, path, lambda at, name: at.update({name: value})))
    assert f"({'.'.join(map(str, path))}" in message and problem in message


def test_a_made_up_result_has_every_field_and_reads_back():
    for value in (result(), hostile()):
        assert Comparison.from_json(value).to_json() == value
    known = Comparison.from_json(result())
    assert {type(row) for row in known.rows} == {Row, ScoredRow} and len(known.scored) == len(known.rows) - 2


def test_rows_and_trials_are_read_as_what_they_are():
    found = Comparison.read(GOLDEN / "compare.json")
    assert {row.technique for row in found.rows if not isinstance(row, ScoredRow)} == {"mpt"}
    assert found.recommended == found.verdict.recommended
    trial = json.loads((GOLDEN / "trial.json").read_text("utf-8"))
    assert type(TrialRecord.from_json(trial)) is FinishedTrial
    unscored = {key: each for key, each in trial.items() if key not in ("score", "nll", "per_example", "answers")}
    del unscored["forgetting"]
    for key in ("scoring_peak_memory_bytes", "seconds_per_example", "prompt_tokens"):
        unscored["cost"] = {name: each for name, each in unscored["cost"].items() if name != key}
    fitted = TrialRecord.from_json(unscored)
    assert type(fitted) is FittedTrial and type(fitted.cost) is FitCost and fitted.to_json() == unscored


def test_a_failure_says_in_which_attempt_it_was():
    identity = TrialIdentity(technique="lora", settings={}, family="full", seed=0, learning_rate=None, trains=True)
    failed = TrialRecord.failure(identity, "it crashed", "now").to_json()
    assert list(failed) == [*identity.to_json(), "status", "reason", "life"]
    assert TrialRecord.failure(identity, "it diverged", None).to_json()["life"] is None
    assert TrialRecord.from_json(failed).to_json() == failed


def test_keys_stand_in_the_order_that_they_always_had():
    start = {"learning_rate": 0.1, "settings": {}}
    staged = SearchTrial(**start, steps=1, tokens=9, seconds=1.0, validation_loss=1.0, won=True)
    assert list(staged.to_json())[2:] == ["steps", "tokens", "seconds", "validation_loss", "reason", "won"]
    whole = SearchTrial(**start, steps=1, validation_loss=1.0, won=True)
    assert list(whole.to_json())[2:] == ["validation_loss", "steps", "reason", "won"]
    failed = SearchTrial(**start, reason="diverged", won=False)
    assert list(failed.to_json())[2:] == ["reason", "validation_loss", "won"]
    given = {"label": "mpt", "status": "skipped", "reason": "none", "learning_rate": None, "search": (), "seeds": ()}
    skipped = Row(technique="mpt", family="additive", settings={}, **given)
    assert list(skipped.to_json()) == ["technique", "settings", "family", *given, "p_value"]
    nothing = Verdict(best=None, ties=(), recommended=None, reasons=("no technique finished",))
    assert list(nothing.to_json()) == ["best", "ties", "recommended", "reasons"]
