"""The optimisers and forms of full fine-tuning: their equations, their bytes, and what they leave alone."""

import pytest
import torch
from torch import nn

from tunewise.core.errors import SettingError, TechniqueError
from tunewise.engine.optimizers import GaLore, _write_rounded, build
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, fit, tiny_base, tiny_task

BETAS = (0.9, 0.999)


def technique(**settings):
    return make("full", {"full": settings})


def run(name, steps=4, lr=1e-2, shape=(6, 10), dtype=torch.float32, **group):
    """A parameter after some steps with fixed gradients."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape).to(dtype))
    optimizer = build(name, [{"params": [parameter], "lr": lr, "weight_decay": 0.0, **group}], BETAS)
    for _ in range(steps):
        (parameter * torch.randn(shape).to(dtype)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return parameter.detach(), optimizer


def test_galore_of_full_rank_and_scale_one_with_sgd_inside_is_sgd(monkeypatch):
    monkeypatch.setattr(
        "tunewise.engine.optimizers._adam", lambda g, group, state: state.setdefault("step", torch.zeros(())) + g
    )
    projected = run("galore", rank=6, update_proj_gap=1000, scale=1.0)[0]
    plain = run("galore")[0]
    assert torch.allclose(projected, plain, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_galores_updates_have_its_rank_and_its_projector_is_orthonormal(shape):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    before = parameter.detach().clone()
    groups = [{"params": [parameter], "lr": 0.1, "rank": 2, "update_proj_gap": 10, "scale": 0.25}]
    optimizer = GaLore(groups, BETAS)
    parameter.grad = torch.randn(shape)
    optimizer.step()
    p = optimizer.state[parameter]["projector"]
    assert torch.allclose(p.T @ p, torch.eye(2), atol=1e-5)
    assert int(torch.linalg.matrix_rank(parameter.detach() - before, rtol=1e-4)) == 2
    assert optimizer.state[parameter]["exp_avg"].numel() == 2 * 10


def test_galore_without_a_rank_is_adamw():
    assert torch.allclose(run("galore")[0], run("adamw")[0], atol=1e-6)


def test_lomo_is_sgd_and_leaves_no_gradient():
    torch.manual_seed(0)
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    other.load_state_dict(model.state_dict())
    build("lomo", [{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.0}], BETAS)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1)
    for seed in range(3):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
        model(x).square().sum().backward()
        assert all(p.grad is None for p in model.parameters())
        sgd.zero_grad()
        other(x).square().sum().backward()
        sgd.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_adalomos_steps_are_parts_of_the_weights_size():
    before = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(before.clone())
    build("adalomo", [{"params": [parameter], "lr": 1e-2, "weight_decay": 0.0}], BETAS)
    (parameter * torch.randn(6, 10) * 1e4).sum().backward()
    moved = (parameter.detach() - before).square().mean().sqrt()
    assert moved <= 1e-2 * before.square().mean().sqrt() * 1.001


def test_rounding_at_random_is_right_on_average_and_exact_where_it_can_be():
    torch.manual_seed(0)
    value = torch.full((40_000,), 1.0 + 2**-10)  # a third of an eighth between two bf16 numbers
    target = torch.empty(40_000, dtype=torch.bfloat16)
    _write_rounded(target, value)
    assert set(target.tolist()) == {1.0, 1.0 + 2**-7}
    assert float(target.float().mean()) == pytest.approx(1.0 + 2**-10, abs=1e-4)
    exact = torch.tensor([1.5, -2.0, 0.0, -3.25])
    _write_rounded(target[:4], exact)
    assert torch.equal(target[:4].float(), exact)


def test_small_updates_are_lost_by_nearest_rounding_and_not_here():
    def moved(name):
        parameter, _ = run(name, steps=20, lr=1e-5, shape=(64, 64), dtype=torch.bfloat16)
        return float((parameter != run(name, steps=0, shape=(64, 64), dtype=torch.bfloat16)[0]).float().mean())

    assert moved("adamw_bf16") > moved("adamw")


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_what_moves_weights_in_the_backward_pass_refuses_bf16_weights(name):
    base = tiny_base("llama", torch.bfloat16)
    with pytest.raises(TechniqueError, match="small updates of"):
        attach(technique(optimizer=name), base)


def test_bf16_weights_are_trained_as_they_are_by_the_optimiser_that_can():
    base = tiny_base("llama", torch.bfloat16)
    attachment = attach(technique(optimizer="adamw_bf16", learning_rate=1e-3), base)
    before = {name: p.detach().clone() for name, p in attachment.params().items()}
    assert {p.dtype for p in before.values()} == {torch.bfloat16}
    fit(attachment)
    assert any(not torch.equal(p, before[name]) for name, p in attachment.params().items())
    states = attachment.mover.state.values()
    assert {s.dtype for slots in states for k, s in slots.items() if k != "step"} == {torch.bfloat16}


@pytest.mark.parametrize("optimizer", ["adamw", "galore", "adafactor"])
def test_bf16_weights_follow_a_float32_copy_that_loses_no_small_updates(optimizer):
    base = tiny_base("llama", torch.bfloat16)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    attachment = attach(technique(optimizer=optimizer, learning_rate=1e-6, galore_rank=4), base)
    fit(attachment, steps=3)
    copies = attachment.params()
    assert {p.dtype for p in copies.values()} == {torch.float32}
    for name, parameter in base.model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, copies[name].bfloat16())
        assert not torch.equal(copies[name], before[name].float()), name  # far below the next bf16 number
    assert (
        0
        < attachment.drift().item()
        == pytest.approx(
            sum(float((copies[name] - values).square().sum()) for name, values in before.items()), rel=1e-5
        )
    )
    attachment.detach()
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())


def test_eight_bits_take_two_bytes_a_parameter():
    pytest.importorskip("bitsandbytes")
    parameter, optimizer = run("adamw8bit", shape=(256, 64))
    state = next(iter(optimizer.state.values()))
    size = sum(value.nbytes for name, value in state.items() if torch.is_tensor(value) and "qmap" not in name)
    assert size / parameter.numel() == pytest.approx(2.03, abs=0.05)


def test_lisa_trains_some_blocks_at_a_time_and_forgets_the_moments_of_the_others():
    base = tiny_base()
    attachment = attach(technique(lisa_layers=1, lisa_interval=2, learning_rate=1e-3), base)
    blocks = [list(block.parameters()) for block in base.anatomy.blocks]
    before = [[p.detach().clone() for p in block] for block in blocks]
    fit(attachment, steps=2, warmup_ratio=0.0, weight_decay=0.1)
    still = [
        all(torch.equal(p, old) for p, old in zip(*pair, strict=True)) for pair in zip(blocks, before, strict=True)
    ]
    assert sorted(still) == [False, True]
    frozen = blocks[still.index(True)]
    assert not any(p in attachment.mover.state for p in frozen)
    assert not torch.equal(base.anatomy.embedding.weight, tiny_base().anatomy.embedding.weight)
    attachment.detach()
    assert all(not p.requires_grad for p in base.model.parameters())


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(SettingError, match="2 blocks"):
        attach(technique(lisa_layers=3), tiny_base())
    with pytest.raises(SettingError, match="exclude each other"):
        attach(technique(lisa_layers=1, optimizer="lomo"), tiny_base())
    base, task = tiny_base(), tiny_task()
    attachment = attach(technique(optimizer="lomo"), base, task)
    rows = encoder_for(attachment, task).encode(task.train)
    with pytest.raises(SettingError, match="cannot accumulate"):
        train(attachment, rows, TrainSettings(max_steps=1, gradient_accumulation_steps=2))


@pytest.mark.parametrize("name", ["full", "lora", "prefix_tuning", "lst", "krona", "last_layers"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_recomputed_activations_leave_the_same_bits(name, architecture):
    states = []
    for recompute in (False, True):
        base, task = tiny_base(architecture), tiny_task()
        attachment = attach(make(name), base, task)
        rows = encoder_for(attachment, task).encode([attachment.render(e) for e in task.train])
        settings = TrainSettings(max_steps=3, gradient_checkpointing=recompute)
        train(attachment, rows, settings, reuse_trunk=False)
        states.append(attachment.state())
        assert not any(module.training for module in base.model.modules())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_recomputed_activations_are_not_kept():
    base, saved_bytes = tiny_base(), []
    task = tiny_task()
    attachment = attach(technique(), base, task)
    rows = encoder_for(attachment, task).encode(task.train)
    for recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            train(attachment, rows, TrainSettings(max_steps=1, gradient_checkpointing=recompute))
        saved_bytes.append(sum(sizes))
    assert saved_bytes[1] < saved_bytes[0]
