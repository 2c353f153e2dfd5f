"""Malformed data files: each loads to exactly what it says or is refused in one sentence, and nothing else.

At night there are 20,000 mutants in place of the 200 of a commit (`figures.NIGHTLY`); mutant i is the same file in
every run.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import figures
from tunewise.core.errors import DataError, RequestError
from tunewise.data.task import Example, Task
from tunewise.data.task_check import check

pytestmark = pytest.mark.figure("M1")

MUTANTS = figures.of(200, 20_000)
SECONDS = 10  # of the processor, which shows a hang on any machine

# --- well-formed files to start from ---

WORDS = ["plain", "naïve", "日本語", "😀", 'say "so"', "a,b", "tab\there", "two\nlines", "שלום", "  spaced  "]
Row = dict[str, object]


def row_of(format_: str, i: int, rng: random.Random) -> Row:
    prompt, answer = f"{i} {rng.choice(WORDS)}", f"{rng.choice(WORDS)} {i}"
    if format_ == "classification":
        return {"text": prompt, "label": "ab"[i % 2]}
    if format_ == "question-answer":
        return {"question": prompt, "answers": {"text": [answer, "x"], "answer_start": [1, 2]}}
    if format_ == "messages":
        return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
    return {"prompt": prompt, "completion": answer}


def csv_text(rows: list[list[str]], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


# --- mutations of values, of text and of bytes ---

VALUES = [
    '"fine"',
    '"\\u00e9 \\ud83d\\ude00 \\/ \\n"',
    '"\u2028 \x7f"',
    "null",
    "3",
    "3.5",
    "true",
    "[]",
    "{}",
    '["a"]',
    '""',
    '"  "',
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "9" * 5000,
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    "[" * 40 + "]" * 40,
    "[" * 100_000,
    '{"a":' * 50_000,
    '{"a": 1, "a": 2}',
    "'single'",
    "undefined",
    '"unclosed',
    '"bad \\x escape"',
    '"raw \t tab"',
    "",
    '{"text": []}',
    '{"text": null}',
    '[{"role": "user"}]',
    '[{"role": "king", "content": "x"}]',
    "[null]",
    "[[1]]",
]
LINES = [
    "",
    "   ",
    "null",
    "[]",
    "3",
    '"text"',
    "{}",
    '{"other": "x"}',
    "{",
    "}",
    ",",
    "[{}]",
    "\x00",
    "\u2028",
    "//",
]


def json_rows(rows: list[Row], rng: random.Random) -> list[str]:
    """JSON text of each row, one of them with a value, a key or the whole row replaced."""
    texts = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
    at = rng.randrange(len(rows))
    row = rows[at]
    key = rng.choice(list(row))
    choice = rng.randrange(6)
    if choice < 3:
        value = rng.choice(VALUES)
        texts[at] = "{" + ", ".join(f'"{k}": {value if k == key else json.dumps(v)}' for k, v in row.items()) + "}"
    elif choice == 3:
        texts[at] = json.dumps({k: v for k, v in row.items() if k != key})
    elif choice == 4:
        name = rng.choice([key, "extra", "half \\ud800"])
        texts[at] = texts[at][:-1] + f', "{name}": "again"}}'
    else:
        texts[at] = rng.choice(LINES)
    return texts


def cells_of(rows: list[list[str]], rng: random.Random, delimiter: str) -> str:
    """Text of a table of cells with one fault in one row."""
    at = rng.randrange(len(rows))
    choice = rng.randrange(7)
    if choice == 0:
        rows[at] = rows[at][:-1]
    elif choice == 1:
        rows[at] = [*rows[at], "more"]
    elif choice == 2:
        rows[at][rng.randrange(len(rows[at]))] = rng.choice(["", " ", "NaN", "\x00", "\x1b[2J", "=1+1", "1e5"])
    elif choice == 3:
        rows[0] = [rows[0][0]] * len(rows[0])
    text = csv_text(rows, delimiter)
    if choice == 4:
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        lines[at] = rng.choice(['"', '"open', '"a"b', "\r", ";", delimiter, '""'])
        text = "\n".join(lines)
    elif choice == 5:
        text = text.replace("\n", "\r" if rng.random() < 0.5 else "\r\n")
    elif choice == 6:
        text = text.replace(delimiter, rng.choice([";", "|", "  "]))
    return text


def parquet_of(rows: list[Row], rng: random.Random) -> bytes:
    """A Parquet file whose first column may have another type, hold nulls, or be missing."""
    columns: dict[str, object] = {name: [row[name] for row in rows] for name in rows[0]}
    name = rng.choice(list(columns))
    n = len(rows)
    others: list[object] = [
        [None] * n,
        [*list(columns[name])[:-1], None],  # type: ignore[call-overload]
        list(range(n)),
        [float("nan")] * n,
        [b"\xff\xfe"] * n,
        [["a"]] * n,
        [True] * n,
        pyarrow.array(["a"] * n).dictionary_encode(),
        pyarrow.array(range(n), pyarrow.timestamp("s")),
        pyarrow.array(["a"] * n, pyarrow.large_string()),
    ]
    if rng.random() < 0.6:
        columns[name] = rng.choice(others)
    elif rng.random() < 0.3:
        del columns[name]
    out = io.BytesIO()
    compression = rng.choice(["none", "snappy", "zstd"])
    pyarrow.parquet.write_table(pyarrow.table(columns), out, compression=compression)
    return out.getvalue()


def flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def drop(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(40) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    junk = rng.choice([b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\r", b'"', b"\n\n", b"\\"])
    return data[:start] + junk + data[start:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start : start + rng.randrange(60)] * 2 + data[start:]


def encoded(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    name = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-8-sig", "utf-7"])
    return text.encode(name, "replace")


def bom(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2, b"\xff\xfe", b"\xef\xbb", b"PAR1", b"\x1f\x8b"]) + data


BYTES: list[Callable[[bytes, random.Random], bytes]] = [
    flip,
    flip,
    flip,
    flip,
    cut,
    drop,
    insert,
    repeat,
    encoded,
    bom,
]


def mutant(i: int) -> tuple[str, bytes]:
    """The ending and content of mutant i."""
    rng = random.Random(f"tunewise {i}")
    ending = ["jsonl", "jsonl", "json", "csv", "tsv", "parquet", "txt"][i % 7]
    format_ = rng.choice(["classification", "prompt-completion", "question-answer", "messages"])
    if ending in ("csv", "tsv"):
        format_ = rng.choice(["classification", "prompt-completion"])
    rows = [row_of(format_, k, rng) for k in range(rng.choice([1, 12, 30, 60]))]
    of_bytes = rng.random() < 0.5
    delimiter = "\t" if ending == "tsv" else ","
    if ending == "txt":
        data = "\n".join(str(next(iter(row.values()))) for row in rows).encode()
    elif ending == "parquet":
        data = parquet_of(rows, rng)
    elif ending in ("csv", "tsv"):
        cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        data = (csv_text(cells, delimiter) if of_bytes else cells_of(cells, rng, delimiter)).encode()
    else:
        texts = [json.dumps(row) for row in rows] if of_bytes else json_rows(rows, rng)
        joined = "\n".join(texts) if ending == "jsonl" else "[\n" + ",\n".join(texts) + "\n]"
        data = joined.encode("utf-8", "surrogatepass")
    if of_bytes or (ending in ("txt", "parquet") and rng.random() < 0.6):
        data = rng.choice(BYTES)(data, rng)
    return ending, data


# --- what the file says, read by other means ---


def plain_rows(path: Path) -> Iterator[Row]:
    data = path.read_bytes()
    if path.suffix == ".parquet":
        yield from pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        return
    text = data.decode("utf-8-sig")
    if path.suffix == ".txt":
        for line in text.split("\n"):
            if line.strip():
                yield {"text": line.removesuffix("\r") if line + "\n" in text else line}
    elif path.suffix in (".csv", ".tsv"):
        between = re.match("(?:text(.)label|prompt(.)completion)", text)
        delimiter = (between[1] or between[2]) if between else "\t" if path.suffix == ".tsv" else ","
        yield from separated_rows(text, delimiter)
    elif path.suffix == ".json" and text.lstrip(" \t\r\n").startswith("["):
        yield from json.loads(text)
    else:
        for line in text.split("\n"):
            if line.strip(" \t\r\n"):
                yield json.loads(line)


def separated_rows(text: str, delimiter: str) -> Iterator[Row]:
    """The rows; where quoting is not consistent in a TSV, quotes are characters like any other."""
    quoted: list[list[str]] = []
    try:
        quoted = [
            cells for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if cells
        ]
        consistent = len(set(map(len, quoted))) == 1
    except csv.Error:
        consistent = False
    if delimiter in "\t|" and not consistent:
        lines = io.StringIO(text, newline="")
        quoted = [cells for cells in csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE) if cells]
    header, *rows = quoted
    yield from (dict(zip(header, cells, strict=True)) for cells in rows)


def expected(format_: str, row: Row) -> tuple[str, ...]:
    """The texts of a row: those of the messages, then the answers."""
    low = {key.strip().lower(): value for key, value in row.items()}
    if format_ in ("messages", "sharegpt"):
        return tuple(turn["content"] for turn in low["messages"])  # type: ignore[attr-defined]
    if format_ == "question-answer":
        answers = low.get("answers", low.get("answer"))
        answers = answers["text"] if isinstance(answers, dict) else answers
        return (str(low["question"]), *map(spelled, answers if isinstance(answers, list) else [answers]))
    if format_ == "classification":
        return (str(low["text"]), spelled(low["label"]))
    if format_ == "text":
        return (str(low["text"]),)
    return (str(low["prompt"]), spelled(low["completion"]))


def spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def loaded(example: Example) -> tuple[str, ...]:
    return (*(message.content for message in example.messages), *(example.references or (example.answer,)))


def deduplicated(format_: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Repeated answers of one question count once."""
    return (texts[0], *dict.fromkeys(texts[1:])) if format_ == "question-answer" else texts


def assert_sentence(error: RequestError, path: Path) -> None:
    message = str(error)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 1000
    assert message.isprintable(), "control characters of the file must not reach a terminal"
    assert isinstance(error, DataError)
    assert error.remedy
    assert error.remedy in message


@pytest.mark.parametrize("i", range(MUTANTS))
def test_mutant(i: int, tmp_path: Path) -> None:
    ending, data = mutant(i)
    path = tmp_path / f"mutant.{ending}"
    path.write_bytes(data)
    start = time.process_time()
    try:
        task = Task.read(path)
    except RequestError as error:
        assert_sentence(error, path)
    else:
        check(task)
        examples = Counter(loaded(e) for split in (task.train, task.validation, task.test) for e in split)
        rows = [deduplicated(task.format, expected(task.format, row)) for row in plain_rows(path)]
        assert examples == Counter(rows)
    assert time.process_time() - start < SECONDS


def test_mutants_cover_both_outcomes(tmp_path: Path) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    for i in range(700):
        ending, data = mutant(i)
        path = tmp_path / f"{i}.{ending}"
        path.write_bytes(data)
        try:
            Task.read(path)
            outcomes[ending, "loaded"] += 1
        except RequestError:
            outcomes[ending, "refused"] += 1
    endings = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
    assert min(outcomes[ending, how] for ending in endings for how in ("loaded", "refused")) >= 3, outcomes


# --- named cases: what is refused, where, and in which words ---

GOOD = '{"prompt": "p1", "completion": "c1"}\n{"prompt": "p2", "completion": "c2"}\n'


def bad(value: str) -> str:
    return f'{GOOD}{{"prompt": "p3", "completion": {value}}}\n'


def turns(*pairs: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in pairs]})


LATIN = GOOD.replace("c2", "café").encode("latin-1")
NAMED: list[tuple[str, str, str | bytes, int | None, str]] = [
    ("empty file", "jsonl", "", None, "holds no rows"),
    ("only blank lines", "jsonl", "\n \n", None, "holds no rows"),
    ("empty list", "json", " [ ] ", None, "holds no rows"),
    ("empty json", "json", "", None, "holds no rows"),
    ("empty csv", "csv", "", None, "holds no rows"),
    ("header only", "csv", "prompt,completion\n", None, "holds no rows"),
    ("blank text", "txt", "\n  \n", None, "holds no rows"),
    ("not json", "jsonl", GOOD + "oops\n", 3, "not valid JSON"),
    ("truncated", "jsonl", GOOD[:-5], 2, "not valid JSON"),
    ("two values on a line", "jsonl", GOOD.replace("\n", "", 1), 1, "more text follows"),
    ("a number row", "jsonl", GOOD + "3\n", 3, "a number, not an object"),
    ("a list row", "jsonl", GOOD + "[]\n", 3, "a list, not an object"),
    ("missing column", "jsonl", GOOD + '{"prompt": "p"}\n', 3, 'lacks "completion"'),
    ("null", "jsonl", bad("null"), 3, "null where text is needed"),
    ("number as prompt", "jsonl", GOOD + '{"prompt": 3, "completion": "c"}', 3, "a number where text is needed"),
    ("list", "jsonl", bad('["c"]'), 3, "a list where text is needed"),
    ("object", "jsonl", bad('{"a": "c"}'), 3, "an object where text is needed"),
    ("empty completion", "jsonl", bad('""'), 3, "the text is empty"),
    ("blank completion", "jsonl", bad('" \\n\\u00a0"'), 3, "the text is empty"),
    ("NaN", "jsonl", bad("NaN"), 3, "NaN is not a JSON value"),
    ("Infinity", "jsonl", bad("-Infinity"), 3, "-Infinity is not a JSON value"),
    ("overflow", "jsonl", bad("1e999"), 3, "a number where text is needed"),
    ("huge number", "jsonl", bad("9" * 5000), 3, "too many digits"),
    ("repeated key", "jsonl", bad('"a", "prompt": "b"'), 3, '"prompt" occurs twice'),
    ("lone surrogate", "jsonl", bad('"\\ud800"'), 3, "half of a surrogate pair"),
    ("escaped NUL", "jsonl", bad('"a\\u0000b"'), 3, "NUL character"),
    ("deep", "jsonl", bad("[" * 40 + "]" * 40), 3, "more than 32 deep"),
    ("very deep", "jsonl", bad("[" * 1_000_000), 3, "more than 32 deep"),
    ("long line", "jsonl", bad('"' + "x" * (10 * 1024 * 1024) + '"'), 3, "longer than 10 MB"),
    ("NUL byte", "jsonl", GOOD + "\0", 3, f"NUL byte at byte offset {len(GOOD)}"),
    ("latin-1", "jsonl", LATIN, 2, "byte offset 72"),
    ("UTF-16", "jsonl", GOOD.encode("utf-16"), 1, "byte offset 0"),
    ("UTF-16 without a mark", "jsonl", GOOD.encode("utf-16-le"), 1, "NUL byte"),
    ("bytes of a surrogate", "jsonl", GOOD.encode() + b"\xed\xa0\x80", 3, "not UTF-8"),
    ("object without rows", "json", '{\n "data": []\n}', None, '"data" are not one of the known formats'),
    ("broken object", "json", '{\n "data": [\n {"text": "t",}\n]}', 3, "not valid JSON"),
    ("several lists", "json", '{"a": [{"text": "t"}], "b": [{"text": "t"}]}', None, 'several lists of rows ("a", "b")'),
    ("text in json", "json", '"text"', 1, "does not start with a list"),
    (
        "item in json",
        "json",
        '[\n {"prompt": "p",\n  "completion": "c"},\n {"prompt": 3, "completion": "c"}\n]',
        4,
        'column "prompt": a number',
    ),
    ("fault in json", "json", '[\n {"prompt": "p",\n  "completion": oops}]', 3, "not valid JSON"),
    ("no comma", "json", '[{"prompt": "p", "completion": "c"}\n{}]', 2, "comma"),
    ("trailing comma", "json", '[\n{"prompt": "p", "completion": "c"},\n]', 3, "not valid JSON"),
    ("unclosed list", "json", '[{"prompt": "p", "completion": "c"}\n', 2, "end of the list is missing"),
    ("after the list", "json", '[{"prompt": "p", "completion": "c"}] x', 1, "more text follows"),
    ("NaN in json", "json", '[{"prompt": "p",\n "completion": NaN}]', 1, "NaN"),
    ("latin-1 json", "json", '[\n"é"]'.encode("latin-1"), 2, "byte offset 3"),
    ("few cells", "csv", "prompt,completion\np,c\np\n", 3, "1 cells and the header 2"),
    ("many cells", "csv", 'prompt,completion\np,"c\nc"\np,c,x\n', 4, "3 cells and the header 2"),
    ("blank cell", "csv", 'prompt,completion\n\np,"c\nc"\n"p",\n', 5, '"completion": the text is empty'),
    ("unclosed quote", "csv", 'prompt,completion\np,c\np,"c\nx,y\n', 3, "cannot be split into cells"),
    ("text after a quote", "csv", 'prompt,completion\np,c\n"p" x,c\n', 3, "cannot be split into cells"),
    ("endless cell", "csv", 'prompt,completion\np,"' + "x\n" * 6_000_000, 2, "field larger than field limit"),
    ("repeated header", "csv", "text,text\na,b\n", 1, '"text" twice'),
    ("carriage returns", "csv", "prompt,completion\rp,c\r", 1, "cannot be split into cells"),
    ("not parquet", "parquet", GOOD, None, "not a readable Parquet file"),
    ("unknown columns", "jsonl", '{"a": "x"}', None, '"a" are not one of the known formats'),
    ("preference", "jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r"}', None, "preference data"),
    ("user last", "jsonl", turns(("user", "q"), ("assistant", "a"), ("user", "q")), 1, "ends with a user"),
    ("no turns", "jsonl", turns(), 1, "is empty"),
    ("assistant only", "jsonl", turns(("assistant", "a")), 1, "nothing comes before the answer"),
    ("unknown role", "jsonl", turns(("king", "q"), ("assistant", "a")), 1, 'role "king" is not known'),
    ("blank turn", "jsonl", turns(("user", " "), ("assistant", "a")), 1, '[0].content": the text is empty'),
    ("turn without content", "jsonl", '{"messages": [{"role": "user"}]}', 1, "null where text is needed"),
    ("turn that is text", "jsonl", '{"messages": ["hi"]}', 1, "text where a turn is needed"),
    ("messages as text", "jsonl", '{"messages": "[]"}', 1, "text where a list is needed"),
    ("role of a list", "jsonl", '{"messages": [{"role": [], "content": "x"}]}', 1, "a role that is a list"),
    ("no answers", "jsonl", '{"question": "q", "answers": {"text": [], "answer_start": []}}', 1, "no answer"),
    ("history", "jsonl", '{"instruction": "i", "output": "o", "history": [["q"]]}', 1, "not a pair"),
    ("one label", "jsonl", '{"text": "t", "label": 1.5}', None, 'all 1 rows have the label "1.5"'),
    ("list of labels", "jsonl", '{"text": "t", "labels": ["a"]}', 1, "multi-label data"),
    ("KTO", "jsonl", '{"prompt": "p", "completion": "c", "label": false}', None, "KTO data"),
    ("not gzip", "jsonl.gz", GOOD, None, "cannot be read"),
    ("terminal codes", "jsonl", '{"\\u001b[2J\\ud800": "x"}', None, "\\x1b[2J\\ud800"),
    ("unknown ending", "docx", "PK", None, 'the ending ".docx"'),
]


@pytest.mark.parametrize(
    ("ending", "content", "line", "words"), [case[1:] for case in NAMED], ids=[c[0] for c in NAMED]
)
def test_named(ending: str, content: str | bytes, line: int | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{ending}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        Task.read(path)
    assert time.process_time() - start < SECONDS
    assert_sentence(caught.value, path)
    assert words in str(caught.value)
    assert caught.value.line == line


def test_parquet_faults_name_the_row_and_the_column(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "completion": ["c", None]}), path)
    with pytest.raises(DataError, match=r'column "completion": row 2: null where text is needed'):
        Task.read(path)


TEXTS = {
    "one character": "x",
    "a million characters": "x" * 1_000_000,
    "right to left": "\u202eשלום \u200fעולם",
    "combining": "e\u0301" + "\u0300" * 500,
    "control characters": "\x01\x1b[2J\x7f\x85",
    "separators": "a\u2028b\u2029c\x0bd\x0ce\x1cf",
    "astral": "😀\U0010ffff",
    "noncharacters": "\ufeff\uffff\ufffd",
    "padded": "  x\n\n",
    "quotes": '"\'`\\"\\n',
    "markup": "[bold]<script>{prompt}</script><|im_end|>",
    "looks like other types": "null",
    "all of the basic plane": "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x10000)])),
}


@pytest.mark.figure("M5")
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_arrive_exactly(text: str, ending: str, tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": f"{i}{text}", "completion": f"{text}{i}"} for i in range(3)]
    cells = [["prompt", "completion"], *([str(value) for value in row.values()] for row in rows)]
    path = tmp_path / f"data.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        content = {
            "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
            "json": json.dumps(rows),
            "csv": csv_text(cells, ","),
            "tsv": csv_text(cells, "\t"),
        }[ending]
        path.write_bytes(content.encode())
    task = Task.read(path)
    got = {(e.prompt, e.answer) for split in (task.train, task.validation, task.test) for e in split}
    assert got == {(row["prompt"], row["completion"]) for row in rows}
    json.dumps(check(task))


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    for ending, content in (("jsonl", GOOD * 2), ("csv", "prompt,completion\np1,c1\np2,c2\np3,c3\n")):
        path = tmp_path / f"data.{ending}"
        path.write_bytes(b"\xef\xbb\xbf" + content.replace("p1", "p0", 1).replace("\n", "\r\n").encode())
        assert {e.answer for e in Task.read(path).train} <= {"c1", "c2", "c3"}


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        Task.read(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_big_good_file_is_read_in_linear_time(ending: str, tmp_path: Path) -> None:
    rows = [[f"prompt {i} " + "x" * 200, f"completion {i}"] for i in range(50_000)]
    objects = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
    path = tmp_path / f"data.{ending}"
    if ending == "csv":
        path.write_text(csv_text([["prompt", "completion"], *rows], ","), encoding="utf-8")
    else:
        lines = [json.dumps(row) for row in objects]
        path.write_text("\n".join(lines) if ending == "jsonl" else json.dumps(objects), encoding="utf-8")
    start = time.process_time()
    assert sum(Task.read(path).counts.values()) == len(rows)
    assert time.process_time() - start < SECONDS
