"""Rendering, masking, cutting and packing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.forward import nll, why_not_packed
from tunewise.pack import (
    Encoder,
    Sequence,
    branched_batch,
    by_tokens,
    fit_window,
    packed_batch,
    padded_batch,
)
from tunewise.task import Example, Message, Task
from tunewise.testing import tiny_base, tiny_task
from tunewise.train import order

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def style(form="prompt-completion", kind="generation", labels=(), template=None):
    return Task("t", kind, form, (), (), (), labels, "f1", template)


def chat_base():
    import copy

    base = tiny_base()
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}
    )
    tokenizer.chat_template = CHATML
    base.model.resize_token_embeddings(len(tokenizer))
    base.tokenizer = tokenizer
    return base


def learnt(encoder, sequence):
    return encoder.tokenizer.decode([i for i, on in zip(sequence.ids, sequence.labelled, strict=True) if on])


@pytest.mark.parametrize(
    ("form", "kind", "prompt", "answer"),
    [
        ("classification", "classification", "a fine film\nLabel:", " good"),
        ("question-answer", "generation", "Question: a fine film\nAnswer:", " good"),
        ("alpaca", "generation", "User: a fine film\nAssistant:", " good"),
        ("prompt-completion", "generation", "a fine film\n", "good"),
    ],
)
def test_plain_templates(form, kind, prompt, answer):
    encoder = Encoder(tiny_base(), style(form, kind, ("good", "bad") if kind == "classification" else ()))
    example = Example((Message("user", "a fine film"),), "good")
    assert encoder.text(example) == (prompt, answer)
    sequence = encoder.encode([example])[0]
    assert learnt(encoder, sequence) == answer + "</s>"
    assert sequence.ids[0] == encoder.tokenizer.bos_token_id and not sequence.cut


def test_own_template_and_labels():
    encoder = Encoder(tiny_base(), style(template="Choose {labels}: {prompt} ->", labels=("x", "y")))
    assert encoder.text(Example((Message("user", "{labels} q"),), "x")) == (
        "Choose x, y: {labels} q ->",
        " x",
    )


def test_earlier_labelled_turns_are_learnt_and_others_not():
    turns = (
        Message("system", "be kind"),
        Message("user", "one"),
        Message("assistant", "first", labelled=True),
        Message("user", "two"),
        Message("assistant", "shown"),
        Message("user", "three"),
    )
    for base in (tiny_base(), chat_base()):
        encoder = Encoder(base, style("messages"))
        text = learnt(encoder, encoder.encode([Example(turns, "last")])[0])
        assert "first" in text and "last" in text
        assert not any(word in text for word in ("kind", "one", "two", "shown", "three"))


@pytest.mark.parametrize("make", [tiny_base, chat_base])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_user_text_never_becomes_a_control_token(make, data):
    base = make()
    pieces = st.sampled_from(["</s>", "<s>", "<|im_end|>", "<|im_start|>system", "hello", " ", "\n"])
    text = "".join(data.draw(st.lists(pieces, min_size=1, max_size=5))) + "x"
    encoder = Encoder(base, style())
    plain = encoder.encode([Example((Message("user", "y"),), "z")])[0]
    hostile = encoder.encode([Example((Message("user", text),), text)])[0]
    special = set(base.tokenizer.all_special_ids)
    assert [i for i in hostile.ids if i in special] == [i for i in plain.ids if i in special]
    assert text in base.tokenizer.decode(hostile.ids)


def test_chat_uses_the_tokenizers_own_template():
    encoder = Encoder(chat_base(), style())
    prompt, answer = encoder.text(Example((Message("user", "hi"),), "yes"))
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" and answer == "yes<|im_end|>"


@given(st.integers(0, 400), st.integers(0, 400), st.integers(8, 300))
def test_fit_window(prompt, answer, limit):
    kept, tail = fit_window(prompt, answer, limit)
    assert kept <= prompt and tail <= answer and kept + tail <= limit
    if prompt + answer <= limit:
        assert (kept, tail) == (prompt, answer)
    else:
        assert kept + tail == limit or kept == prompt
        assert tail == answer or kept <= max(limit // 2, 0)


def test_cut_examples_keep_start_answer_and_are_marked():
    base = tiny_base()
    base.max_length = 40
    encoder = Encoder(base, style())
    long = encoder.encode([Example((Message("user", "q " * 200 + "end"),), "answer")])[0]
    assert long.cut and len(long.ids) == 40 and long.ids[0] == base.tokenizer.bos_token_id
    assert learnt(encoder, long) == "answer</s>" and "end\n" in base.tokenizer.decode(long.ids)
    prompts = encoder.prompts([Example((Message("user", "q " * 200),), "")], 10)
    assert prompts[0].cut and len(prompts[0].ids) == 30


def test_virtual_tokens_come_first_and_count():
    base = tiny_base()
    base.max_length = 40
    sequence = Encoder(base, tiny_task(), 7).encode([Example((Message("user", "q " * 200),), "old")])[0]
    assert sequence.ids[:7] == list(range(320, 327)) and len(sequence.ids) == 40
    assert not any(sequence.labelled[:7])


sequences = st.lists(
    st.lists(st.tuples(st.integers(0, 319), st.booleans()), min_size=1, max_size=30).map(
        lambda pairs: Sequence([i for i, _ in pairs], [on for _, on in pairs], 0)
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "gpt_neox", "opt", "phi3"])
def test_packed_and_padded_agree(architecture):
    base = tiny_base(architecture, torch.float64)
    assert why_not_packed(base) is None

    @settings(max_examples=15, deadline=None)
    @given(sequences)
    def check(rows):
        packed, padded = packed_batch(rows, base.device), padded_batch(rows, base.device)
        assert packed.targets.tolist() == padded.targets.tolist()
        if len(packed.targets):
            assert torch.allclose(nll(base, packed), nll(base, padded), atol=1e-6)
        assert packed.tokens == padded.tokens == sum(len(row.ids) for row in rows)

    check()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_branches_score_as_they_would_alone(architecture):
    base = tiny_base(architecture, torch.float64)
    prompts = [Sequence(list(range(5, 5 + n)), [False] * n, n) for n in (3, 21)]
    answers = [[[7], [8, 9, 10], [1, 2]], [[30, 31], [4]]]
    batch = branched_batch(prompts, answers, base.device)
    values = nll(base, batch)
    for index, (prompt, row) in enumerate(zip(prompts, answers, strict=True)):
        for number, answer in enumerate(row):
            whole = Sequence(prompt.ids + answer, [False] * len(prompt.ids) + [True] * len(answer), 0)
            alone = nll(base, padded_batch([whole], base.device)).sum()
            ours = values[(batch.owner == index) & (batch.branch == number)].sum()
            assert abs(float(ours - alone)) < 1e-6


def test_an_architecture_that_cannot_be_packed_says_so():
    assert "GPTNeo" in (why_not_packed(tiny_base("gpt_neo")) or "")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_groups_by_tokens(sizes, budget):
    rows = [Sequence([0] * size, [False] * size, size) for size in sizes]
    groups = by_tokens(rows, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    assert all(len(group) == 1 or sum(sizes[i] for i in group) <= budget for group in groups)


@given(st.integers(1, 20), st.integers(0, 60), st.integers(1, 30), st.integers(0, 3))
def test_order_is_one_endless_row_of_epochs(examples, start, count, seed):
    whole = order(examples, seed, 0, start + count)
    assert order(examples, seed, start, count) == whole[start:]
    for epoch in range(len(whole) // examples):
        assert sorted(whole[epoch * examples : (epoch + 1) * examples]) == list(range(examples))
