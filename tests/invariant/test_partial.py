"""What the papers of the partial family promise, beyond the contract."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from tunewise.core.errors import ArtifactError
from tunewise.core.seeds import generator
from tunewise.engine.anatomy import biases_of
from tunewise.engine.forward import batch_of, layout, loss_sum
from tunewise.engine.model import Base
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.building.bitmap import pack, unpack
from tunewise.techniques.building.fisher import fisher
from tunewise.techniques.building.sparse_entries import largest, weights_of
from tunewise.techniques.partial.diff_pruning import ALPHA, gate
from tunewise.techniques.registry import make
from tunewise.testing import _sequences, attach, fingerprint, fit, logits, tiny_base, tiny_task

SPARSE = ("lt_sft", "fish_mask", "diff_pruning")


# Chosen entries.


def test_exactly_the_largest_with_ties_to_the_first():
    scores = {"a": torch.tensor([1.0, 3.0, 3.0]), "b": torch.tensor([[3.0, 0.0], [3.0, 2.0]])}
    for count, expected in ((1, [[1], []]), (2, [[1, 2], []]), (3, [[1, 2], [0]]), (5, [[1, 2], [0, 2, 3]])):
        found = largest(scores, count)
        assert [place.tolist() for place in found.values()] == expected
        assert sum(len(place) for place in found.values()) == count


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("density", [0.001, 0.02])
def test_exactly_k_entries_change_and_no_other(name, density):
    base = tiny_base("llama")
    before = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    attachment = attach(make(name, {name: {"density": density}}), base)
    fit(attachment, steps=6)
    wanted = max(1, round(density * attachment.size))
    assert sum(len(place) for place in attachment.changed_entries().values()) == wanted
    changed = sum(int((p != before[n]).sum()) for n, p in base.model.named_parameters())
    assert 0 < changed <= wanted
    assert sum(p.numel() for p in attachment.params().values()) == wanted  # so AdamW's moments are of this size too


def test_rewind_is_bitwise():
    base = tiny_base("gpt2")
    before = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    attachment = attach(make("lt_sft"), base)
    attachment.start_phase(0)
    with torch.no_grad():
        for parameter in attachment.params().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(0, "noise"))
    assert any(not torch.equal(p, before[n]) for n, p in base.model.named_parameters())
    attachment.start_phase(1)
    assert all(torch.equal(p, before[n]) for n, p in base.model.named_parameters())


def test_the_compact_form_equals_masked_gradients():
    """Training k values is training the whole tensors with all other gradients set to zero."""
    settings, task = TrainSettings(max_steps=5), tiny_task()
    base = tiny_base("llama")
    compact = attach(make("fish_mask", {"fish_mask": {"density": 0.05, "learning_rate": 1e-3}}), base, task)
    rows = _sequences(compact, task)
    places = {name: place.clone() for name, place in compact.changed_entries().items()}
    train(compact, rows, settings)
    found = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    compact.detach()

    masked = attach(make("full", {"full": {"learning_rate": 1e-3}}), base, task)

    def mask(step, total):
        for name, parameter in masked.params().items():
            kept = torch.zeros(parameter.numel(), dtype=torch.bool)
            if name in places:
                kept[places[name]] = True
            if parameter.grad is not None:
                parameter.grad *= kept.view_as(parameter)

    masked.after_backward = mask
    train(masked, rows, settings)
    for name, parameter in base.model.named_parameters():
        assert torch.allclose(parameter, found[name], atol=2e-6), name


def test_the_whole_budget_is_full_training_of_the_eligible():
    """With every entry in the budget, the second phase is a plain run of half the steps from the base."""
    settings, task = TrainSettings(max_steps=6), tiny_task()
    base = tiny_base("llama")
    rate = {"density": 1.0, "learning_rate": 1e-3, "dense_learning_rate": 1e-3}
    attachment = attach(make("lt_sft", {"lt_sft": rate}), base, task)
    rows = _sequences(attachment, task)
    attachment.start_phase(0)
    attachment.start_phase(1)
    attachment.start_phase = lambda phase: None
    attachment.phases = 1
    train(attachment, rows, settings)
    found = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    attachment.detach()

    dense = attach(make("lt_sft", {"lt_sft": rate}), base, task)
    dense.phases = 1
    train(dense, rows, settings)
    for name in dense.eligible:
        assert torch.allclose(dict(base.model.named_parameters())[name], found[name], atol=2e-6), name


def test_places_outside_the_tensor_are_refused():
    base = tiny_base("llama")
    attachment = attach(make("fish_mask"), base)
    state = attachment.state()
    name = next(key for key in state if key.endswith(".index"))
    before = logits(attachment)
    for bad in (state[name] + 10**9, state[name] - 10**9, state[name].repeat_interleave(2), state[name].float()):
        values = state[name.replace(".index", ".value")]
        fitting = {name.replace(".index", ".value"): values.repeat_interleave(2) if len(bad) > len(values) else values}
        with pytest.raises(ArtifactError):
            attachment.load({**state, **fitting, name: bad})
    assert torch.equal(before, logits(attachment))


def test_fisher_squares_each_example_alone():
    base, task = tiny_base("llama"), tiny_task()
    attachment = attach(make("base"), base, task)
    rows = _sequences(attachment, task)[:3]
    own = weights_of(base, make("fish_mask"), ("q",))
    found = fisher(base, own, rows)
    for name, parameter in own.items():
        parameter.requires_grad_(True)
        total = torch.zeros_like(parameter)
        for row in rows:
            batch = batch_of(base, [row])
            with layout(base, batch):
                (grad,) = torch.autograd.grad(loss_sum(base, batch), parameter)
            total += grad**2
        assert torch.allclose(found[name], total, rtol=1e-5)
        assert parameter.grad is None


@pytest.mark.parametrize("name", SPARSE)
def test_resume_in_the_first_phase(name, tmp_path):
    """The contract resumes in the last phase; a stop in the first continues to the same bits too."""
    task, settings = tiny_task(), TrainSettings(max_steps=8, save_steps=2)
    base = tiny_base("llama")
    states = []
    for stop in (None, 3):
        attachment = attach(make(name), base, task)
        rows = _sequences(attachment, task)

        def halt(step, value, stop=stop):
            if step == stop:
                raise KeyboardInterrupt

        folder = tmp_path / f"{stop}"
        try:
            train(attachment, rows, settings, folder=folder, on_step=halt)
        except KeyboardInterrupt:
            attachment.detach()
            attachment = attach(make(name), base, task)
            train(attachment, rows, settings, folder=folder, resume=True)
        states.append({key: tensor.clone() for key, tensor in attachment.state().items()})
        attachment.detach()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", [*SPARSE, "threshold_mask"])
def test_accumulated_micro_batches_are_one_batch(name):
    base, task = tiny_base("llama", torch.float64), tiny_task()
    ends = []
    for size, count in ((6, 1), (3, 2)):
        attachment = attach(make(name), base, task)
        rows = _sequences(attachment, task)
        train(
            attachment,
            rows,
            TrainSettings(max_steps=4, per_device_train_batch_size=size, gradient_accumulation_steps=count),
        )
        ends.append({n: p.detach().clone() for n, p in base.model.named_parameters()})
        attachment.detach()
    for key in ends[0]:
        assert torch.allclose(ends[0][key], ends[1][key], atol=1e-5), key


# Hard-concrete gates.


def test_gates_have_the_closed_forms_of_the_paper():
    alpha = torch.full((400_000,), ALPHA, dtype=torch.float64)
    noise = torch.rand(alpha.shape, generator=generator(0, "u"), dtype=torch.float64)
    z, _ = gate(alpha, noise)
    assert abs(float((z > 0).double().mean()) - 1 / (1 + math.exp(-ALPHA))) < 5e-4  # 0.99331
    assert abs(float((z == 1).double().mean()) - 1 / (1 + math.exp(math.log(5) - ALPHA))) < 1e-3  # 0.96741
    assert float(gate(torch.tensor(math.log(2)))[0]) == pytest.approx(0.5)
    assert float(gate(torch.tensor(9.0))[0]) == 1.0


def test_gate_slopes_by_finite_differences():
    noise = torch.rand(50, generator=generator(1, "u"), dtype=torch.float64)
    alpha = torch.linspace(-3, 3, 50, dtype=torch.float64)
    step = 1e-6
    numeric = (gate(alpha + step, noise)[0] - gate(alpha - step, noise)[0]) / (2 * step)
    assert torch.allclose(gate(alpha, noise)[1], numeric, atol=1e-6)


def test_diff_pruning_gradients_equal_autograd():
    """The chained gradients of w, alpha and the group's gate are those of the difference written out."""
    base, task = tiny_base("llama", torch.float64), tiny_task()
    attachment = attach(make("diff_pruning", {"diff_pruning": {"target_modules": ["down"]}}), base, task)
    batch = batch_of(base, _sequences(attachment, task)[:4])
    attachment.start_phase(0)
    shift = {"w": 0.0, "alpha": 4.5, "group": 3.5}  # gates near the middle, where their slopes are
    with torch.no_grad():
        for name, parameter in attachment.params().items():
            parameter += (
                0.3 * torch.randn(parameter.shape, generator=generator(0, name)) - shift[name.rpartition(".")[2]]
            )
    torch.manual_seed(3)
    attachment.before_step(0, 1)
    with layout(base, batch):
        loss_sum(base, batch).backward()
    torch.manual_seed(3)
    largest_slope = 0.0
    for name, weight in attachment.eligible.items():
        w, alpha, group = attachment._parts(name)
        with layout(base, batch):
            (upstream,) = torch.autograd.grad(loss_sum(base, batch), weight)
        stretched = []
        for logit in (alpha, group):
            u = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            stretched.append((3 * torch.sigmoid(u.log() - (1 - u).log() + logit) - 1.5).clamp(0, 1))
        difference = stretched[0] * stretched[1] * w
        expected = torch.autograd.grad((upstream * difference).sum(), (w, alpha, group))
        largest_slope = max(largest_slope, float(expected[1].abs().max()))
        for parameter, grad in zip((w, alpha, group), expected, strict=True):
            assert torch.allclose(parameter.grad, grad, rtol=1e-4, atol=1e-7)
    assert largest_slope > 0


def test_the_expected_number_of_open_gates_is_the_papers_product():
    base = tiny_base("llama")
    attachment = attach(make("diff_pruning", {"diff_pruning": {"target_modules": ["q"], "l0_weight": 1.0}}), base)
    attachment.start_phase(0)
    sigma = 1 / (1 + math.exp(-ALPHA))
    assert math.isclose(float(attachment.penalty().detach()), attachment.size * sigma * sigma, rel_tol=1e-5)
    attachment.start_phase(1)
    assert attachment.penalty() is None


# Masks.


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_bits_round_trip(count):
    mask = torch.rand(count, generator=generator(0, count)) < 0.3
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count // 8)
    assert torch.equal(unpack(packed, count), mask)


def test_mask_gradient_is_straight_through():
    base, task = tiny_base("llama", torch.float64), tiny_task()
    attachment = attach(make("threshold_mask", {"threshold_mask": {"init": "uniform"}}), base, task)
    rows = _sequences(attachment, task)[:4]
    batch = batch_of(base, rows)
    with layout(base, batch):
        loss_sum(base, batch).backward()
    scores = {name: attachment.params()[f"{name}.score"].grad.clone() for name in attachment.masked}
    for name, parameter in attachment.masked.items():
        assert parameter.grad is None
        with layout(base, batch):
            (grad,) = torch.autograd.grad(loss_sum(base, batch), parameter)
        assert torch.allclose(scores[name].double(), grad * attachment.weights[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sparsity", [0.03, 0.05, 0.10])
def test_uniform_masks_start_with_the_wanted_share_off(sparsity):
    base = tiny_base("llama")
    recipe = make("threshold_mask", {"threshold_mask": {"init": "uniform", "sparsity": sparsity}})
    assert not recipe.identity_at_start
    attachment = attach(recipe, base)
    off = sum(int((p == 0).sum()) for p in attachment.masked.values())
    size = sum(p.numel() for p in attachment.masked.values())
    assert abs(off / size - sparsity) < 4 * math.sqrt(sparsity / size)


def test_masks_store_one_bit_a_weight_and_leave_the_lowest_blocks_alone():
    base = tiny_base("gpt2")
    before = fingerprint(base)
    attachment = attach(make("threshold_mask"), base)
    assert not any(name.startswith("transformer.h.0.") for name in attachment.masked)
    for name, weight in attachment.masked.items():
        assert len(attachment.state()[f"{name}.mask"]) == -(-weight.numel() // 8)
    fit(attachment, steps=10)
    for name, parameter in attachment.masked.items():
        on = parameter != 0
        assert torch.equal(parameter[on], attachment.weights[name][on])
    attachment.detach()
    assert fingerprint(base) == before


# Biases.


@pytest.mark.parametrize(("architecture", "dead"), [("gpt2", True), ("qwen2", False)])
def test_a_key_bias_matters_only_with_rotary_positions(architecture, dead):
    base, task = tiny_base(architecture, torch.float64), tiny_task()
    attachment = attach(make("bitfit"), base, task)
    batch = batch_of(base, _sequences(attachment, task)[:4])
    with layout(base, batch):
        loss_sum(base, batch).backward()
    role, columns = base.anatomy.columns()["k"]
    linear = base.anatomy.linear(0, role)
    keys = linear.bias.grad[columns.flatten()].abs().max()
    queries = linear.bias.grad if role == "qkv" else base.anatomy.linear(0, "q").bias.grad
    assert (float(keys) < 1e-12 * float(queries.abs().max()) + 1e-15) == dead


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({}, 102_912),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}, 272_384),
    ],
)
def test_bias_counts_of_the_paper(shape, expected):
    """BERT base and large, without the classifier."""
    with torch.device("meta"):
        model = BertModel(BertConfig(**shape))
    assert sum(p.numel() for p in biases_of(model).values()) == expected


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_added_biases_save_as_a_standard_checkpoint(architecture, tmp_path):
    base = tiny_base(architecture)
    roles = {"bitfit": {"source": "add", "target_modules": ["q", "o"]}}  # the others get zeros
    attachment = attach(make("bitfit", roles), base)
    fit(attachment)
    expected = logits(attachment)
    attachment.merge().save_pretrained(tmp_path)
    again = Base(AutoModelForCausalLM.from_pretrained(tmp_path), base.tokenizer)
    assert again.model.config.attention_bias
    assert torch.allclose(logits(attach(make("base"), again)), expected, atol=1e-5)
    attachment.detach()
    assert not base.model.config.attention_bias and base.anatomy.linear(0, "q").bias is None


def test_an_added_value_bias_is_an_output_bias():
    """b_o = W_o repeat(b_v): attention's weights sum to one."""
    base = tiny_base("llama", torch.float64)
    attachment = attach(make("bitfit", {"bitfit": {"source": "add", "target_modules": ["v"]}}), base)
    fit(attachment, steps=6)
    expected = logits(attachment)
    values = {name: p.detach().clone() for name, p in attachment.params().items()}
    attachment.detach()
    folded = attach(make("bitfit", {"bitfit": {"source": "add", "target_modules": ["o"]}}), base)
    heads, groups, size = base.anatomy.heads
    with torch.no_grad():
        for name, parameter in folded.params().items():
            own = values[name.replace("o_proj", "v_proj")].view(groups, size).repeat_interleave(heads // groups, 0)
            parameter.copy_(base.model.get_parameter(name.replace("bias", "weight")) @ own.flatten().double())
    assert float(values[next(iter(values))].abs().max()) > 0
    assert torch.allclose(logits(folded), expected, atol=1e-6)


def test_dead_key_biases_are_named():
    assert "key biases" in attach(make("bitfit"), tiny_base("gpt2")).label
    assert "key biases" not in attach(make("bitfit"), tiny_base("qwen2")).label
