"""JSON and tool calls in answers that may hold anything."""

import json
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewise.fitting.metrics import find
from tunewise.fitting.structured_answers import DEEPEST, Call, canonical, parse_json, tool_calls

PLACE = {"city": "Köln", "days": 2}
WEATHER = {"name": "weather", "arguments": PLACE}
TIME = {"name": "time", "arguments": {}}


def block(call):
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


SAME = {
    "block": block(WEATHER) + "\n" + block(TIME),
    "text before": "Let me look.\n" + block(TIME) + block(WEATHER),
    "unclosed": block(WEATHER) + "\n<tool_call>\n" + json.dumps(TIME),
    "no arguments": block(WEATHER) + block({"name": "time"}),
    "list in a block": block([TIME, WEATHER]),
    "bare list": json.dumps([WEATHER, TIME]),
    "bare objects": json.dumps(TIME) + "\n" + json.dumps(WEATHER),
    "semicolons": json.dumps(TIME) + "; " + json.dumps(WEATHER),
    "Mistral": "[TOOL_CALLS] " + json.dumps([TIME, WEATHER]),
    "parameters": json.dumps([{"name": "time", "parameters": {}}, {"name": "weather", "parameters": PLACE}]),
    "arguments as text": json.dumps(
        [{"name": "time", "arguments": "{}"}, {"name": "weather", "arguments": json.dumps(PLACE)}]
    ),
    "OpenAI": json.dumps([{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]),
    "2.0 is 2": block({"name": "weather", "arguments": {"days": 2.0, "city": "Köln"}}) + block(TIME),
}  # fmt: skip
OTHER = {
    "one": block(WEATHER),
    "twice": block(WEATHER) + block(WEATHER) + block(TIME),
    "another name": block({**WEATHER, "name": "Weather"}) + block(TIME),
    "another value": block({"name": "weather", "arguments": {"city": "Koln", "days": 2}}) + block(TIME),
    "text for a number": block({"name": "weather", "arguments": {"city": "Köln", "days": "2"}}) + block(TIME),
    "broken": block(WEATHER) + "<tool_call>{</tool_call>",
    "text": "I call weather and time.",
    "empty": "",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_the_same_calls_in_other_forms(text):
    assert find("tool_calls")(text, [SAME["block"]]) == 1 and find("tool_calls")(SAME["block"], [text]) == 1


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_other_calls(text):
    assert find("tool_calls")(text, [SAME["block"]]) == 0


def test_where_nothing_is_to_be_called():
    assert find("tool_calls")("Hello!", ["Good morning."]) == 1
    assert find("tool_calls")('{"name": "Ann"}', ["Good morning."]) == 1  # JSON, but no call
    assert find("tool_calls")(block(TIME), ["Good morning."]) == 0
    assert find("tool_calls")("<tool_call>{", ["Good morning."]) == 0
    assert tool_calls(block(TIME)) == Counter({Call("time", canonical({})): 1})


HOSTILE = {
    "brackets": "[" * 10**7,
    "braces": '{"a":' * 10**5,
    "pairs": "[]" * 400_000,
    "calls": '{"name":"f","arguments":{}}' * 30_000,
    "quotes": '"\\"' * 300_000,
    "backslashes": '"' + "\\" * 900_000,
    "digits": "9" * 10**6,
    "exponent": "1e" + "9" * 1000,
    "marks": "<tool_call>" * 80_000,
    "closed marks": "<tool_call></tool_call>" * 40_000,
    "nested calls": "<tool_call>" + "[" * 10**5,
    "list": "[TOOL_CALLS]" + "[" * 10**5,
    "nested arguments": json.dumps({"name": "f", "arguments": "[" * 10**5}),
    "surrogate": "\ud800{",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_take_no_time(text):
    started = time.process_time()
    for name in ("json_valid", "json_match", "tool_calls"):
        assert find(name)(text, ['{"name": "f", "arguments": {}}']) in (0, 1)
    assert time.process_time() - started < 10


def test_depth():
    assert find("json_valid")("[" * DEEPEST + "]" * DEEPEST, [""]) == 1
    assert find("json_valid")("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), [""]) == 0
    assert find("json_valid")(json.dumps("[" * 500 + '\\"['), [""]) == 1  # brackets in text are not nested


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES)
def test_json_matches_itself_in_any_layout(value):
    assert find("json_match")(json.dumps(value, indent=1, sort_keys=True), [json.dumps(value)]) == 1
    hash(canonical(parse_json(json.dumps(value))))
