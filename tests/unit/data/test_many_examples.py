"""More examples than are kept in memory: they are read, split and checked as few are."""

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tunewise.core.errors import DataError, RequestError, TunewiseError
from tunewise.data import example_collection, example_file
from tunewise.data.example_collection import ExampleCollection, kept
from tunewise.data.example_file import ExampleFile
from tunewise.data.examples import Example, Message
from tunewise.data.task import Task
from tunewise.data.task_check import check

FULL = Example(
    (
        Message("system", "é 日本 🙂\n\t\\"),
        Message("user", 'say "it"'),
        Message("assistant", "", labelled=True, fields='{"tool_calls": []}'),
        Message("tool", ""),
    ),
    "a\r\nb",
    ("a\r\nb", "c"),
    "passage 3",
    '{"content": "a"}',
    "[]",
    '{"thinking": true}',
    continues=True,
    row=7,
)
EXAMPLES = [FULL, Example((), "text", row=1), *(Example((Message("user", f"p{i}"),), "a", row=i) for i in range(2000))]


@pytest.fixture
def few_in_memory(monkeypatch):
    monkeypatch.setattr(example_collection, "MOST_IN_MEMORY", 5)


def test_a_file_gives_back_every_field(few_in_memory):
    stored = kept(iter(EXAMPLES), "generation")
    assert isinstance(stored, ExampleFile) and len(stored) == len(EXAMPLES)
    assert [replace(each, row=0) for each in stored] == [replace(each, row=0) for each in EXAMPLES]
    assert [each.row for each in stored] == [each.row for each in EXAMPLES]
    assert stored[0] == FULL and stored[-1] == EXAMPLES[-1] and stored[1990:] == tuple(EXAMPLES[1990:])
    assert stored[5:1:-2] == tuple(EXAMPLES[5:1:-2]) and stored[:0] == ()
    with pytest.raises(IndexError):
        stored[len(EXAMPLES)]


def test_some_of_a_file_are_read_in_the_order_that_is_asked_for(few_in_memory):
    places = random.Random(0).sample(range(len(EXAMPLES)), 700)
    chosen = ExampleCollection.of(EXAMPLES, "generation").chosen(places).chosen(range(0, 700, 2))
    assert list(chosen.examples) == [EXAMPLES[place] for place in places[::2]]
    listed = ExampleCollection(tuple(chosen.examples), "generation", {}).facts
    for name in ("prompts", "contents", "answers", "rows", "prompt_characters", "answer_characters"):
        assert list(getattr(chosen.facts, name)) == list(getattr(listed, name)), name


@pytest.mark.parametrize("count", [5, 6])
def test_examples_are_in_memory_up_to_a_number(few_in_memory, count):
    assert isinstance(kept(EXAMPLES[:count], "generation"), tuple) == (count == 5)


def test_a_disk_that_is_full_is_told_in_a_sentence(few_in_memory, monkeypatch):
    class Full:
        def write(self, line):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(example_file.tempfile, "TemporaryFile", lambda **options: Full())
    with pytest.raises(
        TunewiseError, match=r"cannot be written in .* \(TMPDIR\) \(No space left on device\); free"
    ) as raised:
        kept(EXAMPLES, "generation")
    assert not isinstance(raised.value, RequestError)  # the disk's fault, and no mistake of the request's


def write(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=9)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def rows_of(format_: str, seed: int, count: int) -> list[dict]:
    """Rows with repeated rows, repeated prompts and several labels of a prompt."""
    draw = random.Random(f"{format_} {seed}")
    rows = []
    for _ in range(count):
        prompt, answer = f'é "{draw.randrange(count * 2 // 3)}"', draw.choice(["good", "bad", "Good", "fair\nly"])
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rows.append(
            {
                "classification": {"text": prompt, "label": answer},
                "prompt-completion": {"prompt": prompt, "completion": answer},
                "text": {"text": prompt * 3},
                "messages": {"messages": [*turns, {"role": "user", "content": "why"}, turns[1]]},
            }[format_]
        )
    return rows


def without_answer(row: dict) -> dict:
    last = list(row)[-1]
    return {**row, last: [] if isinstance(row[last], list) else ""}


def reports(source: Path, limit: int, monkeypatch, **options) -> list:
    monkeypatch.setattr(example_collection, "MOST_IN_MEMORY", limit)
    try:
        task = Task.read(source, **options)
    except DataError as error:
        return [str(error)]
    assert isinstance(task.train, ExampleFile) == (len(task.train) > 5 and limit == 5)
    rows = [[example.row for example in split] for split in task.splits.values()]
    return [check(task), rows, task.fingerprint, task.row_fingerprints, task.has_reasoning, task.metric]


FORMATS = [
    *((name, ending) for name in ("classification", "prompt-completion", "text") for ending in ("jsonl", "csv")),
    *((name, ending) for name in ("classification", "messages") for ending in ("parquet", "json")),
    ("messages", "jsonl"),
]


@pytest.mark.parametrize(("format_", "ending"), FORMATS)
def test_a_file_is_checked_as_a_list_is(tmp_path, monkeypatch, format_, ending):
    rows = rows_of(format_, 0, 120)
    folder, bad = tmp_path / "folder", tmp_path / f"bad.{ending}"
    folder.mkdir()
    write(tmp_path / f"one.{ending}", rows)
    write(folder / f"train.{ending}", rows)
    write(folder / f"dev.{ending}", [*rows[:7], *rows_of(format_, 1, 30)])
    write(folder / f"test.{ending}", [*rows_of(format_, 2, 30), *rows[50:55]])
    write(bad, [without_answer(row) if place % 9 == 3 else row for place, row in enumerate(rows)])
    found = []
    for source, options in [
        (tmp_path / f"one.{ending}", {}),
        (tmp_path / f"one.{ending}", {"seed": 3}),
        (Path(f"{tmp_path / 'one'}.{ending}#40"), {}),
        (folder, {}),
        (bad, {}),
        (bad, {"skip_bad_rows": True}),
    ]:
        few = reports(source, 5, monkeypatch, **options)
        assert few == reports(source, 50_000, monkeypatch, **options)
        found.append(few)
    problems = {problem["problem"].split(" row")[0] for problem in found[3][0]["problems"]}
    assert {"the same as", "the prompt of"} <= problems, "the data holds what is compared"
    assert found[3][0]["leaks"]["count"] and found[0][0]["duplicates"] and "rows are bad" in found[4][0]
    assert ("another label than" in problems) == (format_ == "classification")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    from tunewise.data import reading

    path = tmp_path / "rows.jsonl"
    write(path, rows_of("text", 0, 20))
    recognise = reading.recognise

    def meanwhile(*arguments):
        path.write_text(path.read_text("utf-8") + '\n{"text": "new"}\n', "utf-8")
        return recognise(*arguments)

    monkeypatch.setattr(reading, "recognise", meanwhile)
    with pytest.raises(DataError, match="the file was changed while it was read; begin again"):
        Task.read(path)
