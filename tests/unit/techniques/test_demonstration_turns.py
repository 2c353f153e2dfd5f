"""Worked examples as turns of one conversation, and as rows of a file."""

import json
from dataclasses import replace

import pytest

from tunewise.data.task import Example, Message
from tunewise.techniques.building.demonstration_turns import ExampleRow, conversation, fits_conversation

SYSTEM = Message("system", "Be brief.")
ONE = Example((SYSTEM, Message("user", "one?")), "1")
TWO = Example((Message("system", "Be long."), Message("user", "two?")), "2")
QUESTION = Example((SYSTEM, Message("user", "three?")), "3")
CALLS = '{"tool_calls": [{"function": {"name": "add", "arguments": {}}}]}'


def turns(messages):
    return [(message.role, message.content) for message in messages]


def test_one_system_message_joins_the_instruction_and_the_question_s_own_text():
    assert turns(conversation([ONE, TWO], QUESTION, "Count.")) == [
        ("system", "Count.\n\nBe brief."),
        ("user", "one?"),
        ("assistant", "1"),
        ("user", "two?"),
        ("assistant", "2"),
        ("user", "three?"),
    ]
    bare = replace(QUESTION, messages=QUESTION.messages[1:])
    assert turns(conversation([ONE], bare))[0] == ("user", "one?"), (
        "the system text of an example is not the question's"
    )
    assert turns(conversation([ONE], bare, "Count."))[0] == ("system", "Count.")
    assert conversation([], QUESTION) == QUESTION.messages


def test_a_system_message_in_the_middle_moves_to_the_start():
    question = replace(
        QUESTION, messages=(*QUESTION.messages, Message("system", "In German."), Message("user", "now?"))
    )
    assert turns(conversation([], question)) == [("system", "Be brief.\n\nIn German."), ("user", "three?\n\nnow?")]


def test_neighbours_of_one_role_become_one_turn():
    demonstration = Example(
        (
            Message("user", "hello"),
            Message("user", "are you there?"),
            Message("assistant", "yes", labelled=True),
            Message("user", "what is one?"),
            Message("assistant", "wait"),
        ),
        "1",
    )
    shown = conversation([demonstration], QUESTION)
    assert turns(shown)[1:] == [
        ("user", "hello\n\nare you there?"),
        ("assistant", "yes"),
        ("user", "what is one?"),
        ("assistant", "wait\n\n1"),
        ("user", "three?"),
    ]
    assert not any(message.labelled for message in shown)


def test_what_the_question_s_turns_hold_besides_text_stays():
    asked = (
        Message("user", "add"),
        Message("assistant", "", labelled=True, fields=CALLS),
        Message("tool", "4", fields='{"tool_call_id": "a"}'),
        Message("assistant", "four", labelled=True),
        Message("user", "sure?"),
    )
    assert conversation([ONE], Example(asked, "yes"))[2:] == asked


@pytest.mark.parametrize(
    ("example", "fits"),
    [
        (ONE, True),
        (replace(ONE, tools="[]"), True),
        (replace(ONE, answer_fields='{"content": "1", "reasoning_content": "one"}'), False),
        (replace(ONE, messages=(Message("user", "?"), Message("assistant", "", fields=CALLS))), False),
        (replace(ONE, messages=(Message("user", "?"), Message("tool", "4"))), False),
        (replace(ONE, messages=(Message("assistant", "hi"), Message("user", "?"))), False),
        (replace(ONE, messages=(SYSTEM,)), False),
    ],
)
def test_what_fits_a_conversation(example, fits):
    assert fits_conversation(example) is fits


def test_a_row_holds_what_an_example_has_and_no_more():
    row = ExampleRow.of(ONE).to_json()
    assert row == {
        "messages": [
            {"role": "system", "content": "Be brief.", "labelled": False},
            {"role": "user", "content": "one?", "labelled": False},
        ],
        "answer": "1",
    }
    full = Example(
        (Message("user", "add"), Message("assistant", "", fields=CALLS)),
        "",
        (),
        "",
        '{"content": ""}',
        "[{}]",
        '{"a": 1}',
    )
    for example in (ONE, full):
        again = ExampleRow.from_json(json.loads(json.dumps(ExampleRow.of(example).to_json())))
        assert again.example == example
