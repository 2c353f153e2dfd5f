"""Where the parts of a model are, on every architecture: separate and fused linears give the same answers."""

import pytest
import torch

from tunewise.core.errors import SettingError, TechniqueError
from tunewise.engine.tiny import ARCHITECTURES
from tunewise.testing import tiny_base

FUSED = ["gpt2", "gpt_neox", "phi3"]


def zero(base, role):
    """Let what the first block makes for a role be nothing."""
    path, linear, columns = next(base.anatomy.outputs((role,)))
    assert base.model.get_submodule(path) is linear
    transposed = base.anatomy.layout.name == "GPT-2"
    with torch.no_grad():
        (linear.weight.T if transposed else linear.weight)[columns] = 0
        if linear.bias is not None:
            linear.bias[columns] = 0


@torch.no_grad()
def cached(base):
    """Keys and values of the first block."""
    layer = base.anatomy.inner(torch.tensor([[5, 6, 7, 8]]), use_cache=True).past_key_values.layers[0]
    return layer.keys.clone(), layer.values.clone()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_columns_of_a_role_make_that_role_and_no_other(architecture):
    keys, values = cached(tiny_base(architecture))
    for role in ("q", "k", "v"):
        base = tiny_base(architecture)
        zero(base, role)
        now_keys, now_values = cached(base)
        assert bool((now_keys == 0).all()) if role == "k" else torch.equal(now_keys, keys), role
        assert bool((now_values == 0).all()) if role == "v" else torch.equal(now_values, values), role


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_columns_of_all_roles_are_all_columns_once(architecture):
    base = tiny_base(architecture)
    seen = {}
    for path, linear, columns in base.anatomy.outputs(("q", "k", "v", "o", "up", "down")):
        seen.setdefault(path, []).append(columns)
        assert columns.dtype == torch.int64 and bool((columns.diff() > 0).all()), path
        size = linear.weight.shape[1 if base.anatomy.layout.name == "GPT-2" else 0]
        assert int(columns[-1]) < size
    assert len([columns for parts in seen.values() for columns in parts]) == 6 * len(base.anatomy.blocks)
    for path, parts in seen.items():
        whole = torch.cat(parts)
        assert len(whole.unique()) == len(whole), path


def test_a_fused_feed_forward_has_its_gate_first():
    base = tiny_base("phi3")
    (_, _, gate), (_, _, up) = list(base.anatomy.outputs(("gate", "up")))[:2]
    given = {}
    base.anatomy.linear(0, "gate_up").register_forward_hook(lambda m, args, out: given.update(made=out))
    base.anatomy.linear(0, "down").register_forward_pre_hook(lambda m, args: given.update(entered=args[0]))
    with torch.no_grad():
        base.anatomy.inner(torch.tensor([[5, 6, 7]]))
    made = given["made"]
    expected = torch.nn.functional.silu(made[..., gate]) * made[..., up]
    assert torch.allclose(given["entered"], expected)


@pytest.mark.parametrize("architecture", FUSED)
def test_a_role_that_is_not_there_is_no_silence(architecture):
    anatomy = tiny_base(architecture).anatomy
    with pytest.raises(TechniqueError, match=r'no linear has the role "k" .*qkv.*outputs\(\("k",\)\)'):
        anatomy.linears(("k", "v", "down"))  # at the call, not when it is first looped over
    with pytest.raises(SettingError, match=r'lora\.x names "v", but the roles here are qkv.*"qkv" makes it'):
        anatomy.require_roles("lora.x", ("v",))
    assert [role for _, role, _ in anatomy.linears(("down",))] == ["down"] * 2


def test_what_a_layout_lacks_is_named_with_what_it_has():
    with pytest.raises(TechniqueError, match='"gate" in the layout of GPT-2, whose roles are qkv, o, up, down'):
        tiny_base("gpt2").anatomy.outputs(("gate",))
    with pytest.raises(TechniqueError, match="name q, k, v"):
        tiny_base("llama").anatomy.linears(("qkv",))
