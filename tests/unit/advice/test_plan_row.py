"""Rows of a plan: what is printed is read back to the same bytes, and a file that is no plan is refused."""

import json

import pytest

from tunewise.advice.plan.plan_row import Memory, PlanRow, Probe, Time, read_rows
from tunewise.core.errors import ArtifactError

ROW = {
    "technique": "lora",
    "verdict": "fits with",
    "with": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
    },
    "reason": None,
    "parameters": {"optimised": 4096, "stored": 4096},
    "artifact_bytes": 16632,
    "memory": {
        "weights": 12199808,
        "gradients": 16384,
        "optimizer": 32768,
        "runtime": 80000000,
        "activations": 13623888,
        "technique": 0,
        "peak": 105872848,
    },
    "time": {"seconds_per_step": 0.5, "seconds_per_epoch": 3.0, "seconds": 50.0},
    "request": {"prompt_tokens": 19.4, "seconds": None},
    "micro_batch": 64,
}
FITS = PlanRow.from_json({**ROW, "verdict": "fits", "with": {}})
IMPOSSIBLE = {"technique": "mpt", "verdict": "not possible", "reason": "mpt needs source tasks"}


@pytest.mark.parametrize(
    "row", [ROW, IMPOSSIBLE, {**ROW, "devices": 3}, {**ROW, "memory": {**ROW["memory"], "peak": 12e9}}]
)
def test_a_row_is_read_and_printed_to_the_same_bytes(row):
    assert json.dumps(PlanRow.from_json(row).to_json()) == json.dumps(row)


def test_a_probe_takes_the_place_of_what_was_planned_and_says_so():
    row = FITS.calibrated(Probe(peak=90_000_000, step=0.25, steps=3, rows=4), max_steps=100, steps_per_epoch=6)
    assert row.peak == 90_000_000 and row.memory.weights == FITS.memory.weights
    assert row.time == Time(seconds_per_step=0.25, seconds_per_epoch=1.5, seconds=25.0)
    printed = row.to_json()
    assert list(printed)[-1] == "probe" and list(printed["probe"]) == [
        *("peak", "step", "steps", "rows", "foreseen_peak", "foreseen_time")
    ]
    assert printed["probe"]["foreseen_peak"] == FITS.peak
    assert printed["probe"]["foreseen_time"] == ROW["time"]
    assert PlanRow.from_json(printed) == row


def test_what_a_row_does_not_say_is_not_known():
    row = PlanRow.from_json({"technique": "lora", "verdict": "fits", "memory": {"peak": 3e9}, "new": 1})
    assert row.memory == Memory(peak=3e9) and row.peak == 3e9
    assert row.train_seconds is row.prompt_tokens is row.optimised_parameters is row.artifact_bytes is None
    assert PlanRow.from_json(IMPOSSIBLE).peak is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "no technique"),
        ({**ROW, "technique": 3}, "no technique"),
        ({**ROW, "verdict": "maybe"}, "'maybe'"),
        ({**IMPOSSIBLE, "reason": None}, "no reason"),
        ({**ROW, "memory": {"weights": 3}}, "peak is None"),
        ({**ROW, "memory": 3}, "memory is no object"),
        ({**ROW, "time": {"seconds": "long"}}, "seconds is 'long'"),
        ({**ROW, "artifact_bytes": True}, "no number"),
        ({**ROW, "with": {"per_device_train_batch_size": "small"}}, "not whole numbers"),
        ({**ROW, "probe": {"peak": 3, "step": 1.0, "steps": 3, "rows": 4}}, "probe replaced is missing"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_the_reason(tmp_path, row, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"rows": [row]}))
    with pytest.raises(ArtifactError, match=f"{path}: is no plan .*{message}.*give what tunewise plan --json printed"):
        read_rows(path)


def test_a_file_without_rows_is_no_plan(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ArtifactError, match="it has no rows"):
        read_rows(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(json.dumps({"rows": [ROW, IMPOSSIBLE]}))
    assert [row.technique for row in read_rows(tmp_path / "plan.json")] == ["lora", "mpt"]
