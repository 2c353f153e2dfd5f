"""Where a generated answer ends."""

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from scripted_model import write
from tunewise.data.task import Example, Message, Task
from tunewise.engine import generation
from tunewise.engine.generation import generate, stop_of
from tunewise.fitting.scoring import Scores, encoder_for, score
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base


def task_of(*answers):
    train = tuple(Example((Message("user", "the cat"),), text, (text,)) for text in answers)
    return Task("t", "generation", "question-answer", train, (), (), (), "exact_match")


@pytest.fixture
def writes(monkeypatch):
    """A base that answers everything with the given text."""
    base = tiny_base("llama")

    def use(text):
        write(monkeypatch, base.tokenizer(text, add_special_tokens=False)["input_ids"])
        return make("base").attach(base, torch.Generator())

    return use


def test_a_blank_line_ends_an_answer_where_no_training_answer_has_one(writes):
    assert stop_of(task_of("dog", "a\nb")) == "\n\n"
    assert stop_of(task_of("dog", "a\n\nb")) is None
    text = "the dog ran\n\nQuestion: the cat"
    attachment = writes(text)
    for task, expected in ((task_of("dog"), "the dog ran"), (task_of("a\n\nb"), text)):
        encoder = encoder_for(attachment, task)
        room = len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert generate(attachment.base, encoder, task.train, room, stop_of(task)).texts == [expected] * len(task.train)


def test_scores_see_the_shortened_answer(writes):
    attachment = writes("dog\n\nQuestion: the cat")
    task = task_of("dog")
    scores = score(attachment, task, task.train)
    assert isinstance(scores, Scores)
    assert scores.mean == 1.0, scores.predictions


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neo", "mistral"])
@pytest.mark.parametrize("begins", ["", "once the cat and the dog ran to a town by the mat and sang " * 2])
def test_answers_are_those_of_the_library_whoever_is_decoded_beside_them(architecture, begins, monkeypatch):
    """More prompts than are decoded at a time, of many lengths, some of which end early and some at the limit."""
    monkeypatch.setattr(generation, "_MAX_ROWS", 4)
    base, room = tiny_base(architecture), 9
    task = task_of("dog")
    words = ("cat", "dog", "bird", "tree", "mat", "town")
    texts = [f"{begins}{' '.join(words[: 1 + i % 6])} {words[i % 5]}" for i in range(14)]
    examples = [Example((Message("user", text),), "dog") for text in texts]
    encoder = encoder_for(make("base").attach(base, torch.Generator()), task)
    first = [encoder.prompts([example], room)[0].ids for example in examples]

    def library(ids):
        config = GenerationConfig(
            max_new_tokens=room, do_sample=False, eos_token_id=sorted(encoder.ends.stops), pad_token_id=0
        )
        row = torch.tensor([ids])
        every = base.model.generate(row, attention_mask=torch.ones_like(row), generation_config=config)
        return every[0, len(ids) :].tolist()

    third = {library(ids)[3] for ids in first[:3]}  # so that some answers end before the limit
    encoder.ends = replace(encoder.ends, stops=encoder.ends.stops | third)
    found = generate(base, encoder, examples, room)
    assert [prompt.ids for prompt in found.prompts] == first
    expected = [library(ids) for ids in first]
    kept = [encoder.until_stop(answer) for answer in expected]
    assert found.tokens == kept
    assert found.ended == [end < len(answer) for end, answer in zip(kept, expected, strict=True)]
    assert found.texts == [encoder.decode(answer[:end]) for answer, end in zip(expected, kept, strict=True)]
    assert any(found.ended)


def test_answers_that_reach_the_limit_never_ended(writes):
    for text, ended in (("the dog ran", False), ("the dog</s>", True), ("dog\n\nQuestion: the cat", True)):
        attachment, task = writes(text), task_of("dog ran")
        encoder = encoder_for(attachment, task)
        room = len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
        found = generate(attachment.base, encoder, task.train, room, stop_of(task))
        words = encoder.tokenizer(text.partition("\n")[0].removesuffix("</s>"), add_special_tokens=False)["input_ids"]
        assert found.ended == [ended], text
        assert len(words) <= found.tokens[0] <= len(words) + 1, text  # the stop text may be two tokens


def test_lengths_are_part_of_the_scores(writes):
    attachment, task = writes("the dog ran"), task_of("dog ran")
    lengths = score(attachment, task, task.train).lengths
    encoder = encoder_for(attachment, task)
    expected = len(encoder.answers(task.train[0], ["dog ran"])[0]) - 1  # without the end-of-sequence token
    assert lengths.answers == lengths.never_ended == 1 and lengths.mean == lengths.longest > 0
    assert lengths.reference_mean == expected and lengths.limit >= expected
