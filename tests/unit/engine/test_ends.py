"""One object says where an answer ends: for training, generation, serving, retention text and every export."""

from __future__ import annotations

import json
from copy import deepcopy
from unittest.mock import Mock

import pytest
import torch

from scripted_model import write
from tunewise.adaptation.artifact import Adaptation
from tunewise.data.task import Example, Message, Task
from tunewise.engine.generation import generate
from tunewise.export.formats import _gguf_tokens
from tunewise.export.formats.merged import write_ends
from tunewise.export.formats.ollama import modelfile
from tunewise.fitting.forgetting import own_text
from tunewise.fitting.scoring import encoder_for
from tunewise.serve.prompts import PromptReader
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base

TURN_END, OTHER_END = 1, 5
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TASK = Task("t", "generation", "messages", (Example((Message("user", "cat"),), "dog"),), (), (), (), "rouge_l")


@pytest.fixture
def base():
    """A chat model whose template ends turns with another token than its tokenizer's end-of-sequence token."""
    base = tiny_base("llama")
    base.tokenizer = deepcopy(base.tokenizer)
    base.tokenizer.chat_template = TEMPLATE
    base.tokenizer.eos_token = "<s>"
    base.model.generation_config.eos_token_id = [0, OTHER_END]
    return base


@pytest.fixture
def adaptation(base):
    return Adaptation(make("base").attach(base, torch.Generator()), TASK, None)


def test_training_ends_with_the_mark_of_the_template(base):
    encoder = encoder_for(make("base").attach(base, torch.Generator()), TASK)
    row = encoder.encode(TASK.train)[0]
    assert row.ids[-1] == TURN_END and row.labelled[-1]
    assert encoder.ends.stops == {0, TURN_END, OTHER_END}


@pytest.mark.parametrize("end", [0, TURN_END, OTHER_END])
def test_generation_stops_at_each_of_them(base, monkeypatch, end):
    attachment = make("base").attach(base, torch.Generator())
    encoder = encoder_for(attachment, TASK)
    answer = base.tokenizer("dog", add_special_tokens=False)["input_ids"]
    write(monkeypatch, [*answer, end, *answer])
    generated = generate(base, encoder, TASK.train, 16)
    assert (generated.texts, generated.ended, generated.tokens) == (["dog"], [True], [len(answer)])


def test_serving_stops_there_too(adaptation):
    assert PromptReader(adaptation).ends == {0, TURN_END, OTHER_END}


def test_text_sampled_from_a_model_stops_at_the_ends_of_its_generation(base, monkeypatch):
    write(monkeypatch, [7, OTHER_END, 9])
    assert own_text(base, 0, rows=1)[0].ids == [0, 7, OTHER_END]
    write(monkeypatch, [7, 9])
    assert own_text(base, 0, rows=1, length=4)[0].ids == [0, 7, 9, 9, 9]


def test_text_sampled_from_a_model_does_not_depend_on_how_much_is_sampled(base):
    few, many = own_text(base, 3, rows=2, length=8), own_text(base, 3, rows=5, length=8)
    assert [text.ids for text in few] == [text.ids for text in many[:2]]
    assert len({tuple(text.ids) for text in many}) == 5


def test_a_modelfile_names_every_end(adaptation):
    stops = [line for line in modelfile(adaptation).splitlines() if line.startswith("PARAMETER stop")]
    assert 'PARAMETER stop "</s>"' in stops and len(stops) == 3


def test_a_merged_model_stops_there_in_other_programs(adaptation, tmp_path):
    assert write_ends(adaptation, tmp_path) == ()
    written = json.loads((tmp_path / "generation_config.json").read_text("utf-8"))
    assert written["eos_token_id"] == [0, TURN_END, OTHER_END]
    adaptation.attachment.base.tokenizer.chat_template = TEMPLATE.replace(
        "{% for m", "{% set opening = '<think>\n\n</think>\n\n' %}{% for m"
    ).replace("m.role + ': ' + m.content", "m.role + ': ' + (opening if m.role == 'assistant' else '') + m.content")
    (note,) = write_ends(adaptation, tmp_path)
    assert "<think>" in note and "enable_thinking" in note


def test_a_gguf_file_names_the_end_of_a_turn(base, monkeypatch):
    written = Mock()
    monkeypatch.setattr(_gguf_tokens, "vocabulary", lambda base: Mock(model="gpt2"))
    _gguf_tokens.add_tokens(written, base)
    written.add_eos_token_id.assert_called_once_with(0)
    written.add_eot_token_id.assert_called_once_with(TURN_END)
