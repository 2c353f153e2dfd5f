"""Turns, tools, weights and reasoning of conversations, and what of them is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunewise.core.errors import DataError
from tunewise.data.task import Example, Message, Task

CALL = {"id": "c0", "type": "function", "function": {"name": "look", "arguments": '{"drawer": 0}'}}
READ = {"id": "c0", "type": "function", "function": {"name": "look", "arguments": {"drawer": 0}}}
SCHEMA = {"name": "look", "parameters": {"type": "object", "properties": {"drawer": {"type": "integer"}}}}
WRITTEN = '<tool_call>\n{"name": "look", "arguments": {"drawer": 0}}\n</tool_call>'
USER, SAID = Message("user", "q"), Message("assistant", "a", labelled=True)
ASKS, ANSWERS = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read_row(tmp_path: Path, row: dict, *, notes: list[str] | None = None) -> Example:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row), "utf-8")
    task = Task.read(tmp_path)
    if notes is not None:
        notes += task.notes
    return task.train[0]


def refusal(tmp_path: Path, row: dict) -> str:
    with pytest.raises(DataError) as caught:
        read_row(tmp_path, row)
    assert "train.jsonl" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("role", "read"),
    [
        *((name, "system") for name in ("system", "developer", "System")),
        *((name, "user") for name in ("user", "human", "Human")),
        *((name, "assistant") for name in ("assistant", "model", "chatgpt", "bot", "gpt", "GPT", "Assistant")),
        *((name, "tool") for name in ("tool", "function", "observation", "ipython")),
    ],
)
def test_roles(tmp_path, role, read):
    row = {"messages": [{"role": role, "content": "x"}, ASKS, ANSWERS]}
    assert read_row(tmp_path, row).messages[0] == Message(read, "x", labelled=read == "assistant")


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}, {"content": "Let me look."}])
@pytest.mark.parametrize("calls", [{"tool_calls": [CALL]}, {"tool_calls": [READ]}, {"tool_calls": json.dumps([CALL])}])
def test_calls_of_tools(tmp_path, content, calls):
    turns = [ASKS, {"role": "assistant", **content, **calls}, {"role": "tool", "tool_call_id": "c0", "content": "7"}]
    example = read_row(tmp_path, {"messages": [*turns, ANSWERS], "tools": [SCHEMA]})
    text = content.get("content") or ""
    assert [(m.role, m.content, m.labelled) for m in example.messages[1:]] == [
        ("assistant", text, True),
        ("tool", "7", False),
    ]
    assert json.loads(example.messages[1].fields) == {"tool_calls": [READ]}
    assert json.loads(example.messages[2].fields) == {"tool_call_id": "c0"}
    assert json.loads(example.tools) == [{"type": "function", "function": SCHEMA}]
    assert (example.answer, example.answer_fields) == ("a", "")


@pytest.mark.parametrize(("content", "answer"), [(None, WRITTEN), ("Let me look.", f"Let me look.\n{WRITTEN}")])
def test_an_answer_that_calls_a_tool(tmp_path, content, answer):
    turn = {"role": "assistant", "content": content, "tool_calls": [CALL]}
    example = read_row(tmp_path, {"messages": [ASKS, turn]})
    assert example.answer == answer
    assert json.loads(example.answer_fields) == {"content": content or "", "tool_calls": [READ]}


def test_calls_in_sharegpt(tmp_path):
    call = json.dumps({"name": "look", "arguments": {"drawer": 0}})
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "a"},
    ]
    example = read_row(tmp_path, {"conversations": turns, "tools": json.dumps([SCHEMA])})
    assert json.loads(example.messages[1].fields) == {
        "tool_calls": [{"type": "function", "function": READ["function"]}]
    }
    assert (example.messages[1].content, example.messages[2]) == ("", Message("tool", "7"))
    assert json.loads(example.tools) == [{"type": "function", "function": SCHEMA}]
    last = read_row(tmp_path, {"conversations": turns[:2]})
    assert last.answer == WRITTEN


def test_the_older_form_of_a_call(tmp_path):
    turn = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    example = read_row(tmp_path, {"messages": [ASKS, turn], "functions": [SCHEMA]})
    assert example.answer == WRITTEN and "look" in example.tools


def test_a_call_without_a_name(tmp_path):
    turn = {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}
    assert '[1].tool_calls[0]": the call names no function' in refusal(tmp_path, {"messages": [ASKS, turn]})


def test_tools_as_free_text_belong_to_the_system_message(tmp_path):
    example = read_row(tmp_path, {"messages": [ASKS, ANSWERS], "tools": "You may call look(drawer)."})
    assert example.messages[0] == Message("system", "You may call look(drawer).") and example.tools == ""


def test_results_of_tools_may_be_objects_or_empty(tmp_path):
    turns = [ASKS, {"role": "assistant", "tool_calls": [CALL]}]
    for content, text in (({"code": 7}, '{"code": 7}'), ("", ""), (None, ""), ([7], "[7]")):
        row = {"messages": [*turns, {"role": "tool", "content": content}, ANSWERS]}
        assert read_row(tmp_path, row).messages[2] == Message("tool", text)


def test_content_in_parts(tmp_path):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[:1]}]}
    assert read_row(tmp_path, row) == Example((Message("user", "one\ntwo"),), "one")
    parts[1] = {"type": "image_url", "image_url": {"url": "data:"}}
    assert '[0].content[1]": a part of the type "image_url"' in refusal(tmp_path, row)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning(tmp_path, name):
    thinks = ANSWERS | {name: "Seven."}
    example = read_row(tmp_path, {"messages": [ASKS, thinks, ASKS, thinks]})
    assert json.loads(example.messages[1].fields) == {"reasoning_content": "Seven."}
    assert example.answer == "a"
    assert json.loads(example.answer_fields) == {"content": "a", "reasoning_content": "Seven."}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss_mask": 0}, {"weight": 0.0}])
def test_turns_that_are_not_trained_on(tmp_path, mark):
    bad = {"role": "assistant", "content": "BAD", **mark}
    example = read_row(tmp_path, {"messages": [ASKS, bad, ASKS, ANSWERS]})
    assert example == Example((USER, Message("assistant", "BAD"), USER), "a")
    notes: list[str] = []
    example = read_row(tmp_path, {"messages": [ASKS, ANSWERS, ASKS, bad]}, notes=notes)
    assert example == Example((USER,), "a")
    assert "6 turns after the last one that is trained on were left out" in notes, "two in each split"
    assert "no assistant turn is trained on" in refusal(tmp_path, {"messages": [ASKS, bad]})


def test_a_mask_for_the_row(tmp_path):
    turns = [ASKS, ANSWERS, ASKS, {"role": "assistant", "content": "b"}]
    example = read_row(tmp_path, {"messages": turns, "loss_mask": [0, 0, 0, 1]})
    assert example == Example((USER, Message("assistant", "a"), USER), "b")
    assert "2 values for 4 turns" in refusal(tmp_path, {"messages": turns, "loss_mask": [0, 1]})


def test_a_weight_between_0_and_1_is_refused(tmp_path):
    row = {"messages": [ASKS, ANSWERS | {"weight": 0.5}]}
    assert '[1].weight": the weight 0.5 where 0 or 1 is needed' in refusal(tmp_path, row)


def test_an_empty_system_turn_is_left_out(tmp_path):
    notes: list[str] = []
    row = {"messages": [{"role": "system", "content": ""}, ASKS, ANSWERS]}
    assert read_row(tmp_path, row, notes=notes) == Example((USER,), "a")
    assert "3 empty system turns were left out" in notes


TRL: list[tuple[object, object, Example]] = [
    ([ASKS], [ANSWERS], Example((USER,), "a")),
    ([ASKS], "a", Example((USER,), "a")),
    ("q", [ANSWERS], Example((USER,), "a")),
    ([ASKS, ANSWERS, ASKS], [ANSWERS], Example((USER, Message("assistant", "a"), USER), "a")),
    ("q", [ASKS, ANSWERS], Example((USER,), "a")),
    ([ASKS], [ANSWERS, ASKS, ANSWERS], Example((USER, SAID, USER), "a")),
]


@pytest.mark.parametrize(("prompt", "completion", "example"), TRL)
def test_turns_as_prompt_and_completion(tmp_path, prompt, completion, example):
    assert read_row(tmp_path, {"prompt": prompt, "completion": completion}) == example


def test_variables_of_the_chat_template(tmp_path):
    row = {"messages": [ASKS, ANSWERS], "chat_template_kwargs": {"enable_thinking": False}}
    assert json.loads(read_row(tmp_path, row).template_kwargs) == {"enable_thinking": False}
    row = {"prompt": "q", "completion": "a", "chat_template_kwargs": '{"enable_thinking": false}'}
    assert json.loads(read_row(tmp_path, row).template_kwargs) == {"enable_thinking": False}


REFUSED = [
    ({"messages": [ASKS, ANSWERS], "label": False}, "KTO data"),
    ({"prompt": "q", "completion": "a", "label": False}, "KTO data"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": False}, "KTO data"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference data"),
    ({"messages": [ASKS], "chosen": ANSWERS, "rejected": ANSWERS}, "preference data"),
    ({"text": "q", "labels": ["a", "b"]}, "multi-label data"),
]


@pytest.mark.parametrize(("row", "words"), REFUSED)
def test_what_would_be_learnt_wrongly_is_refused_by_name(tmp_path, row, words):
    message = refusal(tmp_path, row)
    assert words in message and "map" in message


def test_answers_that_are_all_good_are_read(tmp_path):
    assert read_row(tmp_path, {"messages": [ASKS, ANSWERS], "label": True}) == Example((USER,), "a")


def test_tools_in_parquet_have_only_the_keys_that_were_given(tmp_path):
    import pyarrow
    import pyarrow.parquet

    other = {"id": "c1", "type": "function", "function": {"name": "open", "arguments": {"box": 1}}}
    rows = [{"messages": [ASKS, {"role": "assistant", "tool_calls": [call]}]} for call in (READ, other)] * 5
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    for split in ("validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"messages": [ASKS, ANSWERS]}), "utf-8")
    task = Task.read(tmp_path)
    assert task.train[0].answer == WRITTEN
    assert json.loads(task.train[1].answer_fields)["tool_calls"] == [other]
