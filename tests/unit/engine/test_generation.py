"""Where a generated answer ends."""

import pytest
import torch

from tunewise.data.task import Example, Message, Task
from tunewise.engine.generation import _StopAtText, generate, stop_of
from tunewise.engine.model import Base
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
        ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]

        def generate(self, *, input_ids, **_):
            return torch.cat([input_ids, torch.tensor([ids] * len(input_ids))], dim=1)

        monkeypatch.setattr(Base, "generate", generate)
        return make("base").attach(base, torch.Generator())

    return use


def test_a_blank_line_ends_an_answer_where_no_training_answer_has_one(writes):
    assert stop_of(task_of("dog", "a\nb")) == "\n\n"
    assert stop_of(task_of("dog", "a\n\nb")) is None
    text = "the dog ran\n\nQuestion: the cat"
    attachment = writes(text)
    for task, expected in ((task_of("dog"), "the dog ran"), (task_of("a\n\nb"), text)):
        encoder = encoder_for(attachment, task)
        assert generate(attachment.base, encoder, task.train, 8, stop_of(task)).texts == [expected] * len(task.train)


def test_scores_see_the_shortened_answer(writes):
    attachment = writes("dog\n\nQuestion: the cat")
    task = task_of("dog")
    scores = score(attachment, task, task.train)
    assert isinstance(scores, Scores)
    assert scores.mean == 1.0, scores.predictions


def test_generation_stops_row_by_row():
    base = tiny_base("llama")
    encoder = encoder_for(make("base").attach(base, torch.Generator()), task_of("dog"))
    rows = [encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the cat dog", "the cat\n\n")]
    width = min(map(len, rows))
    ids = torch.tensor([row[-width:] for row in rows])
    assert _StopAtText(encoder, "\n\n", 0)(ids, None).tolist() == [False, True]
    assert _StopAtText(encoder, "\n\n", width)(ids, None).tolist() == [False, False]  # all of it is prompt


def test_answers_that_reach_the_limit_never_ended(writes):
    for text, ended in (("the dog ran", False), ("the dog</s>", True), ("dog\n\nQuestion: the cat", True)):
        attachment, task = writes(text), task_of("dog ran")
        encoder = encoder_for(attachment, task)
        found = generate(attachment.base, encoder, task.train, 8, stop_of(task))
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
