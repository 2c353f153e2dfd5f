"""What the reparametrized techniques' papers say, checked on tiny models."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from tunewise.core.errors import SettingError, TechniqueError
from tunewise.engine.anatomy import is_transposed, oriented
from tunewise.techniques.building.lowrank import frozen_linear, start
from tunewise.techniques.building.nf4 import CODEBOOK, dequantise, dynamic_map, quantise
from tunewise.techniques.building.peft_lora import Factors
from tunewise.techniques.registry import make
from tunewise.techniques.reparametrized import qlora
from tunewise.techniques.reparametrized.adalora import AdaLoRA
from tunewise.techniques.reparametrized.krona import kronecker, truncated
from tunewise.testing import attach, fingerprint, fit, logits, tiny_base, tiny_task


def technique(name, **settings):
    return make(name, {name: settings})


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# LoRA.


def test_the_fused_layer_has_the_plain_ones_gradients():
    """In fp64, for every input that a linear's update has."""
    base = tiny_base("llama", torch.float64)
    attachment = attach(technique("lora", r=3), base)
    module = base.anatomy.linear(0, "up")
    path = next(path for path, found in attachment.layers.items() if found is module)
    a, b, scale = attachment.factors(path)
    a.data, b.data = random(*a.shape, seed=4), random(*b.shape, seed=1)
    x = random(2, 5, 32).requires_grad_(True)
    weights = random(2, 5, 48, seed=2)
    (module(x) * weights).sum().backward()
    ours = [tensor.grad.clone() for tensor in (x, a, b)]
    for tensor in (x, a, b):
        tensor.grad = None
    plain = nn.functional.linear(x, module.weight) + scale * (x @ a.T @ b.T)
    (plain * weights).sum().backward()
    for mine, tensor in zip(ours, (x, a, b), strict=True):
        assert torch.allclose(mine, tensor.grad, rtol=1e-10)


def test_a_frozen_linear_passes_gradients_to_its_input_and_bias_alone():
    weight, bias, x = random(4, 3), random(4).requires_grad_(True), random(5, 3).requires_grad_(True)
    frozen_linear(x, lambda: weight, bias, 4).square().sum().backward()
    other, shift = (tensor.detach().clone().requires_grad_(True) for tensor in (x, bias))
    (other @ weight.T + shift).square().sum().backward()
    assert torch.allclose(x.grad, other.grad) and torch.allclose(bias.grad, shift.grad)
    assert weight.grad is None


def test_first_gradients_reach_b_alone_and_the_update_has_its_rank():
    base = tiny_base()
    attachment = attach(technique("lora", r=3), base)
    fit(attachment, steps=1, warmup_ratio=0.0)
    assert all(p.any() for name, p in attachment.params().items() if name.endswith("lora_B"))
    fit(attachment, steps=6)
    for path in attachment.layers:
        assert torch.linalg.matrix_rank(attachment.delta(path).double(), rtol=1e-5) <= 3


def test_rslora_scales_by_the_root_of_the_rank():
    plain, rooted = (attach(technique("lora", r=16, use_rslora=on), tiny_base()) for on in (False, True))
    path = next(iter(plain.layers))
    assert plain.factors(path).scale == 2.0 and rooted.factors(path).scale == 8.0


def test_patterns_change_rank_and_alpha_of_what_they_name():
    attachment = attach(
        technique("lora", rank_pattern=["q=2", "layers.1.mlp.down_proj=5"], alpha_pattern=["q=3"]), tiny_base()
    )
    ranks = {path: len(attachment.factors(path).a) for path in attachment.layers}
    assert {rank for path, rank in ranks.items() if "q_proj" in path} == {2}
    assert [path for path, rank in ranks.items() if rank == 5] == ["model.layers.1.mlp.down_proj"]
    assert attachment.factors("model.layers.0.self_attn.q_proj").scale == 1.5
    with pytest.raises(SettingError, match="target=rank"):
        attach(technique("lora", rank_pattern=["q:2"]), tiny_base())


def test_dora_splits_norm_and_direction():
    base = tiny_base()
    attachment = attach(technique("lora", use_dora=True, r=4), base)
    fit(attachment, steps=5)
    for path, module in attachment.layers.items():
        whole = module.weight + attachment.delta(path)
        magnitude = attachment.params()[f"{path}.lora_magnitude_vector"]
        assert torch.allclose(whole.norm(dim=1), magnitude, rtol=1e-5)


def test_loraplus_gives_b_its_own_speed():
    groups = attach(technique("lora", loraplus_lr_ratio=16.0, learning_rate=1e-3), tiny_base()).param_groups()
    assert [group["lr"] for group in groups] == [1e-3, 16e-3]


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_starts_of_its_own_leave_model_and_base_as_they_are(kind):
    base = tiny_base()
    before, bare = fingerprint(base), logits(attach(make("base"), base))
    base.release()
    attachment = attach(technique("lora", init_lora_weights=kind, r=4), base)
    assert torch.equal(logits(attachment), bare)
    assert fingerprint(base) == before
    path, module = next(iter(attachment.layers.items()))
    a, b = (attachment.params()[f"{path}.lora_{letter}"] for letter in "AB")
    scale, weight = attachment.scales[path], module.weight
    if kind == "pissa":  # the best approximation of rank 4
        s = torch.linalg.svdvals(weight)
        assert torch.isclose((weight - scale * b @ a).norm(), s[4:].norm(), rtol=1e-4)
    else:  # the first columns of Q are orthonormal
        assert torch.allclose(b.T @ b, torch.eye(4), atol=1e-5)


def test_a_start_with_a_rank_that_the_weight_does_not_have_is_refused():
    with pytest.raises(SettingError, match="takes r up to 3"):
        start("pissa", random(3, 8), Factors(torch.zeros(4, 8), torch.zeros(3, 4), 1.0), torch.Generator())


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_start_that_an_update_of_scale_zero_cannot_hold_is_refused(kind):
    with pytest.raises(SettingError, match="lora_alpha above 0"):
        start(kind, random(3, 8), Factors(torch.zeros(2, 8), torch.zeros(3, 2), 0.0), torch.Generator())


# QLoRA.


def test_the_codebook_is_quantiles_of_the_normal_law():
    offset = 0.5 * (31 / 32 + 29 / 30)
    normal = torch.special.ndtri
    positive = normal(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    negative = -normal(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    book = torch.cat([positive, negative, torch.zeros(1)]).sort().values
    assert torch.allclose(book / book.max(), torch.tensor(CODEBOOK, dtype=torch.float64), atol=2e-7)


@pytest.mark.parametrize("shape", [(64, 64), (37, 101), (3, 5), (1,)])
@pytest.mark.parametrize("double", [True, False])
def test_four_bits_keep_shape_type_and_the_error_bound_and_are_idempotent(shape, double):
    weight = random(*shape, dtype=torch.float32) * 0.05
    packed = quantise(weight, double)
    again = dequantise(packed)
    assert again.shape == weight.shape and again.dtype == weight.dtype
    if not double:
        bound = 0.151904 * weight.abs().max()
        assert (again - weight).abs().max() <= bound * (1 + 1e-6)
        twice = quantise(again, double)
        assert torch.equal(twice.codes, packed.codes) and torch.equal(dequantise(twice), again)


def test_bits_and_error_are_the_papers():
    weight = random(2048, 512, dtype=torch.float32)
    packed = quantise(weight)
    assert packed.nbytes * 8 / weight.numel() == pytest.approx(4.127, abs=1e-3)
    assert float((dequantise(packed) - weight).norm() / weight.norm()) == pytest.approx(0.0920, abs=3e-4)
    assert len(dynamic_map()) == 256
    assert not dequantise(quantise(torch.zeros(130))).any()


@pytest.mark.parametrize("shape", [(64, 64), (37, 101), (96, 512), (3, 5)])
def test_codes_are_those_of_bitsandbytes(shape):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = random(*shape, dtype=torch.float32) * 0.05
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
    ours = quantise(weight, double=False)
    assert torch.equal(ours.codes, codes.flatten()) and torch.equal(ours.absmax, state.absmax)
    assert torch.equal(dequantise(ours), functional.dequantize_4bit(codes, state))
    assert torch.equal(dynamic_map(), functional.create_dynamic_map())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_backends_train_alike(architecture):
    pytest.importorskip("bitsandbytes")
    found = []
    for backend in ("torch", "bitsandbytes"):
        base = tiny_base(architecture)
        attachment = attach(technique("qlora", backend=backend, bnb_4bit_use_double_quant=False), base)
        fit(attachment)
        found.append((logits(attachment), sum(packed.nbytes for packed in attachment.packed.values())))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=0.02)


def test_gradients_are_those_of_the_dequantised_weight_before_and_after_an_evaluation():
    base, task = tiny_base("llama", torch.float64), tiny_task()
    attachment = attach(technique("qlora", lora_dropout=0.0), base, task)
    module = base.anatomy.linear(0, "down")
    path = next(path for path, found in attachment.layers.items() if found is module)
    x = random(4, 48).requires_grad_(True)
    weights = random(4, 32, seed=3)
    found = []
    for _ in range(2):
        x.grad = None
        (module(x) * weights).sum().backward()
        found.append(x.grad.clone())
        logits(attachment, task)  # bitsandbytes repacks its layers here, and loses gradients after
    a, b, scale = attachment.factors(path)
    expected = weights @ (attachment.matrix(path) + scale * b.double() @ a.double()).detach()
    assert torch.equal(*found) and torch.allclose(found[0], expected)


def test_quantised_weights_leave_memory_and_come_back():
    base = tiny_base()
    before = fingerprint(base)
    attachment = attach(technique("qlora"), base)
    assert all(module.weight.is_meta for module in attachment.layers.values())
    attachment.detach()
    assert fingerprint(base) == before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
def test_weights_that_wait_are_packed_one_by_one_on_their_way(architecture, monkeypatch):
    base = tiny_base(architecture)
    before, expected = fingerprint(base), logits(attach(technique("qlora"), base))
    base.release()
    base.waiting, way = torch.device("cpu"), []
    monkeypatch.setattr(qlora, "moved", lambda weight, device: way.append((tuple(weight.shape), device)) or weight)
    attachment = attach(technique("qlora"), base)
    assert [shape for shape, _ in way] == [packed_shape(attachment, path) for path in attachment.packed]
    assert all(device == base.device for _, device in way) and base.waiting is None
    assert torch.equal(logits(attachment), expected)
    attachment.detach()
    assert base.waiting == torch.device("cpu") and fingerprint(base) == before


def packed_shape(attachment, path):
    return tuple(attachment.matrix(path).shape)


NARROW = {"target_modules": ["q"], "lora_dropout": 0.0}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_every_linear_of_every_block_is_quantised_whatever_is_targeted(architecture):
    """As bitsandbytes does when it loads a model: the base is the same for each list of targets."""
    base = tiny_base(architecture)
    before, original = fingerprint(base), {path: oriented(m).clone() for path, _, m in base.anatomy.linears()}
    role = "q" if "q" in base.anatomy.roles else "qkv"
    attachment = attach(technique("qlora", **NARROW | {"target_modules": [role]}), base)
    assert attachment.packed.keys() == original.keys()
    assert all(module.weight.is_meta for _, _, module in base.anatomy.linears())
    assert len(attachment.layers) == len(base.anatomy.blocks)
    narrow = logits(attachment)
    attachment.detach()
    assert fingerprint(base) == before
    wide = attach(technique("qlora", lora_dropout=0.0), base)
    assert torch.equal(logits(wide), narrow)  # updates start at zero, so both are the quantised base
    wide.detach()
    for path, _, module in base.anatomy.linears():  # which is the one with these weights
        weight = dequantise(quantise(original[path]))
        module.weight.data = weight.T if is_transposed(module) else weight
    assert torch.allclose(logits(attach(make("base"), base)), narrow, atol=1e-5)


def test_a_linear_without_an_update_has_the_gradients_of_its_four_bits():
    base = tiny_base("llama", torch.float64)
    attachment = attach(technique("qlora", **NARROW), base)
    module = base.anatomy.linear(0, "down")
    path = next(path for path, linear in attachment.linears.items() if linear is module)
    x, weights = random(4, 48).requires_grad_(True), random(4, 32, seed=3)
    (module(x) * weights).sum().backward()
    assert torch.allclose(x.grad, weights @ attachment.matrix(path))


def test_a_merged_small_update_is_lost_in_four_bits_and_the_findings_say_so():
    attachment = attach(technique("qlora", r=4), tiny_base())
    for name, parameter in attachment.params().items():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 1e-3)
    said = attachment.findings(lambda: 0.0)
    assert next(iter(said.values())) < 0.3


# KronA.


@pytest.mark.parametrize("shapes", [((4, 3), (2, 5)), ((1, 6), (7, 1)), ((8, 2), (3, 9))])
def test_the_product_is_never_formed_and_equal(shapes):
    a, b = random(*shapes[0]).requires_grad_(True), random(*shapes[1], seed=1).requires_grad_(True)
    x = random(2, 3, a.shape[1] * b.shape[1], seed=2)
    fast = kronecker(x, a, b)
    fast.square().sum().backward()
    ours = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    plain = x @ torch.kron(a, b).T
    plain.square().sum().backward()
    assert torch.allclose(fast, plain, rtol=1e-12)
    assert torch.allclose(ours[0], a.grad, rtol=1e-10) and torch.allclose(ours[1], b.grad, rtol=1e-10)
    ranks = [int(torch.linalg.matrix_rank(m)) for m in (torch.kron(a, b), a, b)]
    assert ranks[0] == ranks[1] * ranks[2]


def test_balanced_factors_are_as_few_values_as_can_be():
    from tunewise.techniques.reparametrized.krona import _sides

    a1, a2 = _sides(technique("krona"), 768, 768)
    assert a1 * a2 + (768 // a1) * (768 // a2) == 1536
    with pytest.raises(SettingError, match="does not divide"):
        attach(technique("krona", a1=5), tiny_base())


def test_a_truncated_product_is_its_best_low_rank_form_with_its_error():
    a, b = random(4, 3), random(2, 5, seed=1)
    whole = torch.kron(a, b)
    (down, up), error = truncated(a, b, 2)
    s = torch.linalg.svdvals(whole)
    assert float((whole - up @ down).norm() / whole.norm()) == pytest.approx(error, rel=1e-6)
    assert error == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-6)


@pytest.mark.parametrize("form", ["block", "residual"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox", "phi3"])
def test_block_forms_start_at_the_base_learn_and_do_not_merge(form, architecture):
    base = tiny_base(architecture)
    bare = logits(attach(make("base"), base))
    base.release()
    attachment = attach(technique("krona", form=form), base)
    assert torch.equal(logits(attachment), bare)
    fit(attachment, steps=4)
    assert not torch.equal(logits(attachment), bare)
    with pytest.raises(TechniqueError, match="cannot be merged"):
        attachment.merge()


# DyLoRA.


@pytest.mark.parametrize("scaling", ["alpha_over_b", "constant"])
def test_each_rank_is_the_lora_of_the_slices(scaling):
    base = tiny_base()
    attachment = attach(technique("dylora", r=4, lora_alpha=8, scaling=scaling), base)
    fit(attachment, steps=6)
    for rank in range(1, 5):
        attachment.b = rank
        path = next(iter(attachment.layers))
        a, b, scale = attachment.factors(path)
        whole = attachment.pairs[path]
        assert torch.equal(a, whole[0][:rank]) and torch.equal(b, whole[1][:, :rank])
        assert scale == 8 / (rank if scaling == "alpha_over_b" else 4)


@pytest.mark.parametrize(("update", "moved"), [("full", [0, 1]), ("frozen", [1])])
def test_a_step_moves_its_ranks_and_gives_the_others_their_bits(update, moved, monkeypatch):
    """Under AdamW with weight decay and momentum."""
    attachment = attach(technique("dylora", r=4, update=update), tiny_base())
    fit(attachment, steps=3, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in attachment.params().items()}
    monkeypatch.setattr(torch, "multinomial", lambda *_: torch.tensor([1]))  # b = 2
    fit(attachment, steps=1, weight_decay=0.1, warmup_ratio=0.0)
    for name, p in attachment.params().items():
        rows = p if name.endswith("lora_A") else p.T
        old = before[name] if name.endswith("lora_A") else before[name].T
        assert [row for row in range(4) if not torch.equal(rows[row], old[row])] == moved


def test_every_rank_is_drawn_and_geometric_prefers_small_ones():
    torch.manual_seed(0)
    counts = {}
    for distribution in ("uniform", "geometric"):
        attachment = attach(technique("dylora", r=4, distribution=distribution), tiny_base())
        drawn = []
        for step in range(400):
            attachment.before_step(step, 400)
            drawn.append(attachment.b)
        counts[distribution] = [drawn.count(rank) for rank in (1, 2, 3, 4)]
        attachment.detach()
    assert min(counts["uniform"]) > 70 and counts["geometric"][0] > counts["geometric"][3] > 0


def test_a_first_rank_of_dylora_beats_a_truncated_lora():
    """A regression with a decaying spectrum, as in the paper's argument: five times at least."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(64, 64))[0] for _ in range(2))
    goal = u[:, :8] * (2.0 ** -torch.arange(8)) @ v[:, :8].T

    def trained(nested):
        a, b = (torch.randn(8, 64) / 8).requires_grad_(True), torch.zeros(64, 8, requires_grad=True)
        optimizer = torch.optim.Adam([a, b], lr=1e-2)
        for _ in range(1500):
            rank = int(torch.randint(1, 9, ())) if nested else 8
            loss = (goal - b[:, :rank] @ a[:rank]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float((goal - b[:, :1] @ a[:1]).norm() / goal.norm())

    assert trained(True) < 0.55 and trained(False) > 0.8  # the best of rank 1 is .49


def test_dylora_reports_its_ranks_and_refuses_one_above_r():
    attachment = attach(technique("dylora", r=6), tiny_base())
    assert list(attachment.findings(lambda: 1.0)["validation loss by rank"]) == ["1", "2", "4", "6"]
    with pytest.raises(SettingError, match="largest rank"):
        attach(technique("dylora", r=2, rank=3), tiny_base())


# AdaLoRA.


def test_the_budget_is_the_official_codes():
    """b0 = 36, bT = 12 over three matrices, t_i = 5, t_f = 10, T = 40."""
    recipe = AdaLoRA(init_r=12, target_r=4, tinit=5, tfinal=10)
    found = [recipe.budget(step, 40, 3) for step in range(41)]
    assert found[:6] == [36] * 6
    assert found[6:23] == [33, 30, 28, 26, 24, 22, 20, 19, 18, 17, 16, 15, 14, 14, 13, 13, 12]
    assert set(found[23:]) == {12} and all(x >= y for x, y in pairwise(found))


def test_right_after_each_cut_the_budget_is_kept_and_at_the_end_the_choice_stays():
    attachment = attach(technique("adalora", init_r=6, target_r=2, tinit=2, tfinal=4), tiny_base())
    recipe, matrices, seen = attachment.recipe, len(attachment.triplets), []
    after = attachment.after_step

    def watched(step, total):
        after(step, total)
        alive = sum(int(e.count_nonzero()) for e, _, _ in attachment.triplets.values())
        if step + 1 > 2:
            assert alive == recipe.budget(step + 1, total, matrices)
        seen.append({name: rows.clone() for name, rows in attachment.alive.items()})

    attachment.after_step = watched
    fit(attachment, steps=12)
    assert all(torch.equal(seen[7][name], seen[-1][name]) for name in seen[-1])
    state = attachment.state()
    assert sum(len(e) for name, e in state.items() if name.endswith("lora_E")) == 2 * matrices
    assert sum(attachment.findings(lambda: 0.0)["ranks"].values()) == 2 * matrices


def test_the_regulariser_is_in_training_only_and_reaches_p_and_q_at_once():
    base = tiny_base()
    attachment = attach(technique("adalora", orth_reg_weight=0.5), base)
    expected = torch.stack(
        [
            (gram - torch.eye(len(gram))).norm()
            for _, p, q in attachment.triplets.values()
            for gram in (p.T @ p, q @ q.T)
        ]
    ).mean()
    assert torch.isclose(attachment.penalty(), 0.5 * expected)
    before = {name: p.detach().clone() for name, p in attachment.params().items()}
    fit(attachment, steps=1, warmup_ratio=0.0)
    assert all(not torch.equal(p, before[name]) for name, p in attachment.params().items() if "lora_E" not in name)


def test_equal_ranks_are_a_plain_run_and_a_target_above_the_first_is_refused():
    attachment = attach(technique("adalora", init_r=4, target_r=4), tiny_base())
    fit(attachment, steps=6)
    assert set(attachment.findings(lambda: 0.0)["ranks"].values()) == {4}
    with pytest.raises(SettingError, match="init_r"):
        attach(technique("adalora", init_r=4, target_r=5), tiny_base())


def test_ties_keep_the_first_ranks():
    attachment = attach(technique("adalora", init_r=3, target_r=1), tiny_base())
    attachment._choose(4)
    assert [int(rows.sum()) for rows in list(attachment.alive.values())[:2]] == [3, 1]
