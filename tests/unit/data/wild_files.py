"""Writes data files as they are found in the wild, from a seed, with the task that must come out of each.

A file is some rows (what they say) in some container (how they are stored); both are drawn, and so is the detail.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet

Row = dict[str, object]
WORDS = [
    "plain",
    "naïve",
    "日本語",
    "😀",
    'say "so"',
    "a,b",
    "semi;colon",
    "שלום",
    "привет",
    "two  spaces",
    "50%",
    "{x}",
]


@dataclass(frozen=True)
class Rows:
    """Rows, and what must be read of the first one; `flat` ones hold text and numbers only."""

    rows: list[Row]
    kind: str
    format: str
    prompt: str
    answer: str
    flat: bool = True
    answer_column: str = ""


@dataclass(frozen=True)
class Wild:
    """A file or folder and the task that must come out of it."""

    path: Path
    kind: str
    format: str
    counts: dict[str, int] | None  # of each split, where the files say; otherwise the total is `total`
    total: int
    prompt: str
    answer: str
    options: dict[str, object] = field(default_factory=dict)


def texts(rng: Random, count: int, name: str) -> list[str]:
    return [f"{name} {i} {rng.choice(WORDS)} {rng.choice(WORDS)}" for i in range(count)]


# --- what the rows say ---


def classification(rng: Random, n: int) -> Rows:
    text = rng.choice(["text", "sentence", "Text", "TEXT"])
    label = rng.choice(["label", "labels", "sentiment", "category", "Label", "gold_label"])
    labels: list[object] = [*rng.choice([["a", "b"], [0, 1], ["yes", "no", "maybe"], [1, 2, 3, 4, 5]])]
    rows = [{text: value, label: labels[i % len(labels)]} for i, value in enumerate(texts(rng, n, "t"))]
    if rng.random() < 0.3:
        rows = [{"id": i, **row} for i, row in enumerate(rows)]
    first = rows[0]
    return Rows(rows, "classification", "classification", str(first[text]), str(first[label]), answer_column=label)


def pairs(rng: Random, n: int) -> Rows:
    one, two = rng.choice(
        [("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("question", "passage")]
    )
    left, right = texts(rng, n, "l"), texts(rng, n, "r")
    rows: list[Row] = [{one: a, two: b, "label": i % 3} for i, (a, b) in enumerate(zip(left, right, strict=True))]
    prompt = f"{one}: {left[0]}\n{two}: {right[0]}"
    return Rows(rows, "classification", "classification", prompt, "0", answer_column="label")


def completion(rng: Random, n: int) -> Rows:
    prompt, answer = rng.choice(
        [("prompt", "completion"), ("query", "response"), ("input", "target"), ("Problem", "Solution")]
    )
    numbers = rng.random() < 0.3
    answers: list[object] = [i * 2 for i in range(n)] if numbers else [*texts(rng, n, "c")]
    rows: list[Row] = [{prompt: a, answer: b} for a, b in zip(texts(rng, n, "p"), answers, strict=True)]
    format_ = "prompt-completion"
    return Rows(rows, "generation", format_, str(rows[0][prompt]), str(rows[0][answer]), answer_column=answer)


def alpaca(rng: Random, n: int) -> Rows:
    """The input is empty, null or absent in some rows."""
    rows: list[Row] = []
    for i, (ask, answer) in enumerate(zip(texts(rng, n, "do"), texts(rng, n, "o"), strict=True)):
        rows.append({"instruction": ask, "input": f"x {i}" if i % 3 == 0 else "", "output": answer})
    return Rows(
        rows, "generation", "alpaca", f"{rows[0]['instruction']}\n\nx 0", str(rows[0]["output"]), answer_column="output"
    )


def ragged(rng: Random, n: int) -> Rows:
    made = alpaca(rng, n)
    rows = [
        {k: v for k, v in row.items() if v != ""} | ({"meta": {"i": i}} if i % 4 == 1 else {})
        for i, row in enumerate(made.rows)
    ]
    return Rows(rows, made.kind, made.format, made.prompt, made.answer, flat=False)


def squad(rng: Random, n: int) -> Rows:
    rows: list[Row] = [
        {"context": c, "question": q, "answers": {"text": [a, a, "other"], "answer_start": [0, 0, 1]}}
        for c, q, a in zip(texts(rng, n, "c"), texts(rng, n, "q"), texts(rng, n, "a"), strict=True)
    ]
    prompt = f"{rows[0]['context']}\n\n{rows[0]['question']}"
    return Rows(rows, "generation", "question-answer", prompt, texts_of(rows[0]), flat=False)


def texts_of(row: Row) -> str:
    answers = row["answers"]
    assert isinstance(answers, dict)
    return str(answers["text"][0])


def messages(rng: Random, n: int) -> Rows:
    user, assistant = rng.choice(
        [("user", "assistant"), ("user", "model"), ("human", "gpt"), ("Human", "ChatGPT"), ("user", "bot")]
    )
    system = rng.choice([None, "", "Be brief."])
    parts = rng.random() < 0.2

    def turn(role: str, text: str) -> Row:
        return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}

    rows: list[Row] = []
    for q, a in zip(texts(rng, n, "q"), texts(rng, n, "a"), strict=True):
        turns = [turn(user, "hello"), turn(assistant, "hi"), turn(user, q), turn(assistant, a)]
        role = rng.choice(["system", "developer"])
        rows.append({"messages": turns if system is None else [turn(role, system), *turns]})
    last = rows[0]["messages"]
    assert isinstance(last, list)
    texts_ = [t["content"][0]["text"] if parts else t["content"] for t in last[-2:]]
    return Rows(rows, "generation", "messages", texts_[0], texts_[1], flat=False)


def sharegpt(rng: Random, n: int) -> Rows:
    rows: list[Row] = []
    assistant = rng.choice(["gpt", "chatgpt", "assistant", "model"])
    for i, (q, a) in enumerate(zip(texts(rng, n, "q"), texts(rng, n, "a"), strict=True)):
        rows.append({"id": f"x{i}", "conversations": [{"from": "human", "value": q}, {"from": assistant, "value": a}]})
    first = rows[0]["conversations"]
    assert isinstance(first, list)
    return Rows(rows, "generation", "sharegpt", first[0]["value"], first[1]["value"], flat=False)


def tools(rng: Random, n: int) -> Rows:
    content = rng.choice([{}, {"content": None}, {"content": ""}])
    as_text = rng.random() < 0.5
    rows: list[Row] = []
    for i, q in enumerate(texts(rng, n, "q")):
        arguments: object = json.dumps({"drawer": i}) if as_text else {"drawer": i}
        call = {"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": arguments}}
        turns = [
            {"role": "user", "content": q},
            {"role": "assistant", **content, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{i}", "content": str(i)},
            {"role": "assistant", "content": f"It is {i}."},
        ]
        rows.append({"messages": turns, "tools": [{"type": "function", "function": {"name": "look"}}]})
    first = rows[0]["messages"]
    assert isinstance(first, list)
    return Rows(rows, "generation", "messages", first[0]["content"], "It is 0.", flat=False)


def weighted(rng: Random, n: int) -> Rows:
    made = messages(rng, n)
    for row in made.rows:
        turns = row["messages"]
        assert isinstance(turns, list)
        parts = isinstance(turns[-1]["content"], list)
        ask, bad = ([{"type": "text", "text": text}] if parts else text for text in ("and?", "BAD"))
        mark = rng.choice(["weight", "loss_mask"])
        turns += [{"role": "user", "content": ask}, {"role": "assistant", "content": bad, mark: 0}]
    return made


def turns_as_prompt(rng: Random, n: int) -> Rows:
    rows: list[Row] = []
    as_text = rng.random() < 0.5
    for q, a in zip(texts(rng, n, "q"), texts(rng, n, "a"), strict=True):
        answer: object = a if as_text else [{"role": "assistant", "content": a}]
        rows.append({"prompt": [{"role": "user", "content": q}], "completion": answer})
    prompt, answer = rows[0]["prompt"], rows[0]["completion"]
    assert isinstance(prompt, list)
    text = answer if isinstance(answer, str) else answer[0]["content"]  # type: ignore[index]
    return Rows(rows, "generation", "prompt-completion", prompt[0]["content"], text, flat=False)


CONTENTS = [classification, classification, pairs, completion, completion, alpaca]
NESTED = [ragged, squad, messages, sharegpt, tools, weighted, turns_as_prompt]


# --- how they are stored ---


def json_lines(rows: list[Row], rng: Random) -> str:
    return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows)


def in_json(rows: list[Row], rng: Random, flat: bool) -> str:
    indent = rng.choice([None, 1, 2])
    forms: list[Callable[[], object]] = [
        lambda: rows,
        lambda: {"data": rows},
        lambda: {"version": "1.0", "examples": rows, "count": len(rows)},
        lambda: {str(i): row for i, row in enumerate(rows)},
    ]
    if flat:
        forms += [
            lambda: {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]},
            lambda: {"columns": [*rows[0]], "index": [*range(len(rows))], "data": [[*row.values()] for row in rows]},
            lambda: {"schema": {"fields": []}, "data": [{"index": i, **row} for i, row in enumerate(rows)]},
            lambda: {name: [row[name] for row in rows] for name in rows[0]},
        ]
    if rng.random() < 0.15:
        return "\n".join(json.dumps(row, indent=2) for row in rows)
    return json.dumps(rng.choice(forms)(), indent=indent, ensure_ascii=rng.random() < 0.5)


def separated(rows: list[Row], separator: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerows([[*rows[0]], *([*row.values()] for row in rows)])
    return out.getvalue()


def one_file(made: Rows, stem: Path, rng: Random) -> Path:
    """Write all rows to one file of a drawn kind."""
    kinds = ["jsonl", "ndjson", "json", "json", "parquet", "arrow"] + (["csv", "csv", "tsv"] if made.flat else [])
    ending = rng.choice(kinds)
    path = stem.with_name(f"{stem.name}.{ending}")
    if ending in ("parquet", "arrow"):
        table = pyarrow.Table.from_pylist(made.rows)
        if ending == "parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
                out.write_table(table)
        return path
    if ending in ("csv", "tsv"):
        separator = rng.choice([",", ";", "\t", "|"])
        content = separated(made.rows, separator)
        if separator == ";" and rng.random() < 0.5:
            content = f"sep=;\n{content}"
    elif ending == "json":
        content = in_json(made.rows, rng, made.flat)
    else:
        content = json_lines(made.rows, rng)
    data = content.encode("utf-8-sig" if rng.random() < 0.2 else "utf-8")
    if rng.random() < 0.2:
        data = data.replace(b"\n", b"\r\n") if ending in ("csv", "jsonl") else data
    if rng.random() < 0.2:
        path, data = path.with_name(f"{path.name}.gz"), gzip.compress(data)
    path.write_bytes(data)
    return path


def part(made: Rows, start: int, stop: int) -> Rows:
    return Rows(made.rows[start:stop], made.kind, made.format, "", "", made.flat)


def folder_of_splits(made: Rows, folder: Path, rng: Random) -> tuple[Path, dict[str, int] | None]:
    """Write splits in a folder of a drawn layout; the counts are None where a split has to be split off."""
    n = len(made.rows)
    inner = folder / "data" if rng.random() < 0.3 else folder
    inner.mkdir(parents=True)
    held_out = rng.choice(["validation", "valid", "val", "dev", "eval"])
    layout = rng.choice(["files", "parts", "one json", "unlabelled"])
    if layout == "one json":
        names = {"train": made.rows, held_out: made.rows[:6], "test": made.rows[6:15]}
        (inner / "all.json").write_text(json.dumps(names, indent=rng.choice([None, 1])), "utf-8")
        return folder, {"train": n, "validation": 6, "test": 9}
    if layout == "parts":
        half = n // 2
        for i, rows in enumerate((made.rows[:half], made.rows[half:])):
            (inner / f"train-{i:05}-of-00002.jsonl").write_text(json_lines(rows, rng), "utf-8")
    else:
        one_file(made, inner / "train", rng)
    one_file(part(made, 0, 6), inner / held_out, rng)
    if layout == "unlabelled" and made.answer_column:
        rows = [{k: v for k, v in row.items() if k != made.answer_column} for row in made.rows[6:15]]
        (inner / "test.jsonl").write_text(json_lines(rows, rng), "utf-8")
        return folder, None
    one_file(part(made, 6, 15), inner / "test", rng)
    return folder, {"train": n, "validation": 6, "test": 9}


def wild_file(seed: int, folder: Path) -> Wild:
    """Write file number `seed` into a folder."""
    rng = Random(f"wild {seed}")
    made = rng.choice(CONTENTS if rng.random() < 0.55 else NESTED)(rng, rng.choice([20, 31, 60]))
    counts: dict[str, int] | None = None
    path = folder / "data"
    total = len(made.rows)
    if rng.random() < 0.3:
        path, counts = folder_of_splits(made, path, rng)
        total = sum(counts.values()) if counts else total + 6
    else:
        path = one_file(made, path, rng)
    return Wild(path, made.kind, made.format, counts, total, made.prompt, made.answer)
