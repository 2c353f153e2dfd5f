"""What a comparison of an export proves, and what counts as a difference."""

import pytest
import torch

from tunewise.engine.encoding import Encoder
from tunewise.engine.packing import padded_batch
from tunewise.engine.tiny import tiny_base, tiny_task
from tunewise.export import parity
from tunewise.export.parity import Allowance, Prompts, ReaderOutputs, bound, compare_outputs
from tunewise.export.readers import CausalReader, Passage, Reader


@pytest.mark.parametrize(("prompts", "share"), [(1, 0.95), (14, 0.193), (60, 0.0487), (300, 0.00994)])
def test_the_bound_is_that_of_none_in_n(prompts, share):
    assert bound(prompts) == pytest.approx(share, rel=5e-3)
    assert (1 - bound(prompts)) ** prompts == pytest.approx(0.05)


def test_the_default_number_of_prompts_bounds_the_share_below_five_percent():
    assert bound(parity.PROMPTS) < 0.05 < bound(parity.PROMPTS - 2)


@pytest.mark.parametrize(
    ("gap", "margin", "differ"), [(0.0, 0.0, []), (0.0, 1e-6, []), (0.0, 1e-2, [0]), (1e-2, 0.0, [0])]
)
def test_a_difference_is_what_rounding_cannot_explain(gap, margin, differ):
    """Continuations may part where two tokens are as likely as rounding can tell, and nowhere else."""
    prompts = Prompts("made", [[1, 2]], [])
    trained = ReaderOutputs([torch.zeros(1, 3)], [[1]])
    exported = ReaderOutputs([torch.full((1, 3), gap)], [[2 if margin else 1]], [[margin]])
    figures = compare_outputs(trained, exported, trained, trained, prompts, Allowance(1e-5))
    assert figures["differ"] == differ and figures["same"] == (not differ)


def test_what_is_not_a_number_is_a_difference():
    prompts = Prompts("made", [[1, 2]], [])
    trained = ReaderOutputs([torch.zeros(1, 3)], [[1]])
    exported = ReaderOutputs([torch.full((1, 3), torch.nan)], [[0]], [[torch.nan]])
    assert compare_outputs(trained, exported, trained, trained, prompts, Allowance(1e-5))["differ"] == [0]


def test_another_tokenizer_is_found_by_the_text_of_prompts_labels_and_template():
    base = tiny_base()
    task = tiny_task()
    encoder = Encoder(base, task)
    labels = [encoder.answers(task.test[0], task.labels)]
    ids = base.tokenizer("the cat sat")["input_ids"]
    prompts = Prompts("made", [ids], [], task=task, label_ids=labels)
    assert parity.tokenizer_problem(base.tokenizer, base.tokenizer, prompts) is None
    kind, backend = type(base.tokenizer), base.tokenizer.backend_tokenizer
    other = kind(tokenizer_object=backend, chat_template="{{ messages }}")
    assert parity.tokenizer_problem(base.tokenizer, other, prompts) == {"chat_template": "differs"}

    def swapped(first, second):
        text = backend.to_str()
        one, two = (f'"{token}":{backend.token_to_id(token)}' for token in (first, second))
        one_swapped = f'"{first}":{backend.token_to_id(second)}'
        two_swapped = f'"{second}":{backend.token_to_id(first)}'
        assert text.count(one) == text.count(two) == 1
        text = text.replace(one, one_swapped).replace(two, two_swapped)
        return kind(tokenizer_object=type(backend).from_str(text), bos_token="<s>", eos_token="</s>")

    in_prompt, in_label = backend.id_to_token(ids[-1]), backend.id_to_token(labels[0][1][0])
    assert labels[0][1][0] not in ids
    assert parity.tokenizer_problem(base.tokenizer, swapped(in_prompt, "z"), prompts)["prompt"] == 0
    assert parity.tokenizer_problem(base.tokenizer, swapped(in_label, "Z"), prompts)["label"] == task.labels[1]


class OneByOne(Reader):
    """Reads each sequence by itself with the model's plain forward pass, which needs no trust."""

    def __init__(self, base):
        self.base = base

    @torch.no_grad()
    def logits(self, ids):
        return self.base.model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_shared_passes_read_what_single_passes_read(architecture, packs, monkeypatch):
    base = tiny_base(architecture)
    if not packs:
        monkeypatch.setattr("tunewise.export.readers.why_not_packed", lambda base: "no")
        monkeypatch.setattr("tunewise.fitting.scoring.why_not_packed", lambda base: "no")
        monkeypatch.setattr(
            "tunewise.engine.forward.packed_batch", lambda rows, device, **_: padded_batch(rows, device)
        )
    generator = torch.Generator().manual_seed(0)

    def ids(count):
        return torch.randint(2, 300, (count,), generator=generator).tolist()

    start = ids(20)
    passages = [
        Passage(start + ids(5), ids(6), [ids(1), ids(3), ids(2)]),
        Passage(start + ids(2), ids(4), [ids(2), ids(2)]),
        Passage(ids(3)),
        Passage([0], ids(2)),
    ]
    shared, single = CausalReader(base), OneByOne(base)
    assert shared.shares_prompts == packs
    expected, actual = dict(single.read(passages)), dict(shared.read(passages))
    assert set(actual) == set(range(len(passages)))
    for index, reading in actual.items():
        assert torch.allclose(reading.logits, expected[index].logits, atol=1e-4)
        assert torch.allclose(reading.continued, expected[index].continued, atol=1e-4)
        assert reading.answer_nll == pytest.approx(expected[index].answer_nll, abs=1e-4)
    rows = [passage.ids for passage in passages]
    assert shared.greedy(rows, 5) == single.greedy(rows, 5)
    assert torch.allclose(shared.logits(rows[0]), single.logits(rows[0]), atol=1e-4)


def test_the_more_labels_the_fewer_prompts_are_scored():
    base = tiny_base()
    prompts = Prompts("made", [[0, 1]] * 60, [], scored=60, label_ids=[[[1]] * 20] * 60)
    assert prompts.scored_by(CausalReader(base)) == 25
    assert prompts.scored_by(OneByOne(base)) == 12
    two = Prompts("made", [[0, 1]] * 60, [], scored=60, label_ids=[[[1]] * 2] * 60)
    assert two.scored_by(CausalReader(base)) == two.scored_by(OneByOne(base)) == 60


class Counting(CausalReader):
    """Counts the tokens that its model reads."""

    def __init__(self, base):
        super().__init__(base)
        self.tokens = 0
        base.anatomy.inner.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, arguments, options):
        self.tokens += options["input_ids"].numel()


def test_labels_cost_their_own_tokens_and_not_the_prompt_again():
    base = tiny_base()
    reader = Counting(base)
    assert reader.shares_prompts
    reader.tokens = 0
    labels = [[3 + n, 4, 5] for n in range(20)]
    passages = [Passage([2 + i, *range(100, 150)], [], labels) for i in range(8)]
    list(reader.read(passages))
    assert reader.tokens == 8 * (51 + 20 * 2)
