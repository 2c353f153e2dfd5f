"""What icl promises beyond the contract: counts, identities, traps."""

import pytest

from tunewise.core.errors import TechniqueError
from tunewise.data.task import Example, Message
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, loss, tiny_base, tiny_task


def put(name, base, **settings):
    return attach(make(name, {name: settings}), base)


def test_icl_never_shows_the_question_cuts_nothing_and_keeps_to_the_window():
    base, task = tiny_base(), tiny_task()
    attachment = attach(make("icl", {"icl": {"k": 16}}), base, task)
    encoder = encoder_for(attachment, task)
    for example in (*task.train, *task.test):
        rendered = attachment.render(example)
        shown = [m.content for m in rendered.messages[:-1] if m.role == "user"]
        assert shown and example.prompt not in shown
        assert set(shown) <= {other.prompt for other in task.train}
        sequence = encoder.encode([rendered])[0]
        assert not sequence.truncated and len(sequence.ids) <= encoder.limit


def test_icl_puts_the_nearest_last():
    task = tiny_task()
    attachment = attach(make("icl", {"icl": {"k": 3}}), tiny_base(), task)
    question = Example((Message("user", "the bird sat on a mat by day 99"),), "small")
    assert "bird" in attachment.render(question).messages[-3].content


def test_icl_chooses_k_on_validation():
    task = tiny_task()
    attachment = attach(make("icl"), tiny_base(), task)
    losses = {}
    for k in (1, 2, 4, 8):
        attachment.k = k
        losses[k] = loss(attachment, task, task.validation)
    again = attach(make("icl"), attachment.base, task)
    assert again.k == min((k for k in losses), key=lambda k: losses[k]) or again.k > 8


def test_icl_says_when_nothing_fits():
    base = tiny_base()
    base.max_length = 40
    with pytest.raises(TechniqueError, match="no worked example fits"):
        put("icl", base)
    with pytest.raises(TechniqueError, match="plain text"):
        from dataclasses import replace

        task = tiny_task()
        attach(make("icl"), tiny_base(), replace(task, train=tuple(Example((), "text") for _ in range(5))))
