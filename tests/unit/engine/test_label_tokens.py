"""Labels are tokenized once, to what they are after every prompt."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_layouts import LAYOUTS, model_of
from tunewise.core.errors import DataError
from tunewise.data.task import Example, Message
from tunewise.engine.encoding import Encoder
from tunewise.engine.label_tokens import LabelTokens
from tunewise.testing import tiny_base, tiny_task

LABELS = ("old", "old tree", "old trees", "o", "small")
TASK = replace(tiny_task(), labels=LABELS)
TEMPLATES = {"default": None, "list": "{prompt}\nOne of {labels}:", "prompt at the end": "{prompt}"}
MODELS = {"plain": tiny_base} | {name: partial(model_of, LAYOUTS[name]) for name in ("chatml", "r1")}
texts = st.lists(st.sampled_from(["the", "cat", " ", "\n", "</s>", ".", "o", "ol", "sm", "<|im_end|>"]), max_size=8)


def one_by_one(encoder, example, room):
    """The prompt of an example, and its labels tokenized with it one after the other."""
    labelled = encoder.encode([replace(example, answer=label) for label in encoder.labels])
    return encoder.prompts([example], room)[0], [row.ids[row.prompt :] for row in labelled]


@pytest.mark.parametrize("window", [256, 12])  # the second has no room for prompt and label
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("model", MODELS)
def test_labels_are_what_they_are_with_each_prompt(model, template, window):
    base = MODELS[model]()
    encoder = Encoder(base, replace(TASK, template=TEMPLATES[template]))
    encoder.limit = window

    @settings(max_examples=15, deadline=None)
    @given(st.lists(texts.map("".join), min_size=1, max_size=8))
    def check(questions):
        alike = ["the cat", "a cat", "that cat"]  # after these three, what is kept is no longer compared
        examples = [Example((Message("user", question),), "old") for question in (*alike, *questions)]
        prompts, tries = LabelTokens().prompts(encoder, examples)
        room = max(len(ids) for trie in tries for ids in trie.answers)
        for example, prompt, trie in zip(examples, prompts, tries, strict=True):
            expected_prompt, expected = one_by_one(encoder, example, room)
            assert prompt == expected_prompt
            assert list(map(list, trie.answers)) == expected

    check()


@pytest.fixture
def tokenized(monkeypatch):
    """The examples after which labels are tokenized."""
    examples, answers = [], Encoder.answers

    def counted(self, example, labels):
        examples.append(example)
        return answers(self, example, labels)

    monkeypatch.setattr(Encoder, "answers", counted)
    return examples


def test_labels_are_tokenized_after_a_few_prompts_for_all_encoders_of_a_model(tokenized):
    base = tiny_base()
    rows = (*TASK.train, *TASK.test)
    _, first = base.label_tokens.prompts(Encoder(base, TASK), rows)
    _, second = base.label_tokens.prompts(Encoder(base, TASK, virtual_tokens=3), rows)
    assert tokenized == list(rows[:3])
    assert all(trie is first[-1] for trie in second)


def test_other_labels_and_other_templates_of_a_row_are_tokenized_for_themselves(tokenized):
    base = tiny_base()
    base.label_tokens.prompts(Encoder(base, TASK), TASK.train)
    base.label_tokens.prompts(Encoder(base, tiny_task()), TASK.train)
    rows = [replace(example, template_kwargs='{"thinks": true}') for example in TASK.train]
    base.label_tokens.prompts(Encoder(base, TASK), rows)
    assert len(tokenized) == 9


@pytest.mark.parametrize("odd", [1, 2])
def test_labels_that_differ_after_one_prompt_are_tokenized_after_every_prompt(monkeypatch, odd):
    base, rows = tiny_base(), TASK.train
    encoder, calls = Encoder(base, TASK), []

    def answers(example, labels):
        calls.append(example)
        return [[9 if example is rows[odd] else 8, number] for number, _ in enumerate(labels)]

    monkeypatch.setattr(encoder, "answers", answers)
    _, tries = base.label_tokens.prompts(encoder, rows)
    assert calls == list(rows)
    assert [trie.answers[0][0] for trie in tries] == [9 if index == odd else 8 for index in range(len(rows))]


def test_what_is_kept_does_not_grow_with_the_prompts(tokenized):
    base = tiny_base()
    encoder = Encoder(base, replace(TASK, template="{prompt}"))
    rows = [
        Example((Message("user", f"a {first}{second}"),), "old") for first in "abcdefghij" for second in "klmnopqrst"
    ]
    base.label_tokens.prompts(encoder, rows * 2)
    assert len(tokenized) == len(rows) * 2
    assert len(base.label_tokens._kept) <= 64


def test_a_label_without_tokens_is_refused(monkeypatch):
    base = tiny_base()
    encoder = Encoder(base, TASK)
    monkeypatch.setattr(encoder, "answers", lambda example, labels: [[8]] * (len(labels) - 1) + [[]])
    with pytest.raises(DataError, match='the label "small" has no tokens'):
        base.label_tokens.prompts(encoder, TASK.train)
