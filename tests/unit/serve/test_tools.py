"""Tools over HTTP: offered in requests, called in answers, as OpenAI's API has it."""

import json

import pytest
import torch
from pydantic import ValidationError

from chat_layouts import LAYOUTS, model_of
from tunewise.adaptation.artifact import Adaptation
from tunewise.data.examples import Message
from tunewise.data.task import Task
from tunewise.serve.openai_responses import Choice, Form
from tunewise.serve.openai_schema import ChatRequest
from tunewise.serve.prompts import PromptReader, Question
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"name": "Bo", "n": 2}'}}
TALK = [
    {"role": "user", "content": "Who is Bo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "a dog"},
]


def request(**more) -> ChatRequest:
    return ChatRequest(**{"model": "m", "messages": TALK, "tools": [TOOL], **more})


def test_a_request_with_tools_is_read():
    body = request()
    assert json.loads(body.offered) == [TOOL] and body.messages[1].text == ""
    (call,) = json.loads(body.messages[1].fields)["tool_calls"]
    assert call["function"] == {"name": "find", "arguments": {"name": "Bo", "n": 2}}
    assert json.loads(body.messages[2].fields) == {"tool_call_id": "call_1"}
    assert request(tool_choice="none").offered == "" and request(tools=[]).offered == ""
    assert json.loads(request(chat_template_kwargs={"enable_thinking": False}).template_kwargs) == {
        "enable_thinking": False
    }


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": None},
        {"role": "user", "content": "a", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "find", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "find", "arguments": "{" * 5000}}]},
        {"role": "assistant", "tool_calls": []},
    ],
)
def test_odd_calls_are_refused(turn):
    with pytest.raises(ValidationError):
        request(messages=[turn, {"role": "user", "content": "a"}])


def test_tools_and_calls_reach_the_prompt():
    base = tiny_base("llama")
    base.tokenizer = model_of(LAYOUTS["qwen3"]).tokenizer
    style = Task("t", "generation", "messages", (), (), (), (), "rouge_l")
    reader = PromptReader(Adaptation(make("base").attach(base, torch.Generator()), style, None))
    body = request()
    messages = tuple(Message(turn.role, turn.text, fields=turn.fields) for turn in body.messages)
    shown = base.tokenizer.decode(reader.read(Question(messages, tools=body.offered), 4).ids)
    assert f"Tools: {json.dumps([TOOL])}" in shown and '{"name": "find", "arguments": {"name": "Bo", "n": 2}}' in shown
    assert "<tool_response>\na dog\n</tool_response>" in shown


TEXT = 'Let me look.\n<tool_call>\n{"name": "find", "arguments": {"name": "Bo", "n": 2, "x": 0.5}}\n</tool_call>'


def choice(text: str) -> Choice:
    return Choice(text=text, reason="stop", prompt_tokens=3, completion_tokens=5)


def test_an_answer_that_calls_a_tool():
    form = Form(chat=True, model="m", spell=str, calls=True)
    (answer,) = form.whole([choice(TEXT)], 1, logprobs=False)["choices"]
    assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] == "Let me look."
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "find"
    assert json.loads(call["function"]["arguments"]) == {"name": "Bo", "n": 2, "x": 0.5}
    said, end = form.last(0, choice(TEXT))
    assert said["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
    assert end["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", ["A dog.", "<tool_call>\nnot JSON\n</tool_call>", '{"answer": 3}'])
def test_an_answer_that_calls_nothing_is_text(text):
    form = Form(chat=True, model="m", spell=str, calls=True)
    (answer,) = form.whole([choice(text)], 1, logprobs=False)["choices"]
    assert answer["message"]["content"] == text and "tool_calls" not in answer["message"]
    assert answer["finish_reason"] == "stop"
    assert form.last(0, choice(text))[0]["choices"][0]["delta"]["content"] == text


def test_without_tools_a_call_stays_text():
    form = Form(chat=True, model="m", spell=str)
    (answer,) = form.whole([choice(TEXT)], 1, logprobs=False)["choices"]
    assert answer["message"]["content"] == TEXT and len(form.last(0, choice(TEXT))) == 1
