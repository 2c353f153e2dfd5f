"""Rows that cannot be used: counted in one message, left out on demand; and labels that look like mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunewise.core.errors import DataError
from tunewise.data.task import Task
from tunewise.data.task_check import check

GOOD = [{"prompt": f"p {i}", "completion": f"c {i}"} for i in range(30)]


def written(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        Task.read(path, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


BAD = [
    {"prompt": "p", "completion": ""},
    {"prompt": 3, "completion": "c"},
    {"completion": "c"},
    '{"prompt": "p", "compl',
    "3",
    {"prompt": "p", "completion": ["c"]},
    {"prompt": "p", "completion": None},
]


def test_all_bad_rows_are_counted_with_the_first_five(tmp_path):
    message = refusal(written(tmp_path / "data.jsonl", [*GOOD, *BAD]))
    assert "7 of 37 rows are bad" in message and "and 2 more" in message
    for place in (
        'line 31 column "completion": the text is empty',
        'line 32 column "prompt": a number where text is needed',
        'line 33: the row lacks "prompt"',
        "line 34: not valid JSON",
        "line 35: the row is a number, not an object",
    ):
        assert place in message
    assert message.endswith("mend them, or leave them out with --skip-bad-rows")


def test_bad_rows_are_left_out_on_demand(tmp_path):
    task = Task.read(written(tmp_path / "data.jsonl", [*GOOD, *BAD]), skip_bad_rows=True)
    assert (task.skipped, sum(task.counts.values())) == (7, 30)
    assert any(note.startswith("7 bad rows were left out (line 31") for note in task.notes)
    assert check(task)["skipped"] == 7
    assert Task.read(written(tmp_path / "good.jsonl", GOOD), skip_bad_rows=True).skipped == 0


def test_one_bad_row_is_named_as_before(tmp_path):
    with pytest.raises(DataError, match="the text is empty; fill it in or remove the row, or leave it out") as caught:
        Task.read(written(tmp_path / "data.jsonl", [*GOOD, BAD[0]]))
    assert (caught.value.line, caught.value.column) == (31, "completion")


def test_too_many_bad_rows_are_refused(tmp_path):
    path = written(tmp_path / "data.jsonl", [*GOOD[:3], *BAD[:4]])
    assert "more than half of the rows are bad" in refusal(path, skip_bad_rows=True)
    assert "--skip-bad-rows" not in refusal(path)
    assert "3 of 3 rows are bad" in refusal(written(tmp_path / "none.jsonl", ["3", "[]", "4"]), skip_bad_rows=True)


def test_bad_rows_of_several_files(tmp_path):
    written(tmp_path / "train.jsonl", [*GOOD, BAD[0]])
    written(tmp_path / "test.jsonl", [*GOOD[:3], BAD[1]])
    message = refusal(tmp_path)
    assert "2 of 35 rows are bad" in message
    assert "train.jsonl line 31" in message and "test.jsonl line 4" in message
    assert Task.read(tmp_path, skip_bad_rows=True).skipped == 2


def test_rows_of_csv_with_other_numbers_of_cells(tmp_path):
    path = tmp_path / "data.csv"
    rows = "".join(f"t {i},{'ab'[i % 2]}\n" for i in range(12))
    path.write_text(f'text,label\n{rows}few\nx,y,z\n"a" b,c\n,\n')
    message = refusal(path)
    assert "4 of 16 rows are bad" in message and "line 14: the row has 1 cells and the header 2" in message
    task = Task.read(path, skip_bad_rows=True)
    assert (task.skipped, sum(task.counts.values())) == (4, 12)


def test_labels_that_train_lacks_are_bad_rows(tmp_path):
    written(tmp_path / "train.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(20)])
    written(tmp_path / "test.jsonl", [{"text": f"u {i}", "label": "abcd"[i % 4 if i < 4 else 0]} for i in range(8)])
    assert "2 of 28 rows are bad" in refusal(tmp_path)
    assert Task.read(tmp_path, skip_bad_rows=True).counts["test"] == 6


def test_one_label_is_refused(tmp_path):
    path = written(tmp_path / "data.jsonl", [{"text": f"t {i}", "label": "spam"} for i in range(12)])
    assert 'all 12 rows have the label "spam"' in refusal(path)
    assert Task.read(path, kind="generation").kind == "generation"


def test_contradicting_and_similar_labels_are_told(tmp_path):
    rows = [{"text": f"t {i % 5}", "label": "pos" if i < 8 else "neg"} for i in range(13)]
    rows += [{"text": f"u {i}", "label": ["pos", "Pos", "pos "][i % 3]} for i in range(9)]
    task = Task.read(written(tmp_path / "data.jsonl", rows))
    assert 'labels that differ only in case or outer spaces count as different: "Pos", "pos", "pos "' in task.notes
    (note,) = (note for note in task.notes if "several labels" in note)
    assert note.startswith("5 prompts have several labels, such as") and note.endswith('"neg", "pos"')


def test_numbers_that_are_not_finite_are_bad(tmp_path):
    assert "a number where text is needed" in refusal(
        written(tmp_path / "data.jsonl", [*GOOD, '{"prompt": "p", "completion": 1e999}'])
    )
