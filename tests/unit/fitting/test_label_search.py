"""The likeliest label is found without reading all of them, and is the one that reading all gives."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.engine.token_trie import TokenTrie
from tunewise.engine.trie_reader import TrieReader
from tunewise.fitting import label_search, scoring
from tunewise.fitting.label_search import is_worth_it, search
from tunewise.fitting.scoring import encoder_for, label_nll, label_table, score
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import ARCHITECTURES, alike, attach, example_settings, fit, tiny_base, tiny_task

PACKED = [name for name in ARCHITECTURES if why_not_packed(tiny_base(name)) is None]
SETTINGS = example_settings()
WORDS = ("the cat", "the dog ran", "a dog", "a mat", "town", "trees", "old", "by day and night", "small birds sing")
LABELS = tuple(sorted(f"{first} {second}" for first in WORDS for second in WORDS))


def agrees(found, whole, expected, bias):
    """Whether what a search found is what reading all labels gives."""
    shift = torch.zeros(len(whole[0]), dtype=torch.float64) if bias is None else bias
    for row, complete, label in zip(found, whole, expected, strict=True):
        read = [index for index, nats in enumerate(row) if nats < math.inf]
        assert [row[index] for index in read] == pytest.approx([complete[index] for index in read], abs=1e-5)
        assert label in read
        scores = torch.tensor(complete, dtype=torch.float64) - shift
        assert scores[(torch.tensor(row, dtype=torch.float64) - shift).argmin()] <= scores.min() + 1e-5
    return True


@pytest.mark.parametrize("architecture", PACKED)
def test_a_search_finds_what_reading_all_finds(architecture):
    base = tiny_base(architecture)

    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def check(data):
        head = data.draw(st.sampled_from([[], list(range(5, 45))]))  # the second is a prefix that prompts share
        tokens = st.lists(st.integers(5, 300), min_size=1, max_size=30)
        prompts = [head + rest for rest in data.draw(st.lists(tokens, min_size=1, max_size=4))]
        labels = data.draw(st.lists(st.lists(st.integers(5, 8), min_size=1, max_size=9), min_size=1, max_size=30))
        expected = [data.draw(st.integers(0, len(labels) - 1)) for _ in prompts]
        drawn = st.lists(st.floats(-5, 5), min_size=len(labels), max_size=len(labels))
        bias = data.draw(st.none() | drawn.map(lambda values: torch.tensor(values, dtype=torch.float64)))
        sequences = [TokenSequence(ids, [False] * len(ids), len(ids)) for ids in prompts]
        tries = [TokenTrie.of(labels)] * len(prompts)
        found = search(base, sequences, tries, expected, bias)
        assert agrees(found, label_nll(base, sequences, tries), expected, bias)

    check()


@pytest.mark.parametrize("name", [*all_techniques(), "icl+lora", "lora+prompt_tuning"])
def test_every_technique_can_be_searched(name):
    labels = LABELS[::6]
    base, task = tiny_base("llama"), replace(alike(tiny_task()), labels=labels)
    known = replace(task, train=tuple(replace(row, answer=labels[index]) for index, row in enumerate(task.train)))
    known = replace(known, validation=known.train[:4])
    attachment = attach(make(name, SETTINGS), base, known)
    fit(attachment, task=known)
    prompts, tries = base.label_tokens.prompts(
        encoder_for(attachment, known), [attachment.render(example) for example in task.test]
    )
    expected, bias = list(range(len(prompts))), attachment.label_bias()
    found = search(base, prompts, tries, expected, bias)
    assert agrees(found, label_nll(base, prompts, tries), expected, bias)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text", "gpt2"])
def test_nodes_can_be_read_in_any_portions(architecture):
    base = tiny_base(architecture)
    prompts = [TokenSequence(list(range(5, 5 + size)), [False] * size, size) for size in (4, 40)]
    tries = [TokenTrie.of([[5, 6, 7, 8], [5, 6, 9], [9], [5, 10, 11, 12, 13]])] * 2
    together = TrieReader(base, prompts, tries)
    together.read([(prompt, node) for prompt in (0, 1) for node in range(len(tries[0].ids))])
    one_by_one = TrieReader(base, prompts, tries)
    for node in range(len(tries[0].ids)):
        one_by_one.read([(1, node)])
    for node in range(len(tries[0].ids)):
        one_by_one.read([(0, node)])
    for first, second in zip(together.nats, one_by_one.nats, strict=True):
        assert first.keys() == second.keys()
        assert list(first.values()) == pytest.approx([second[key] for key in first], abs=1e-5)


def counting(monkeypatch):
    """The nodes that are read."""
    nodes, read = [], TrieReader.read

    def counted(self, wanted):
        nodes.extend(wanted)
        read(self, wanted)

    monkeypatch.setattr(TrieReader, "read", counted)
    return nodes


def test_labels_that_cannot_be_the_likeliest_are_not_read_on(monkeypatch):
    base, nodes = tiny_base(), counting(monkeypatch)
    prompt = TokenSequence([5, 6, 7], [False] * 3, 3)
    first = torch.tensor([[5, 6, 7]])
    likely = int(base.model(input_ids=first).logits[0, -1].argmax())
    others = [token for token in range(20, 60) if token != likely]
    labels = [[likely, 9], *([token, 10, 11, 12] for token in others)]
    bias = torch.tensor([50.0, *[0.0] * len(others)], dtype=torch.float64)  # more than any label is likelier
    found = search(base, [prompt], [TokenTrie.of(labels)], [0], bias)[0]
    assert len(nodes) == 1 and len(set(nodes)) == 1
    assert found[0] < math.inf and found[1:] == [math.inf] * len(others)


def test_no_node_is_read_twice(monkeypatch):
    base, nodes = tiny_base(), counting(monkeypatch)
    prompts = [TokenSequence([5, 6, size], [False] * 3, 3) for size in range(4)]
    labels = [[first, second, third, 9] for first in (5, 6) for second in (7, 8) for third in (9, 10)]
    search(base, prompts, [TokenTrie.of(labels)] * 4, [0, 1, 2, 3], None)
    assert len(nodes) == len(set(nodes)) <= 4 * 14


def test_a_model_that_gives_no_numbers_is_right_no_more_often_than_when_all_labels_are_read(monkeypatch):
    base, task = tiny_base(), replace(tiny_task(), labels=LABELS)
    examples = [replace(example, answer=LABELS[5]) for example in task.test[:2]]
    with torch.no_grad():
        base.anatomy.final_norm.weight.fill_(math.nan)
    attachment = attach(make("base"), base)
    searched = score(attachment, task, examples)
    monkeypatch.setattr(label_search, "_MIN_NODES", 10**6)
    assert searched.predictions == score(attachment, task, examples).predictions
    assert searched.mean == 0.0


def test_scores_are_those_of_reading_all_labels(monkeypatch):
    base, task = tiny_base(), replace(tiny_task(), labels=LABELS)
    examples = [
        replace(row, answer=LABELS[7 * index % len(LABELS)]) for index, row in enumerate((*task.test, *task.train))
    ]
    attachment, nodes = attach(make("base"), base), counting(monkeypatch)
    searched = score(attachment, task, examples)
    assert len(nodes) > 0
    monkeypatch.setattr(label_search, "_MIN_NODES", 10**6)
    plain = score(attachment, task, examples)
    assert searched.predictions == plain.predictions and searched.per_example == plain.per_example
    assert searched.nll == pytest.approx(plain.nll, abs=1e-6) and searched.confusion == plain.confusion
    assert searched.others == plain.others


def test_tables_for_calibration_are_always_whole(monkeypatch):
    base, task, nodes = tiny_base(), replace(tiny_task(), labels=LABELS), counting(monkeypatch)
    table = label_table(attach(make("base"), base), task, task.test)
    assert not nodes and all(nats < math.inf for row in table.nll for nats in row)


def test_few_labels_are_read_in_a_single_pass():
    few, many = (TokenTrie.of([[token, 9] for token in range(5, 5 + count)]) for count in (20, 80))
    assert is_worth_it(tiny_base(), [few, many]) and not is_worth_it(tiny_base(), [few])
    assert not is_worth_it(tiny_base("gpt_neo"), [many]) and not is_worth_it(tiny_base(), [])


@pytest.mark.parametrize("architecture", ["llama", "gpt_neo"])
def test_a_table_does_not_depend_on_the_size_of_a_pass(architecture, monkeypatch):
    """Labels that exceed a pass are divided; the second architecture cannot be packed."""
    base, task = tiny_base(architecture), replace(tiny_task(), labels=LABELS)
    attachment = attach(make("base"), base)
    whole = label_table(attachment, task, task.train)
    passes, label_nll = [], scoring.label_nll

    def counted(base, prompts, tries):
        passes.append(sum(len(prompt.ids) + len(trie.ids) for prompt, trie in zip(prompts, tries, strict=True)))
        return label_nll(base, prompts, tries)

    monkeypatch.setattr(scoring, "label_nll", counted)
    monkeypatch.setattr(scoring, "PASS_TOKENS", 100)
    small = label_table(attachment, task, task.train)
    assert small.tokens == whole.tokens
    for row, expected in zip(small.nll, whole.nll, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert architecture == "gpt_neo" or (len(passes) > len(task.train) and max(passes) < 200)
