"""Files and folders as users have them: separators, wrapped JSON, packed files, parts, class names, hidden labels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tunewise.core.errors import DataError, SettingError
from tunewise.data import text_files
from tunewise.data.task import Example, Message, Task

ROWS = [{"prompt": f"p {i}", "completion": f"c {i}"} for i in range(12)]
LABELLED = [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(12)]


def every(task: Task) -> list[Example]:
    return [*task.train, *task.validation, *task.test]


def texts(task: Task) -> set[tuple[str, str]]:
    return {(example.prompt, example.answer) for example in every(task)}


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def noted(task: Task, words: str) -> bool:
    return any(words in note for note in task.notes)


EXPECTED = {(row["prompt"], row["completion"]) for row in ROWS}


# --- separated text ---


@pytest.mark.parametrize("name", ["data.csv", "data.tsv"])
@pytest.mark.parametrize(
    ("separator", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars"), (",", "commas")]
)
def test_the_separator_is_found(tmp_path, name, separator, word):
    content = "".join(
        separator.join((f'"{row["prompt"]}, {i}; x"', row["completion"])) + "\n" for i, row in enumerate(ROWS)
    )
    (tmp_path / name).write_text(f"prompt{separator}completion\n{content}", "utf-8")
    task = Task.read(tmp_path / name)
    assert texts(task) == {(f"{row['prompt']}, {i}; x", row["completion"]) for i, row in enumerate(ROWS)}
    usual = {"data.csv": ",", "data.tsv": "\t"}[name]
    assert noted(task, f"is separated by {word}") == (separator != usual)


def test_unquoted_commas_beside_semicolons(tmp_path):
    (tmp_path / "data.csv").write_text("text;label\n" + "".join(f"Well, {i}, yes;{'ab'[i % 2]}\n" for i in range(12)))
    assert ("Well, 3, yes", "b") in texts(Task.read(tmp_path / "data.csv"))


def test_excels_line_for_the_separator(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(
        b"\xef\xbb\xbfsep=;\r\ntext;label\r\n" + b"".join(b"t %d;%c\r\n" % (i, b"ab"[i % 2]) for i in range(12))
    )
    assert texts(Task.read(path)) == {(row["text"], row["label"]) for row in LABELLED}
    path.write_text("sep=;\ntext;label\nt;a\n;b\nu;b\n")
    with pytest.raises(DataError) as caught:
        Task.read(path)
    assert caught.value.line == 4


@pytest.mark.parametrize("name", ["data.tsv", "data.csv"])
@pytest.mark.parametrize("line", ['"unbalanced quote\t1', '".\t0', 'he said "no\t1', '"no" he said\t1'])
def test_tsv_that_is_not_quoted(tmp_path, name, line):
    rows = [f"plain {i}\t{i % 2}" for i in range(12)]
    (tmp_path / name).write_text("\n".join(["sentence\tlabel", line, *rows, line + "0"]) + "\n")
    task = Task.read(tmp_path / name)
    text, label = line.split("\t")
    assert (text, label) in texts(task)
    assert noted(task, "without quoting") == line.startswith('"')


def test_names_of_empty_columns(tmp_path):
    (tmp_path / "data.csv").write_text("text,label,,\n" + "".join(f"t {i},{'ab'[i % 2]},,\n" for i in range(12)))
    task = Task.read(tmp_path / "data.csv")
    assert len(every(task)) == 12 and noted(task, '"column 3", "column 4"')


# --- JSON ---


def columns_of(rows: list[dict]) -> dict:
    return {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}


WRAPPED = {
    "under data": {"version": "1", "data": ROWS},
    "under any key": {"examples": ROWS},
    "columns": columns_of(ROWS),
    "index": {str(i): row for i, row in enumerate(ROWS)},
    "named index": {f"row {i}": row for i, row in enumerate(ROWS)},
    "split": {"columns": ["prompt", "completion"], "index": [*range(12)], "data": [[*row.values()] for row in ROWS]},
    "table": {"schema": {"fields": [{"name": "prompt"}]}, "data": [{"index": i, **row} for i, row in enumerate(ROWS)]},
    "lists": {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "list": ROWS,
}


@pytest.mark.parametrize("ending", ["json", "jsonl", "json.gz"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", WRAPPED)
def test_json_that_holds_the_rows(tmp_path, name, indent, ending):
    content = json.dumps(WRAPPED[name], indent=indent).encode()
    path = tmp_path / f"data.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    assert texts(Task.read(path)) == EXPECTED


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_pretty_printed_objects(tmp_path, ending):
    path = tmp_path / f"data.{ending}"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert texts(Task.read(path)) == EXPECTED
    path.write_text(path.read_text().replace('"c 1"', '"c 1'))
    with pytest.raises(DataError, match="not valid JSON") as caught:
        Task.read(path)
    assert caught.value.line == 7


@pytest.mark.parametrize(
    ("held_out", "split"), [("validation", "validation"), ("dev", "validation"), ("eval", "validation")]
)
def test_json_that_holds_splits(tmp_path, held_out, split):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": ROWS, held_out: ROWS[:2], "test": ROWS[2:5], "version": 3}, indent=1))
    task = Task.read(path)
    assert task.counts == {"train": 12, split: 2, "test": 3}
    assert noted(task, "eval is read as the validation split") == (held_out == "eval")


@pytest.mark.parametrize("start", ['{"data": [\n', '{\n"data": [', '{"data": ['])
def test_wrapped_json_with_a_row_a_line(tmp_path, start):
    path = tmp_path / "data.json"
    content = start + ",\n".join(json.dumps(row) for row in ROWS) + "\n]}"
    path.write_text(content)
    assert texts(Task.read(path)) == EXPECTED
    path.write_text(content.replace('"c 5"', '"c 5'))
    with pytest.raises(DataError, match="not valid JSON") as caught:
        Task.read(path)
    assert caught.value.line == 6 + start.count("\n")


def test_splits_of_columns(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({"train": columns_of(ROWS), "test": columns_of(ROWS[:2])}))
    task = Task.read(tmp_path / "data.json")
    assert task.counts["test"] == 2 and texts(task) == EXPECTED


def test_wrapped_json_names_the_line(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [*ROWS, {"prompt": "p", "completion": None}]}, indent=1))
    with pytest.raises(DataError, match='column "completion": null where text is needed') as caught:
        Task.read(path)
    assert path.read_text().splitlines()[caught.value.line - 1].strip() == "{"
    path.write_text(json.dumps({"data": [*ROWS, {"prompt": "p", "completion": None}]}))
    with pytest.raises(DataError, match="row 13: null where text is needed"):
        Task.read(path)


def test_keys_that_only_some_rows_have(tmp_path):
    rows = [
        {"instruction": f"do {i}", "output": f"c {i}"}
        | ({"input": "x"} if i % 2 else {})
        | ({"note": 1} if i == 3 else {})
        for i in range(12)
    ]
    (tmp_path / "data.jsonl").write_text(lines(rows))
    task = Task.read(tmp_path / "data.jsonl")
    assert texts(task) == {(f"do {i}\n\nx" if i % 2 else f"do {i}", f"c {i}") for i in range(12)}
    assert noted(task, 'columns not used: "note"')


def test_a_rare_key_does_not_change_the_format(tmp_path):
    (tmp_path / "data.jsonl").write_text(lines([*ROWS, ROWS[0] | {"messages": []}]))
    assert Task.read(tmp_path / "data.jsonl").format == "prompt-completion"


def test_numbers_as_answers(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        "".join(
            f'{{"prompt": "p {i}", "completion": {value}}}\n' for i, value in enumerate(["3.50", "7", "true", "1e3"])
        )
    )
    task = Task.read(path)
    assert texts(task) == {("p 0", "3.50"), ("p 1", "7"), ("p 2", "true"), ("p 3", "1e3")}
    assert noted(task, '4 numbers in the column "completion" were taken as text')
    path.write_text("prompt,completion\n" + "".join(f"p {i},3.5{i}0\n" for i in range(4)))
    (tmp_path / "data.csv").write_text(path.read_text())
    assert ("p 0", "3.500") in texts(Task.read(tmp_path / "data.csv"))


# --- packed and typed files ---


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.ndjson", "data.ndjson.gz", "data.JSONL.GZ"])
def test_packed_lines(tmp_path, name):
    content = lines(ROWS).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    task = Task.read(tmp_path / name)
    assert texts(task) == EXPECTED and task.name == "data"


def test_packed_csv_and_text(tmp_path):
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(b"text;label\n" + b"t 0;a\nt 1;b\n" * 8 + b"t 2;a\nt 3;b\n"))
    assert Task.read(tmp_path / "data.csv.gz").labels == ("a", "b")
    (tmp_path / "data.txt.gz").write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    assert {example.answer for example in every(Task.read(tmp_path / "data.txt.gz"))} == {"one", "two", "three"}


def test_packed_files_are_bounded_and_damage_is_told(tmp_path, monkeypatch):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS).encode())[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        Task.read(path)
    monkeypatch.setattr(text_files, "MAX_UNPACKED", 1000)
    for name in ("data.jsonl.gz", "data.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b" " * 5000))
        with pytest.raises(DataError, match="GiB when unpacked"):
            Task.read(tmp_path / name)


FEATURES = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}


def class_table(labels: list[int]) -> pyarrow.Table:
    table = pyarrow.table({"text": [f"t {i}" for i in range(len(labels))], "label": labels})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def test_class_names_of_parquet_and_arrow(tmp_path):
    table = class_table([i % 2 for i in range(12)])
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    with (
        pyarrow.OSFile(str(tmp_path / "stream.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    for name in ("data.parquet", "stream.arrow", "file.arrow"):
        assert Task.read(tmp_path / name).labels == ("neg", "pos"), name
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1 and nothing more")
    with pytest.raises(DataError, match="not a readable Arrow file"):
        Task.read(tmp_path / "broken.arrow")


def test_saved_data_sets(tmp_path):
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    rows = {"text": [f"t {i}" for i in range(12)], "label": [i % 2 for i in range(12)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "one")
    hidden = datasets.Dataset.from_dict(rows | {"label": [-1] * 12}, features=features)
    datasets.DatasetDict(train=data, eval=data, test=hidden).save_to_disk(tmp_path / "three")
    assert Task.read(tmp_path / "one").labels == ("neg", "pos")
    task = Task.read(tmp_path / "three")
    assert task.labels == ("neg", "pos") and len(task.validation) == 12
    assert noted(task, "test has nothing in the column") and task.counts["train"] + task.counts["test"] == 12


def test_excel_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "data.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"pip install 'tunewise\[excel\]'"):
        Task.read(tmp_path / "data.xlsx")


def test_excel(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl, of the extra excel, is not installed")
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [["prompt", "completion", None], *([row["prompt"], i, None] for i, row in enumerate(ROWS)), [None] * 3]:
        sheet.append(row)
    book.create_sheet("notes").append(["x"])
    book.save(tmp_path / "data.xlsx")
    task = Task.read(tmp_path / "data.xlsx")
    assert texts(task) == {(f"p {i}", str(i)) for i in range(12)}
    assert noted(task, 'sheets of data.xlsx that were not read: "notes"')
    (tmp_path / "broken.xlsx").write_bytes(b"PK and nothing more")
    with pytest.raises(DataError, match="not a readable Excel workbook"):
        Task.read(tmp_path / "broken.xlsx")


# --- folders ---


def test_parts_of_splits(tmp_path):
    for i in range(3):
        (tmp_path / f"train-{i:05}-of-00003.jsonl").write_text(lines(ROWS[4 * i : 4 * i + 4]))
    (tmp_path / "test-00000-of-00001-a09b74b3ef9c3b56.jsonl").write_text(lines(ROWS[:2]))
    task = Task.read(tmp_path)
    assert texts(task) == EXPECTED and task.counts["test"] == 2
    (tmp_path / "train-00001-of-00003.jsonl").write_text(lines([*ROWS[4:8], {"prompt": "p"}]))
    with pytest.raises(DataError, match="lacks") as caught:
        Task.read(tmp_path)
    assert Path(caught.value.path).name == "train-00001-of-00003.jsonl" and caught.value.line == 5
    (tmp_path / "train-00001-of-00003.jsonl").unlink()
    assert noted(Task.read(tmp_path), "only 2 of the 3 parts of train are there")


@pytest.mark.parametrize(
    "inner", ["data/train.jsonl", "data/train-00000-of-00001.jsonl", "train/a.jsonl", "train/x-00000-of-00001.jsonl"]
)
def test_folders_in_folders(tmp_path, inner):
    path = tmp_path / inner
    path.parent.mkdir()
    path.write_text(lines(ROWS))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert texts(Task.read(tmp_path)) == EXPECTED


def test_configurations_are_named(tmp_path):
    for name in ("main", "socratic"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(lines(ROWS))
    with pytest.raises(DataError, match='give one of its folders "main", "socratic"'):
        Task.read(tmp_path)


def test_the_name_eval_and_files_that_are_not_read(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t {i},{'ab'[i % 2]}\n" for i in range(12)))
    (tmp_path / "eval.csv").write_text("text,label\nx,a\ny,b\n")
    (tmp_path / "more.csv").write_text("text,label\nx,a\n")
    (tmp_path / "SOURCE.txt").write_text("notes")
    task = Task.read(tmp_path)
    assert task.counts["validation"] == 2
    assert noted(task, "eval.csv is read as the validation split") and noted(task, 'not read: "more.csv"')
    (tmp_path / "validation.csv").write_text("text,label\nz,a\n")
    task = Task.read(tmp_path)
    assert (task.counts["validation"], task.counts["test"]) == (1, 2)
    assert noted(task, "eval.csv is read as the test split")


@pytest.mark.parametrize(
    "test", ["text\nt0\nt1\n", "text,label\nt0,\nt1,\n", "text,label\nt0,-1\nt1,-1\n", "TEXT,Label\nt0,?\n"]
)
def test_a_test_split_without_labels(tmp_path, test):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"r {i},{'ab'[i % 2]}\n" for i in range(12)))
    (tmp_path / "test.csv").write_text(test)
    task = Task.read(tmp_path)
    assert len(every(task)) == 12 and task.counts["test"] == 2
    assert noted(task, "test has nothing in the column") and noted(task, "test was split off train")


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data.jsonl").write_text(lines(ROWS))
    assert len(every(Task.read("~/data.jsonl"))) == 12
    assert len(every(Task.read("~/data.jsonl#5"))) == 5


# --- prompts of several columns ---

PAIRS = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3} for i in range(12)]


def first_message(path: Path, **options: object) -> Message:
    task = Task.read(path, **options)
    return next(example.messages[0] for example in every(task) if " 4" in example.prompt)


def test_pairs_are_recognised(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines(PAIRS))
    task = Task.read(path)
    assert (task.format, task.labels) == ("classification", ("0", "1", "2"))
    assert noted(task, 'prompts are made of the columns "premise", "hypothesis"')
    assert first_message(path) == Message("user", "premise: p 4\nhypothesis: h 4")
    path.write_text(lines([{"question": f"q {i}", "passage": f"s {i}", "answer": i % 2 == 0} for i in range(12)]))
    assert Task.read(path).labels == ("false", "true")
    assert first_message(path) == Message("user", "question: q 4\npassage: s 4")


def test_columns_are_joined(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        lines([{"Title": f"t {i}", "Body": f"b {i}" if i else "", "stars": i % 2, "year": i} for i in range(12)])
    )
    columns = {"text": "Title+Body", "label": "stars"}
    assert first_message(path, columns=columns) == Message("user", "Title: t 4\nBody: b 4")
    assert noted(Task.read(path, columns=columns), '1 prompts lack the column "Body"')
    assert first_message(path, columns={"prompt": "Title+year", "completion": "Body"}, skip_bad_rows=True) == Message(
        "user", "Title: t 4\nyear: 4"
    )
    with pytest.raises(DataError, match='no column "Boddy"'):
        Task.read(path, columns={"text": "Title+Boddy", "label": "stars"})


def test_a_template_that_names_columns(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines(PAIRS))
    template = "Premise: {premise}\nHypothesis: {hypothesis}\nEntailed?"
    task = Task.read(path, template=template)
    assert (task.template, task.format) == ("{prompt}", "classification")
    assert first_message(path, template=template) == Message("user", "Premise: p 4\nHypothesis: h 4\nEntailed?")
    listing = "One of {labels}.\n{premise} {hypothesis}\n{labels}:"
    assert Task.read(path, template=listing).template == "One of {labels}.\n{prompt}\n{labels}:"
    assert first_message(path, template=listing) == Message("user", "p 4 h 4")
    with pytest.raises(DataError, match=r'template names "premis".*"premise", "hypothesis", "label"'):
        Task.read(path, template="{premis}")
    with pytest.raises(SettingError, match="between columns"):
        Task.read(path, template="{premise}{labels}{hypothesis}")


def test_a_template_with_the_prompt_and_a_column(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines([{"text": f"t {i} {{year}}", "year": 1990 + i, "label": i % 2} for i in range(12)]))
    template = "{year}: {prompt}\nLabel:"
    assert first_message(path, template=template) == Message("user", "1994: t 4 {year}\nLabel:")
    assert Task.read(path, template=template).template == "{prompt}"
    assert Task.read(path, template="{prompt}\nLabel:").template == "{prompt}\nLabel:"


def test_an_empty_column_of_a_template_is_told_once(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines([{"title": f"t {i}", "body": "" if i < 5 else "b", "label": i % 2} for i in range(12)]))
    task = Task.read(path, template="{title}\n{body}")
    assert '5 prompts lack the column "body", which is empty there' in task.notes


def test_a_template_for_answers(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"context": f"c {i}", "question": f"q {i}", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}}
        for i in range(12)
    ]
    path.write_text(lines(rows))
    task = Task.read(path, template="{question} ({context})")
    assert (task.format, task.metric) == ("question-answer", "f1")
    assert first_message(path, template="{question} ({context})") == Message("user", "q 4 (c 4)")


# --- long text ---


def test_a_book_on_one_line_is_cut(tmp_path):
    book = " ".join(f"Sentence number {i} says something." for i in range(2000))
    (tmp_path / "book.txt").write_text(book)
    task = Task.read(tmp_path / "book.txt")
    passages = [example.answer for example in every(task)]
    assert task.kind == "text" and noted(task, "1 long text was cut into")
    assert all(passage in book and len(passage) <= 3000 for passage in passages)
    assert sum(map(len, passages)) == len(book), "nothing is lost or repeated"
    assert all(passage.rstrip().endswith(".") for passage in passages), "they end with a sentence"
    assert min(task.counts.values()) > 1
    assert sum(Task.read(f"{tmp_path / 'book.txt'}#10").counts.values()) == 10


def test_lines_are_examples_where_there_are_many(tmp_path):
    (tmp_path / "data.txt").write_text("".join(f"{i} " + "word " * 1000 + "\n" for i in range(40)))
    task = Task.read(tmp_path / "data.txt")
    assert sum(task.counts.values()) == 40 and not noted(task, "was cut")


def test_a_text_without_spaces_is_cut(tmp_path):
    (tmp_path / "data.jsonl").write_text(lines([{"text": "".join(chr(0x4E00 + i % 5000) for i in range(30_000))}]))
    assert sum(Task.read(tmp_path / "data.jsonl").counts.values()) >= 10
