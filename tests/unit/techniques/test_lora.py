"""What lora promises beyond the contract: counts, identities, traps."""

import pytest
import torch

from tunewise.core.errors import SettingError
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, fit, logits, tiny_base, tiny_task


def put(name, base, **settings):
    return attach(make(name, {name: settings}), base)


def test_lora_counts_r_times_in_plus_out():
    for architecture in ("llama", "gpt2", "gpt_neox"):
        base = tiny_base(architecture)
        attachment = put("lora", base, r=3)
        shapes = [module.weight.shape for _, _, module in base.anatomy.linears()]
        assert sum(p.numel() for p in attachment.params().values()) == sum(3 * (a + b) for a, b in shapes)


def test_lora_first_gradient_reaches_b_alone():
    base = tiny_base("llama", torch.float64)
    attachment = put("lora", base)
    from tunewise.engine.forward import batch_of, layout, loss_sum

    batch = batch_of(base, encoder_for(attachment, tiny_task()).encode(tiny_task().train))
    with layout(base, batch):
        loss_sum(base, batch).backward()
    for name, parameter in attachment.params().items():
        assert bool(parameter.grad.any()) == name.endswith("lora_B"), name


def test_lora_targets_by_role_and_name_and_refuses_typos():
    base = tiny_base()
    assert len(put("lora", base, target_modules=["q", "v"]).layers) == 4
    assert set(put("lora", base, target_modules=["0.self_attn.o_proj"]).layers) == {"model.layers.0.self_attn.o_proj"}
    with pytest.raises(SettingError, match='"q_prj"'):
        put("lora", base, target_modules=["q_proj", "q_prj"])


def test_lora_dropout_acts_in_training_alone():
    base = tiny_base()
    plain, dropped = put("lora", base), None
    fit(plain)
    plain.detach()
    dropped = put("lora", base, lora_dropout=0.5)
    fit(dropped)
    assert torch.equal(logits(dropped), logits(dropped))


def test_lora_rank_bounds_the_update():
    base = tiny_base("llama", torch.float64)
    before = {n: p.clone() for n, p in base.model.named_parameters()}
    attachment = put("lora", base, r=2)
    fit(attachment, steps=6)
    attachment.merge()
    for path in attachment.layers:
        delta = base.model.get_parameter(f"{path}.weight") - before[f"{path}.weight"]
        assert torch.linalg.matrix_rank(delta.detach(), rtol=1e-6) == 2
