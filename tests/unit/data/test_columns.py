"""Columns that no format has are refused with a mapping of the file's own columns, which then works."""

import json
import re

import pytest

from tunewise.core.errors import DataError
from tunewise.data.task import Task


def rows(kind, place):
    texts = f"what is the {place}th thing that people ask for here"
    return {
        "label": {"topic": f"t{place % 3}", "body": texts},
        "number": {"body": texts, "stars": place % 4},
        "reply": {"ask": texts, "reply": f"the answer to {place}, which is long"},
        "further": {"id": place, "said": texts, "kind": "ab"[place % 2]},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "proposed"),
    [
        ("label", "text=body,label=topic"),
        ("number", "text=body,label=stars"),
        ("reply", "prompt=ask,completion=reply"),
        ("further", "text=said,label=kind"),
    ],
)
def test_the_proposed_mapping_names_the_files_columns_and_works(kind, proposed, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(rows(kind, place)) + "\n" for place in range(60)), "utf-8")
    with pytest.raises(DataError) as refused:
        Task.read(str(path))
    found = re.search(r"as in columns (\S+) ", str(refused.value))[1]
    assert found == proposed
    task = Task.read(str(path), columns=dict(pair.split("=") for pair in found.split(",")))
    assert task.kind == ("generation" if kind == "reply" else "classification")


def test_where_there_is_nothing_to_propose_an_example_is_given(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"a,b": "x", "c=d": "y"}\n', "utf-8")
    with pytest.raises(DataError, match="prompt=question,completion=reply"):
        Task.read(str(path))
