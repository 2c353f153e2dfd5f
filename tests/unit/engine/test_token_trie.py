"""Answers share what they begin with, and score as each does alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import nll, why_not_packed
from tunewise.engine.packing import packed_batch, padded_batch, row_tokens
from tunewise.engine.segments import Segment
from tunewise.engine.token_trie import PROMPT, TokenTrie
from tunewise.fitting.scoring import label_nll
from tunewise.testing import ARCHITECTURES, tiny_base

# Few different tokens, so that answers begin alike, equal one another and are the beginnings of others.
answers_of_one_prompt = st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=6), min_size=1, max_size=12)
prompts = st.lists(st.lists(st.integers(5, 300), min_size=1, max_size=30), min_size=1, max_size=4)


def flattened(segments, depth=0):
    """The depth of each token of some trees, in the order of a row."""
    for segment in segments:
        yield from range(depth, depth + segment.prefix)
        yield from flattened(segment.branches, depth + segment.prefix)


@given(answers_of_one_prompt)
def test_every_beginning_is_one_node_and_no_last_token_is_read(answers):
    trie = TokenTrie.of(answers)
    beginnings = {tuple(answer[:size]) for answer in answers for size in range(1, len(answer))}
    assert len(trie.ids) == len(beginnings)
    for answer, sources in zip(answers, trie.sources, strict=True):
        assert sources[0] == PROMPT and len(sources) == len(answer)
        assert [trie.ids[node] for node in sources[1:]] == answer[:-1]
        assert [trie.depths[node] for node in sources[1:]] == list(range(len(answer) - 1))
    assert list(flattened(trie.segments)) == trie.depths


@given(answers_of_one_prompt, st.integers(1, 10))
def test_parts_hold_all_answers_in_their_order(answers, most):
    trie = TokenTrie.of(answers)
    parts = trie.parts(most)
    assert [answer for part in parts for answer in part.answers] == list(map(tuple, answers))
    assert len(parts) == 1 or len(trie.ids) > most


def test_a_chain_is_one_segment():
    assert TokenTrie.of([[5, 6, 7, 8], [5, 6, 9], [5, 6]]).segments == (Segment(3),)
    assert TokenTrie.of([[5, 6, 7, 8], [5, 6, 9, 8]]).segments == (Segment(2, (Segment(1), Segment(1))),)


def test_answers_without_tokens_are_refused():
    with pytest.raises(ValueError, match="without tokens"):
        TokenTrie.of([[5], []])


def plain_nll(base, prompt, answer):
    """The likelihood of one answer, in a pass of its own through the whole model."""
    labelled = [False] * len(prompt) + [True] * len(answer)
    return float(nll(base, padded_batch([TokenSequence(prompt + answer, labelled, len(prompt))], base.device)).sum())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_score_as_each_does_alone(architecture):
    base = tiny_base(architecture)

    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(prompts, st.data())
    def check(prompts, data):
        answers = [data.draw(answers_of_one_prompt) for _ in prompts]
        sequences = [TokenSequence(prompt, [False] * len(prompt), len(prompt)) for prompt in prompts]
        together = label_nll(base, sequences, [TokenTrie.of(row) for row in answers])
        for prompt, row, values in zip(prompts, answers, together, strict=True):
            assert values == pytest.approx([plain_nll(base, prompt, answer) for answer in row], abs=1e-5)

    check()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_a_trie_larger_than_a_masked_call_scores_as_each_answer_does_alone(architecture):
    """The attention of a large tree is several calls, which are merged; a prompt before it is a call of its own."""
    base = tiny_base(architecture)
    prompt = list(range(5, 105))
    answers = [
        [5 + first, *(9 + (first * last) % 50 for _ in range(8)), 5 + last] for first in range(9) for last in range(9)
    ]
    trie = TokenTrie.of(answers)
    assert len(trie.ids) > 512
    values = label_nll(base, [TokenSequence(prompt, [False] * 100, 100)], [trie])[0]
    chosen = range(0, len(answers), 10)
    assert [values[i] for i in chosen] == pytest.approx([plain_nll(base, prompt, answers[i]) for i in chosen], abs=1e-5)


def test_what_answers_begin_with_is_computed_once():
    base = tiny_base()
    assert why_not_packed(base) is None
    trie = TokenTrie.of([[5, 6, 7], [5, 6, 8], [5, 9], [7]])
    prompt = TokenSequence([1, 2, 3], [False] * 3, 3)
    batch = packed_batch([prompt], base.device, [trie])
    assert batch.ids.tolist() == [[1, 2, 3, 5, 6]] and batch.position_ids.tolist() == [[0, 1, 2, 3, 4]]
    assert row_tokens([prompt], [trie]) == 5
    assert batch.positions.tolist() == [2, 3, 4]  # each is read once by the head, for all that it predicts
    assert len(batch.targets) == len(batch.sources) == 9
    assert torch.equal(batch.positions[list(batch.sources)], torch.tensor([2, 2, 2, 2, 3, 3, 3, 4, 4]))


def test_labels_of_one_token_add_nothing_to_the_prompt():
    trie = TokenTrie.of([[5], [6], [7]])
    assert not trie.ids and not trie.segments
