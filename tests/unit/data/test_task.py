"""Formats, columns, splits, samples and the report of a task."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.core.errors import DataError, SettingError
from tunewise.data.task import Example, Message, Task, split_by_content
from tunewise.data.task_check import check


def write_rows(path: Path, rows: list) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def every(task: Task) -> list[Example]:
    return [*task.train, *task.validation, *task.test]


def pairs(n: int = 20) -> list[dict[str, str]]:
    return [{"prompt": f"p {i}", "completion": f"c {i}"} for i in range(n)]


def read_one(tmp_path: Path, row: dict, other: dict | None = None, **options: object) -> Example:
    """The example made from one row; `other` is a second row, as a classification needs two labels."""
    tmp_path.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"{split}.jsonl", [row, *([other] if other else [])])
    return Task.read(tmp_path, **options).train[0]


def with_other_label(row: dict) -> dict | None:
    """A copy of a row of a classification with another label."""
    labels = {"label": "other", "sentiment": "other", "kind of": "other"}
    return row | {name: labels[name] for name in row if name in labels} if labels.keys() & row.keys() else None


USER, SAID = Message("user", "q"), Message("assistant", "a", labelled=True)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_ending_gives_the_same_examples(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": f'a "quoted", \t {i}\nsecond line é', "completion": f" c{i}\r\n"} for i in range(12)]
    task = Task.read(write_rows(tmp_path / f"data.{ending}", rows))
    assert (task.name, task.kind, task.format) == ("data", "generation", "prompt-completion")
    assert Counter((e.prompt, e.answer) for e in every(task)) == Counter(
        (row["prompt"], row["completion"]) for row in rows
    )


def test_plain_text_is_one_example_per_line(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  two \n \nthree\xc3\xa9")
    task = Task.read(path)
    assert sorted(e.answer for e in every(task)) == ["  two ", "one", "threeé"]
    assert (task.kind, task.format, task.metric) == ("text", "text", "likelihood")
    assert all(e.messages == () and e.prompt == "" for e in every(task))
    assert any(note.startswith("2 empty lines") for note in task.notes)


ROWS: list[tuple[str, dict, Example]] = [
    (
        "messages",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2},
        Example((USER, SAID, USER), "a"),
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "own"},
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": "f()"},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "a"},
            ],
            "system": "be kind",
            "tools": "[f]",
        },
        Example(
            (
                Message("system", "be kind\n\n[f]\n\nown"),
                USER,
                Message("assistant", "f()", labelled=True),
                Message("tool", "3"),
            ),
            "a",
        ),
    ),
    (
        "alpaca",
        {"instruction": "do", "input": "x", "output": "a", "system": "s", "history": [["q", "a"]]},
        Example((Message("system", "s"), USER, SAID, Message("user", "do\n\nx")), "a"),
    ),
    (
        "alpaca",
        {"Instruction": "do", "Input": "", "Output": "a"},
        Example((Message("user", "do"),), "a"),
    ),
    ("alpaca", {"instruction": "q", "context": None, "response": "a"}, Example((USER,), "a")),
    ("prompt-completion", {"problem": "q", "solution": "a"}, Example((USER,), "a")),
    ("prompt-completion", {"INPUT": "q", "Targets": "a", "extra": 3}, Example((USER,), "a")),
    ("classification", {"text": "q", "label": "a"}, Example((USER,), "a")),
    ("classification", {"sentence": "q", "label": 3, "idx": 7}, Example((USER,), "3")),
    ("classification", {"text": "q", "sentiment": True}, Example((USER,), "true")),
    ("question-answer", {"question": "q", "answer": "a"}, Example((USER,), "a", ("a",))),
    (
        "question-answer",
        {"context": "c", "question": "q", "answers": {"text": ["a", "b", "a"], "answer_start": [1, 2, 1]}},
        Example((Message("user", "c\n\nq"),), "a", ("a", "b")),
    ),
    ("question-answer", {"question": "q", "answers": ["a", "b"]}, Example((USER,), "a", ("a", "b"))),
    ("text", {"text": "a", "url": "u"}, Example((), "a")),
]


@pytest.mark.parametrize(("format_", "row", "example"), ROWS)
def test_columns_are_recognised(tmp_path: Path, format_: str, row: dict, example: Example) -> None:
    assert read_one(tmp_path, row, with_other_label(row)) == example
    assert Task.read(tmp_path).format == format_


def test_kind_and_metric_follow_from_the_format(tmp_path: Path) -> None:
    read_one(tmp_path / "c", {"text": "q", "label": "a"}, {"text": "r", "label": "b"})
    read_one(tmp_path / "q", {"question": "q", "answer": "a"})
    read_one(tmp_path / "p", {"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "b"})
    tasks = [Task.read(tmp_path / name) for name in "cqp"]
    assert [(t.kind, t.metric) for t in tasks] == [
        ("classification", "accuracy"),
        ("generation", "f1"),
        ("generation", "rouge_l"),
    ]
    assert [t.labels for t in tasks] == [("a", "b"), (), ()]
    assert Task.read(tmp_path / "c", kind="generation").metric == "rouge_l"
    assert Task.read(tmp_path / "c", kind="text").train[0] == Example((), "q")
    assert Task.read(tmp_path / "p", kind="classification", metric="macro_f1").labels == ("a", "b")


def test_answers_that_are_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    read_one(tmp_path / "q", {"question": "q", "answer": "20 - 2 = 18\n#### 18"})
    read_one(tmp_path / "p", {"prompt": "q", "completion": "-1,234.5"})
    read_one(tmp_path / "n", {"prompt": "q", "completion": "007"})
    assert [Task.read(tmp_path / name).metric for name in "qpn"] == ["number", "number", "rouge_l"]
    assert Task.read(tmp_path / "q", metric="f1").metric == "f1"


MAPPED: list[tuple[dict, dict[str, str], Example]] = [
    ({"q": "q", "a": "a"}, {"prompt": "q", "completion": "a"}, Example((USER,), "a")),
    (
        {"messages": 1, "q": "q", "a": "a", "chosen": "x", "rejected": "y"},
        {"prompt": "q", "completion": "a"},
        Example((USER,), "a"),
    ),
    ({"text": "q", "kind of": "a"}, {"label": "kind of"}, Example((USER,), "a")),
    ({"problem": "q", "solution": "s", "answer": "a"}, {"completion": "answer"}, Example((USER,), "a")),
    ({"question": "no", "body": "q", "answer": "a"}, {"question": "body"}, Example((USER,), "a", ("a",))),
    ({"text": "no", "body": "a"}, {"text": "body"}, Example((), "a")),
]


@pytest.mark.parametrize(("row", "columns", "example"), MAPPED)
def test_columns_are_mapped(tmp_path: Path, row: dict, columns: dict[str, str], example: Example) -> None:
    assert read_one(tmp_path, row, with_other_label(row), columns=columns) == example


REFUSED: list[tuple[dict, dict[str, str] | None, str]] = [
    ({"a": "x", "b": "y"}, None, '"a", "b"'),
    ({"prompt": "x", "chosen": "y", "rejected": "z"}, None, "preference"),
    ({"problem": "q", "solution": "s", "answer": "a"}, None, "could each be the completion"),
    ({"a": "x", "b": "y"}, {"prompt": "c", "completion": "b"}, 'no column "c"'),
    ({"a": "x", "b": "y"}, {"promt": "a", "completion": "b"}, '"promt" cannot be mapped'),
    ({"text": "x", "Text": "y"}, None, "differ only in case"),
]


@pytest.mark.parametrize(("row", "columns", "words"), REFUSED)
def test_columns_that_cannot_be_used_are_refused(
    tmp_path: Path, row: dict, columns: dict[str, str] | None, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_one(tmp_path, row, columns=columns)
    assert "train.jsonl" in str(caught.value)


def test_settings_are_checked(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", pairs())
    with pytest.raises(SettingError, match="kind"):
        Task.read(path, kind="regression")
    with pytest.raises(SettingError, match=r"\{prompt\}"):
        Task.read(path, template="Q: A:")
    assert Task.read(path, template="Q: {prompt}").template == "Q: {prompt}"
    with pytest.raises(DataError, match='kind "text"'):
        Task.read(path, kind="text")


# --- folders, names and samples ---


def test_folder_of_splits(tmp_path: Path) -> None:
    write_rows(tmp_path / "Train.csv", pairs())
    write_rows(tmp_path / "dev.jsonl", pairs(3))
    (tmp_path / "SOURCE.txt").write_text("notes")
    (tmp_path / "knowledge").mkdir()
    task = Task.read(tmp_path)
    assert task.name == tmp_path.name
    assert task.counts == {"train": 16, "validation": 3, "test": 4}
    assert any("test was split off train" in note for note in task.notes)


def test_folder_with_one_data_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", pairs())
    (tmp_path / "SOURCE.txt").write_text("notes")
    assert Task.read(tmp_path).counts == {"train": 14, "validation": 2, "test": 4}


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train file"):
        Task.read(tmp_path)
    write_rows(tmp_path / "test.jsonl", pairs())
    with pytest.raises(DataError, match="no train file"):
        Task.read(tmp_path)
    write_rows(tmp_path / "train.jsonl", pairs())
    write_rows(tmp_path / "val.jsonl", pairs())
    write_rows(tmp_path / "valid.csv", pairs())
    with pytest.raises(DataError, match="both the validation split"):
        Task.read(tmp_path)


def test_splits_must_have_the_same_columns(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", pairs())
    write_rows(tmp_path / "test.jsonl", [{"text": "x", "label": "y"}])
    with pytest.raises(DataError, match=r'test\.jsonl.*lacks "prompt", "completion".*same columns'):
        Task.read(tmp_path)


def test_label_that_train_lacks(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(20)])
    write_rows(tmp_path / "test.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "c"}])
    with pytest.raises(DataError, match=r'test\.jsonl line 2: the label "c"'):
        Task.read(tmp_path)


def test_too_many_labels(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"text": f"t {i}", "label": f"l {i}"} for i in range(30)])
    with pytest.raises(DataError, match=r"30 different labels.*prompt and completion"):
        Task.read(path)
    assert Task.read(path, kind="generation").counts["train"] == 21


@pytest.mark.parametrize("path", ["missing.jsonl", "no/such/file", "./org/name", "x\0y", "a" * 5000, "src/nothing"])
def test_no_such_file(path: str) -> None:
    with pytest.raises(DataError, match=r"no such file|cannot be used"):
        Task.read(path)


def test_hub_failures_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    for source in ("org/name", "org/name:config", "hf://datasets/org/name", "hf://datasets/org/name/a/b.csv"):
        with pytest.raises(DataError, match=r"^[^\n]*no network\)[^\n]*$"):
            Task.read(source)
    with pytest.raises(DataError, match="hf://datasets"):
        Task.read("hf://models/org/name")


def test_hub_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    rows = {"text": [f"t {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    calls: list[tuple[object, ...]] = []

    def load(*arguments: object) -> datasets.DatasetDict:
        calls.append(arguments)
        return datasets.DatasetDict(train=data, test=data)

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = Task.read("org/name:config#10")
    assert calls == [("org/name", "config")]
    assert (task.name, task.labels, len(task.test)) == ("name", ("no", "yes"), 20)
    assert task.counts["train"] + task.counts["validation"] == 10
    file = write_rows(tmp_path / "data.jsonl", pairs())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    assert Task.read("hf://datasets/org/name/sub/data.jsonl").counts["train"] == 14


def test_sample_depends_on_content_only(tmp_path: Path) -> None:
    rows = pairs(200)
    one = Task.read(f"{write_rows(tmp_path / 'a.jsonl', rows)}#50")
    random.Random(0).shuffle(rows)
    two = Task.read(f"{write_rows(tmp_path / 'b.jsonl', rows)}#50")
    assert len(every(one)) == 50
    assert [set(s) for s in (one.train, one.validation, one.test)] == [
        set(s) for s in (two.train, two.validation, two.test)
    ]
    assert set(every(Task.read(f"{tmp_path / 'a.jsonl'}#50", seed=1))) != set(every(one))
    assert len(every(Task.read(f"{tmp_path / 'a.jsonl'}#900"))) == 200
    with pytest.raises(DataError, match="sample of 0"):
        Task.read(f"{tmp_path / 'a.jsonl'}#0")


def test_sample_of_a_folder_is_of_train_and_keeps_every_label(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": "rare" if i == 7 else "often"} for i in range(100)]
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"{split}.jsonl", rows)
    task = Task.read(f"{tmp_path}#5")
    assert task.counts == {"train": 5, "validation": 100, "test": 100}
    assert task.labels == ("often", "rare")
    with pytest.raises(DataError, match="2 labels"):
        Task.read(f"{tmp_path}#1")


def test_a_file_whose_name_looks_like_a_sample(tmp_path: Path) -> None:
    folder = tmp_path / "data#5"
    folder.mkdir()
    write_rows(folder / "data.jsonl", pairs())
    assert len(every(Task.read(folder))) == 20


# --- splits ---

examples = st.lists(
    st.builds(
        lambda prompt, answer: Example((Message("user", f"p{prompt}"),), f"a{answer}"),
        st.integers(0, 60),
        st.integers(0, 4),
    ),
    max_size=120,
)


@settings(max_examples=200, deadline=None)
@given(examples, st.sampled_from(["classification", "generation", "text"]), st.randoms(), st.integers(0, 3))
def test_split_properties(rows: list[Example], kind: str, rng: random.Random, seed: int) -> None:
    key = (lambda e: e.answer) if kind == "text" else (lambda e: e.messages)
    groups = {key(e) for e in rows}
    try:
        parts = split_by_content(rows, ("test", "validation"), kind=kind, seed=seed)
    except DataError:
        assert len(groups) < 3 or (kind == "classification" and len(groups) < 2 + 5)
        return
    assert all(parts.values()), "every split has an example"
    assert Counter(e for part in parts.values() for e in part) == Counter(rows), "nothing is lost"
    sides = [{key(e) for e in part} for part in parts.values()]
    assert sum(map(len, sides)) == len(groups), "equal prompts are on one side"
    assert len({key(e) for e in parts["validation"]}) <= max(1, len(groups) // 10)
    assert len({key(e) for e in parts["test"]}) <= max(1, len(groups) // 5)
    if kind == "classification":
        assert {e.answer for e in parts["train"]} == {e.answer for e in rows}
    for part in parts.values():  # the order within a split is the file's
        positions = iter(rows)
        assert all(e in positions for e in part)
    shuffled = list(rows)
    rng.shuffle(shuffled)
    again = split_by_content(shuffled, ("test", "validation"), kind=kind, seed=seed)
    assert {s: Counter(p) for s, p in parts.items()} == {s: Counter(p) for s, p in again.items()}


def test_another_seed_is_another_split() -> None:
    rows = [Example((Message("user", f"p{i}"),), "a") for i in range(200)]
    tests = [split_by_content(rows, ("test",), kind="generation", seed=seed)["test"] for seed in (0, 1)]
    assert tests[0] != tests[1]
    assert len(tests[0]) == len(tests[1]) == 40


@pytest.mark.parametrize(
    ("prompts", "test", "validation"),
    [(3, 1, 1), (9, 1, 1), (10, 2, 1), (150, 30, 15), (500, 100, 50), (1000, 100, 100), (1200, 120, 120)],
)
def test_a_small_file_gives_more_to_its_test(prompts: int, test: int, validation: int) -> None:
    rows = [Example((Message("user", f"p{i}"),), "a") for i in range(prompts)]
    parts = split_by_content(rows, ("test", "validation"), kind="generation")
    assert (len(parts["test"]), len(parts["validation"])) == (test, validation)
    without_a_test = split_by_content(rows, ("validation",), kind="generation")
    assert len(without_a_test["validation"]) == validation


def test_adding_rows_moves_few_of_the_others() -> None:
    rows = [Example((Message("user", f"p{i}"),), "a") for i in range(1000)]
    before = set(split_by_content(rows, ("test",), kind="generation")["test"])
    after = set(split_by_content(rows[:990], ("test",), kind="generation")["test"])
    assert len(before - after) <= 10


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_prompts_to_split(tmp_path: Path, n: int) -> None:
    path = write_rows(tmp_path / "data.jsonl", pairs(n) * 5)
    with pytest.raises(DataError, match=rf"only {n} different prompts.*at least 3"):
        Task.read(path)


def test_labels_that_cannot_all_be_kept(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"text": f"t{i}", "label": f"l{i}"} for i in range(4)])
    with pytest.raises(DataError, match="too few to have every label in train"):
        Task.read(path)


# --- the report and the fingerprint ---


def test_check_counts_duplicates_leaks_and_lengths(tmp_path: Path) -> None:
    train = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(10)]
    write_rows(tmp_path / "train.jsonl", train + train[:2])
    write_rows(tmp_path / "validation.jsonl", [{"text": "text 3", "label": "a"}])
    write_rows(tmp_path / "test.jsonl", [{"text": f"text {i}", "label": "b"} for i in range(6, 14)])
    report = check(Task.read(tmp_path))
    assert json.loads(json.dumps(report)) == report
    assert report["counts"] == {"train": 12, "validation": 1, "test": 8}
    assert report["labels"] == {
        "a": {"train": 6, "validation": 1, "test": 0},
        "b": {"train": 6, "validation": 0, "test": 8},
    }
    assert report["duplicates"] == 2
    assert report["leaks"] == {
        "count": 5,
        "examples": [
            {"split": "validation", "text": "text 3"},
            {"split": "test", "text": "text 6"},
            {"split": "test", "text": "text 7"},
        ],
    }
    assert report["prompt_characters"] == {"shortest": 6, "longest": 7}
    assert report["answer_characters"] == {"shortest": 1, "longest": 1}


def test_a_split_file_never_leaks(tmp_path: Path) -> None:
    rows = pairs(40) * 2
    report = check(Task.read(write_rows(tmp_path / "d.jsonl", rows)))
    assert report["leaks"] == {"count": 0, "examples": []}


def test_fingerprint(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", pairs())
    base = Task.read(path).fingerprint
    assert len(base) == 64
    assert Task.read(write_rows(tmp_path / "b.csv", pairs())).fingerprint == base
    assert Task.read(path, template="{prompt}!").fingerprint != base
    assert Task.read(write_rows(tmp_path / "c.jsonl", pairs()[::-1])).fingerprint != base


def test_reading_needs_no_heavy_library(tmp_path: Path) -> None:
    rows = [{"text": f"some words about {i} " * 5, "label": f"l{i % 6}"} for i in range(100)]
    path = write_rows(tmp_path / "data.jsonl", rows)
    code = (
        "import sys, tunewise.data.task; tunewise.data.task.Task.read(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_names_the_rows_with_problems(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(6)]
    train = [*rows, rows[2], {"text": "text 3", "label": "a"}]
    for split, content in (
        ("train", train),
        ("test", [{"text": "text 0", "label": "a"}, {"text": "new", "label": "b"}]),
    ):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    problems = check(Task.read(tmp_path))["problems"]
    assert isinstance(problems, list)
    held_out = [each for each in problems if each["split"] == "test"]
    assert [(each["row"], each["text"]) for each in held_out] == [(1, "text 0")]
    assert held_out[0]["problem"].startswith("the prompt of row 1 of train")
    found = {(each["row"], each["problem"]) for each in problems if each["split"] != "test"}
    assert (7, "the same as row 3") in found and (8, 'another label than row 4, "b"') in found
