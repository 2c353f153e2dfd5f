"""What icl promises beyond the contract: counts, identities, traps."""

from dataclasses import replace

import pytest

from tunewise.adaptation.artifact import load, save
from tunewise.contract.study import Allowance
from tunewise.core.errors import TechniqueError
from tunewise.core.seeds import generator
from tunewise.data.task import Example, Message, Task
from tunewise.engine import forward
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.packing import PASS_TOKENS, by_shared_prefix, row_tokens
from tunewise.fitting import scoring
from tunewise.fitting.scoring import study
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
    tried = {int(k): value for k, value in again.facts["validation loss by examples"].items()}
    assert {k: tried[k] for k in (1, 2)} == pytest.approx({k: losses[k] for k in (1, 2)})
    assert again.k <= min(tried, key=lambda k: tried[k])


def test_icl_says_when_nothing_fits():
    base = tiny_base()
    base.max_length = 40
    with pytest.raises(TechniqueError, match="no worked example fits"):
        put("icl", base)
    with pytest.raises(TechniqueError, match="plain text"):
        task = tiny_task()
        attach(make("icl"), tiny_base(), replace(task, train=tuple(Example((), "text") for _ in range(5))))


def studied(allowed, name="icl", task=None, **settings):
    """Prepare a technique on the tiny model within so many tokens; return the attachment and what was spent."""
    task = task or tiny_task()
    base = tiny_base()
    attachment = make(name, {name: settings}).attach(base, generator(0, "attach"))
    allowance = Allowance(allowed)
    attachment.prepare(study(attachment, task, task.validation, 0, allowance=allowance))
    return attachment, allowance.spent


CHOICES = [
    {},
    {"selection": "gain"},
    {"selection": "random", "order": "validation"},
    {"order": "validation", "instructions": ["Say what it is.", "Name it."]},
]


@pytest.mark.parametrize("settings", CHOICES)
def test_choosing_never_reads_more_than_the_allowance_and_says_what_it_left(settings):
    _, everything = studied(10**9, **settings)
    for allowed in (0, 500, everything // 4, everything // 2, everything - 1):
        attachment, spent = studied(allowed, **settings)
        findings = attachment.findings(lambda: 0.0)
        assert spent <= allowed < everything and attachment.k >= 1
        assert "left untried" in findings
        assert not spent or findings["tokens read to choose"] == f"{spent:,} of {allowed:,}"


@pytest.mark.parametrize("settings", CHOICES)
def test_tokens_counted_are_tokens_computed(settings, monkeypatch):
    computed = []
    packed, padded = scoring.packed_batch, forward.packed_batch

    def counting(make_batch):
        def counted(*arguments, **options):
            batch = make_batch(*arguments, **options)
            computed.append(batch.ids.numel())
            return batch

        return counted

    monkeypatch.setattr(scoring, "packed_batch", counting(packed))
    monkeypatch.setattr(forward, "packed_batch", counting(padded))
    forward.why_not_packed(tiny_base())
    attachment, _ = studied(0, k=1, calibrate="none")  # the base's packing has been tried when counting starts
    task, base = tiny_task(), attachment.base
    attachment = make("icl", {"icl": settings}).attach(base, generator(0, "attach"))
    allowance = Allowance(10**9)
    forward.why_not_packed(base)
    computed.clear()
    attachment.prepare(study(attachment, task, task.validation, 0, allowance=allowance))
    assert allowance.spent == sum(computed) > 0


def test_the_same_allowance_gives_the_same_choice():
    first, second = (studied(20_000)[0] for _ in range(2))
    assert first.stored_rows() == second.stored_rows() and first.facts == second.facts


def test_a_plan_takes_what_the_allowance_lets_be_tried():
    task, base = tiny_task(), tiny_base()
    attachment = make("icl").attach(base, generator(0, "attach"))
    chosen = []
    for allowed in (0, 5_000, 20_000, 10**9):
        attachment.prepare_shapes(study(attachment, task, task.validation, 0, allowance=Allowance(allowed)))
        chosen.append(attachment.k)
    assert chosen == sorted(chosen) and chosen[0] == 1 < chosen[-1]
    assert studied(10**9)[0].k <= chosen[-1]


def test_what_was_asked_for_is_computed_and_counted_however_small_the_allowance():
    attachment, spent = studied(0, k=1, calibrate="contextual")
    assert attachment.bias is not None and spent > 0


def test_examples_that_all_questions_share_are_read_once():
    """Also where they fill most of a scoring pass."""
    shared = list(range(3000))
    questions = [TokenSequence([*shared, *range(n, n + 60)], [False] * 3060, 3060) for n in range(32)]
    groups = by_shared_prefix(questions, PASS_TOKENS)
    assert sum(row_tokens([questions[i] for i in group]) for group in groups) == 3000 + 32 * 60


# A template that takes one system message, at the start, and wants user and assistant in turn.
STRICT = """
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages -%}
{%- if messages[0]['role'] == 'system' %}{{ '[' + messages[0]['content'] + ']' }}{% endif -%}
{%- for turn in turns -%}
{%- if turn['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{ raise_exception('roles must alternate user/assistant') }}
{%- endif -%}
{{ turn['role'] + ': ' + turn['content'] + (eos_token if turn['role'] == 'assistant' else ' ') }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif -%}
"""


@pytest.fixture
def chat_base():
    base = tiny_base()
    base.tokenizer.chat_template = STRICT
    yield base
    base.tokenizer.chat_template = None


def conversations(count=16):
    """Return a task of conversations: a system text each, and an earlier question and answer in half of them."""

    def example(index):
        earlier = (Message("user", f"the cat ran {index}"), Message("assistant", "sat", labelled=True))
        system = Message("system", "the dog" if index % 3 else "the bird")
        turns = (*(earlier if index % 2 else ()), Message("user", f"cat {index}"))
        return Example((system, *turns), "a mat")

    rows = tuple(example(index) for index in range(count))
    return Task("talk", "generation", "messages", rows[:-4], rows[-4:-2], rows[-2:], (), "rouge_l")


def test_a_chat_model_gets_one_system_message_and_turns_that_alternate(chat_base):
    task = conversations()
    attachment = attach(make("icl", {"icl": {"k": 2, "instruction": "small birds"}}), chat_base, task)
    encoder = encoder_for(attachment, task)
    for example in (*task.train, *task.test):
        rendered = attachment.render(example)
        roles = [message.role for message in rendered.messages]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2 - 1), "user"]
        assert rendered.messages[0].content == f"small birds\n\n{example.messages[0].content}"
        sequence = encoder.encode([rendered])[0]
        assert not sequence.truncated and len(sequence.ids) <= encoder.limit
    assert attachment.facts["examples shown"] == 2.0


def test_examples_in_a_conversation_are_measured_to_the_token(chat_base):
    task = conversations()
    attachment = attach(make("icl", {"icl": {"k": 3, "selection": "random"}}), chat_base, task)
    encoder, example = attachment.encoder, task.test[0]
    alone, shown = (encoder.sizes([e])[0][0] for e in (example, attachment.render(example)))
    chosen = attachment._chosen(example)
    assert len(chosen) == 3 and shown == alone + sum(attachment.sizes[index] for index in chosen)


def test_examples_with_tools_are_not_shown_to_a_chat_model_and_counted(chat_base):
    chat_base.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
    task = conversations()
    calls = replace(task.train[0], answer_fields='{"content": "", "tool_calls": []}')
    result = replace(task.train[1], messages=(*task.train[1].messages, Message("tool", "4")))
    attachment = attach(make("icl"), chat_base, replace(task, train=(calls, result, *task.train[2:])))
    assert len(attachment.pool) == len(task.train) - 2 and not {calls, result} & set(attachment.pool)
    assert attachment.facts["training examples that cannot be shown as turns"] == 2.0
    only_tools = replace(task, train=(calls, result))
    assert "call tools" in make("icl").lacks(chat_base, only_tools) and not make("icl").lacks(chat_base, task)
    with pytest.raises(TechniqueError, match="call tools"):
        attach(make("icl"), chat_base, only_tools)


def test_what_a_question_has_besides_its_turns_is_kept(chat_base):
    more = {"answer_fields": '{"content": "a mat"}', "tools": "[]", "template_kwargs": '{"thinking": false}'}
    question = replace(conversations().test[0], references=("a mat", "mats"), passage="one.md", **more)
    for name, settings in (("icl", {}), ("rag", {"floor": 0.0})):
        attachment = attach(make(name, {name: {"k": 1, **settings}}), chat_base, conversations())
        rendered = attachment.render(question)
        assert rendered.messages != question.messages and replace(rendered, messages=question.messages) == question


def test_examples_in_a_conversation_come_back_as_they_were(chat_base, tmp_path):
    task = conversations()
    task = replace(task, train=tuple(replace(example, tools="[]") for example in task.train))
    attachment = attach(make("icl", {"icl": {"k": 2, "instruction": "the town"}}), chat_base, task)
    rendered = [attachment.render(example) for example in task.test]
    save(attachment, task, tmp_path / "adaptation")
    pool = attachment.pool
    chat_base.release()
    loaded = load(tmp_path / "adaptation", base=chat_base).attachment
    assert [loaded.render(example) for example in task.test] == rendered and loaded.pool == pool


def test_a_plain_model_keeps_its_layout():
    """Each example with its own system text, as whole rows that follow one another."""
    task = conversations()
    attachment = attach(make("icl", {"icl": {"k": 1, "instruction": "the town"}}), tiny_base(), task)
    example = task.test[0]
    (shown,) = attachment._chosen(example)
    demonstration = attachment.pool[shown]
    assert attachment.render(example).messages == (
        Message("system", "the town"),
        *(replace(message, labelled=False) for message in demonstration.messages),
        Message("assistant", demonstration.answer),
        *example.messages,
    )
