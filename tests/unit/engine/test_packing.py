"""Examples are rendered, labelled, truncated and packed as they should be."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.data.task import Example, Message, Task
from tunewise.engine.encoding import Encoder, TokenSequence, fit_window
from tunewise.engine.forward import layout, loss_sum, nll, why_not_packed
from tunewise.engine.packing import (
    by_shared_prefix,
    by_tokens,
    in_passes,
    packed_batch,
    padded_batch,
    shared_prefix,
    shared_prefixes,
)
from tunewise.engine.token_trie import TokenTrie
from tunewise.fitting.row_order import order
from tunewise.testing import alike, tiny_base, tiny_task

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
    assert sequence.ids[0] == encoder.tokenizer.bos_token_id and not sequence.truncated


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


@pytest.mark.figure("S7")
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


LIST = "\n\nAnswer with one of: good, bad."


@pytest.mark.parametrize(
    ("make", "label_list", "earlier", "last"),
    [
        (chat_base, None, LIST, LIST),  # as adaptations were trained before there was a choice
        (chat_base, True, "", LIST),
        (chat_base, False, "", ""),
        (tiny_base, None, "\nLabel:", "\nLabel:"),
        (tiny_base, True, "\nLabel:", LIST + "\nLabel:"),
        (tiny_base, False, "\nLabel:", "\nLabel:"),
    ],
)
def test_the_list_of_labels_is_shown_as_chosen(make, label_list, earlier, last):
    task = replace(style("classification", "classification", ("good", "bad")), label_list=label_list)
    turns = (Message("user", "one"), Message("assistant", "good"), Message("user", "two"))
    prompt, _ = Encoder(make(), task).text(Example(turns, "bad"))
    if make is chat_base:
        expected = (
            f"<|im_start|>user\none{earlier}<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n"
            f"<|im_start|>user\ntwo{last}<|im_end|>\n<|im_start|>assistant\n"
        )
    else:
        expected = f"one{earlier} good\n\ntwo{last}"
    assert prompt == expected


@pytest.mark.parametrize("make", [tiny_base, chat_base])
def test_sizes_are_those_of_the_untruncated_example(make):
    encoder, examples = Encoder(make(), tiny_task()), [*tiny_task().train]
    encoder.limit = 1 << 20
    whole = [(sequence.prompt, len(sequence.ids) - sequence.prompt) for sequence in encoder.encode(examples)]
    encoder.limit = 8
    assert encoder.sizes(examples) == whole


@given(st.integers(0, 400), st.integers(0, 400), st.integers(8, 300))
def test_fit_window(prompt, answer, limit):
    prompt_size, answer_size = fit_window(prompt, answer, limit)
    assert prompt_size <= prompt and answer_size <= answer and prompt_size + answer_size <= limit
    if prompt + answer <= limit:
        assert (prompt_size, answer_size) == (prompt, answer)
    else:
        assert prompt_size + answer_size == limit or prompt_size == prompt
        assert answer_size == answer or prompt_size <= max(limit // 2, 0)


def test_cut_examples_keep_start_answer_and_are_marked():
    base = tiny_base()
    base.max_length = 40
    encoder = Encoder(base, style())
    long = encoder.encode([Example((Message("user", "q " * 200 + "end"),), "answer")])[0]
    assert long.truncated and len(long.ids) == 40 and long.ids[0] == base.tokenizer.bos_token_id
    assert learnt(encoder, long) == "answer</s>" and "end\n" in base.tokenizer.decode(long.ids)
    prompts = encoder.prompts([Example((Message("user", "q " * 200),), "")], 10)
    assert prompts[0].truncated and len(prompts[0].ids) == 30


def test_virtual_tokens_come_first_and_count():
    base = tiny_base()
    base.max_length = 40
    sequence = Encoder(base, tiny_task(), 7).encode([Example((Message("user", "q " * 200),), "old")])[0]
    assert sequence.ids[:7] == list(range(320, 327)) and len(sequence.ids) == 40
    assert not any(sequence.labelled[:7])


sequences = st.lists(
    st.lists(st.tuples(st.integers(0, 319), st.booleans()), min_size=1, max_size=30).map(
        lambda pairs: TokenSequence([i for i, _ in pairs], [on for _, on in pairs], 0)
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
    prompts = [TokenSequence(list(range(5, 5 + n)), [False] * n, n) for n in (3, 21)]
    answers = [[[7], [8, 9, 10], [1, 2]], [[30, 31], [4]]]
    batch = packed_batch(prompts, base.device, [TokenTrie.of(row) for row in answers])
    values = nll(base, batch)
    for index, (prompt, row) in enumerate(zip(prompts, answers, strict=True)):
        for number, answer in enumerate(row):
            whole = TokenSequence(prompt.ids + answer, [False] * len(prompt.ids) + [True] * len(answer), 0)
            alone = nll(base, padded_batch([whole], base.device)).sum()
            ours = values[(batch.owner == index) & (batch.branch == number)].sum()
            assert abs(float(ours - alone)) < 1e-6


def shared_rows(size, tails):
    """Sequences that begin with the same `size` tokens, and two that do not, one of them with a label in its head."""
    head = [place * 7 % 290 + 3 for place in range(size)]
    rows = [
        TokenSequence([*head, 300 + n, 9, 8 + n], [False] * (size + 1) + [True] * 2, size + 1) for n in range(tails)
    ]
    late = TokenSequence([*head, 5, 6], [False] * 20 + [True] * (size - 18), 20)
    return [*rows, TokenSequence([11, 12, 13], [False, True, True], 1), late]


@pytest.mark.parametrize("size", [24, 240])  # one masked call; several calls that are merged
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "gpt_neox", "qwen3", "opt"])
def test_what_sequences_begin_with_is_read_once(architecture, size):
    base = tiny_base(architecture, torch.float64)
    rows = shared_rows(size, 9)
    shared, plain = packed_batch(rows, base.device), packed_batch(rows, base.device, share=False)
    assert shared.ids.shape[1] < plain.ids.shape[1] - size and shared.tokens == plain.tokens
    assert shared.targets.tolist() == plain.targets.tolist() and shared.owner.tolist() == plain.owner.tolist()
    assert torch.allclose(nll(base, shared), nll(base, plain), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "architecture, dtype, tolerance",
    [
        ("gpt2", torch.float64, 1e-9),
        ("gpt_neox", torch.float64, 1e-9),
        ("llama", torch.float64, 1e-7),  # its norms compute in float32
        ("llama", torch.float32, 1e-5),
        ("qwen3", torch.float32, 1e-5),
    ],
)
def test_gradients_through_a_shared_beginning_are_the_plain_ones(architecture, dtype, tolerance):
    base = tiny_base(architecture, dtype)
    rows = shared_rows(240, 9)
    grads = []
    for share in (True, False):
        base.model.requires_grad_(True).zero_grad()
        batch = packed_batch(rows, base.device, share=share)
        with layout(base, batch):
            loss_sum(base, batch).backward()
        grads.append(torch.cat([p.grad.flatten() for p in base.model.parameters() if p.grad is not None]))
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < tolerance


def test_answers_after_prompts_that_begin_alike():
    """Two levels: what prompts share, and what their answers share."""
    base = tiny_base("llama", torch.float64)
    prompts = [TokenSequence(row.ids, [False] * len(row.ids), len(row.ids)) for row in shared_rows(240, 9)]
    answers = [TokenTrie.of([[7], [8, 9, 10], [1, 2]])] * len(prompts)
    together = nll(base, packed_batch(prompts, base.device, answers))
    alone = [packed_batch([prompt], base.device, answers[:1]) for prompt in prompts]
    assert torch.allclose(together, torch.cat([nll(base, batch) for batch in alone]), atol=1e-9, rtol=0)


@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=60), min_size=1, max_size=8))
def test_beginnings_hold_every_row_once_and_save_tokens(rows):
    most = [len(row) - 1 for row in rows]
    groups = shared_prefixes(rows, most)
    assert sorted(index for _, members in groups for index in members) == list(range(len(rows)))
    for shared, members in groups:
        assert (shared == 0) == (len(members) == 1)
        assert all(rows[index][:shared] == rows[members[0]][:shared] and shared <= most[index] for index in members)


def test_groups_count_a_beginning_once():
    rows = shared_rows(100, 4)[:4]
    assert len(by_shared_prefix(rows, 115)) == 1 and len(by_tokens(rows, 115)) == 4


def test_an_architecture_that_cannot_be_packed_says_so():
    assert "GPTNeo" in (why_not_packed(tiny_base("gpt_neo")) or "")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_groups_by_tokens(sizes, budget):
    rows = [TokenSequence([0] * size, [False] * size, size) for size in sizes]
    groups = by_tokens(rows, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    assert all(len(group) == 1 or sum(sizes[i] for i in group) <= budget for group in groups)


@given(st.integers(1, 20), st.integers(0, 60), st.integers(1, 30), st.integers(0, 3))
def test_order_is_one_endless_row_of_epochs(examples, start, count, seed):
    whole = order(examples, seed, 0, start + count)
    assert order(examples, seed, start, count) == whole[start:]
    for epoch in range(len(whole) // examples):
        assert sorted(whole[epoch * examples : (epoch + 1) * examples]) == list(range(examples))


def test_prompts_of_one_template_share_it():
    task, base = alike(tiny_task()), tiny_base("llama")
    prompts = Encoder(base, task).prompts(task.test, 4)
    assert shared_prefix(prompts) >= 16 and shared_prefix(prompts[:1]) == 0
    assert shared_prefix(Encoder(base, tiny_task()).prompts(tiny_task().test, 4)) == 0


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(20, 1000))
def test_passes_hold_every_row_once_and_are_about_equal(sizes, budget):
    rows = [TokenSequence([index + 3] * size, [True] * size, 0) for index, size in enumerate(sizes)]
    groups = in_passes(rows, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    tokens = [sum(sizes[index] for index in group) for group in groups]
    assert len(groups) <= max(round(sum(sizes) / budget), 1)
    assert max(tokens) <= sum(sizes) / max(round(sum(sizes) / budget), 1) + max(sizes)
    if sum(sizes) < 1.5 * budget:
        assert groups == [list(range(len(rows)))]


def test_what_all_begin_with_is_not_read_again_and_again():
    template = list(range(3, 103))
    rows = [TokenSequence([*template, index + 200, 1], [False] * 101 + [True], 100) for index in range(32)]
    assert len(in_passes(rows, 1000)) == 2  # twenty times a hundred tokens
    assert len(in_passes([TokenSequence(row.ids[50:], row.labelled[50:], 50) for row in rows], 1000)) == 2
    assert len(in_passes([TokenSequence(row.ids[90:], row.labelled[90:], 10) for row in rows], 100)) == 4
