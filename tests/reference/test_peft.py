"""PEFT as an oracle and as an interchange format: ours load there, theirs load here, with equal logits."""

import json
from contextlib import suppress

import peft
import pytest
import torch

from tunewise.adaptation.artifact import load, save
from tunewise.core.errors import ArtifactError, TechniqueError
from tunewise.engine.anatomy import oriented
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, target_logits
from tunewise.engine.model import Base
from tunewise.techniques.building.nf4 import dequantise, quantise_by_bitsandbytes
from tunewise.techniques.registry import make
from tunewise.testing import attach, fingerprint, fit, tiny_base, tiny_task

ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "qwen3")


def shaken(model):
    """Adapter weights that are not zero, so that a lost tensor shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def plain_logits(model):
    return model(input_ids=torch.tensor([[0, 5, 6, 7, 8, 9]])).logits[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_lora_loads_in_peft(architecture, tmp_path):
    base = tiny_base(architecture)
    attachment = attach(make("lora", {"lora": {"r": 4, "lora_alpha": 12}}), base)
    fit(attachment)
    expected = plain_logits(base.model)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    attachment.detach()
    theirs = peft.PeftModel.from_pretrained(base.model, str(tmp_path / "adaptation"))
    assert torch.allclose(plain_logits(theirs), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pefts_lora_loads_here(architecture, tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = shaken(peft.get_peft_model(tiny_base(architecture).model, config))
    expected = plain_logits(theirs)
    theirs.save_pretrained(tmp_path)
    base = tiny_base(architecture)
    loaded = load(tmp_path, base=base)
    assert torch.allclose(plain_logits(base.model), expected, atol=1e-5)
    loaded.attachment.merge()
    assert torch.allclose(plain_logits(base.model), expected, atol=1e-4)


def test_lora_gradients_equal_pefts():
    ours, config = tiny_base("llama", torch.float64), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    theirs = shaken(peft.get_peft_model(tiny_base("llama", torch.float64).model, config, autocast_adapter_dtype=False))
    attachment = attach(make("lora", {"lora": {"r": 4, "lora_alpha": 8}}), ours)
    named = dict(theirs.named_parameters())
    pairs = [(p, named[f"base_model.model.{name}.default.weight"]) for name, p in attachment.params().items()]
    for mine, other in pairs:
        mine.data = other.detach().clone()
    ids = torch.tensor([[0, 5, 6, 7, 8, 9]])
    for model in (ours.model, theirs):
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:]).backward()
    for mine, other in pairs:
        assert torch.allclose(mine.grad, other.grad, rtol=1e-6, atol=1e-12)


def test_prompt_tuning_both_ways(tmp_path):
    base = tiny_base()
    attachment = attach(make("prompt_tuning", {"prompt_tuning": {"num_virtual_tokens": 5}}), base)
    fit(attachment)
    virtual = list(range(320, 325))
    with torch.no_grad():
        expected = base.model(input_ids=torch.tensor([[*virtual, 0, 5, 6, 7, 8, 9]])).logits[0, 5:]
    save(attachment, tiny_task(), tmp_path / "ours")
    attachment.detach()
    theirs = peft.PeftModel.from_pretrained(tiny_base().model, str(tmp_path / "ours"))
    assert torch.allclose(plain_logits(theirs)[-6:], expected, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    load(tmp_path / "theirs", base=base)
    with torch.no_grad():
        again = base.model(input_ids=torch.tensor([[*virtual, 0, 5, 6, 7, 8, 9]])).logits[0, 5:]
    assert torch.equal(again, expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "variant",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"up_proj": 2, "c_fc": 2}, "alpha_pattern": {"up_proj": 3, "c_fc": 3}},
        {"init_lora_weights": "gaussian"},
    ],
    ids=lambda variant: next(iter(variant)),
)
def test_pefts_variants_load_here(architecture, variant, tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **variant)
    theirs = shaken(peft.get_peft_model(tiny_base(architecture).model, config))
    expected = plain_logits(theirs)
    theirs.save_pretrained(tmp_path)
    base = tiny_base(architecture)
    loaded = load(tmp_path, base=base)
    assert torch.allclose(plain_logits(base.model), expected, atol=1e-4)
    loaded.attachment.merge()
    assert torch.allclose(plain_logits(base.model), expected, atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "mistral", "gemma", "phi"])
def test_prefix_tuning_both_ways(architecture, tmp_path):
    """As keys and values in a cache, rotated where the model rotates; grouped heads too."""
    base = tiny_base(architecture)
    attachment = attach(make("prefix_tuning", {"prefix_tuning": {"num_virtual_tokens": 5}}), base)
    fit(attachment)
    ids = torch.tensor([[*range(320, 325), 0, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits[0, 5:]
    save(attachment, tiny_task(), tmp_path / "ours")
    attachment.detach()
    theirs = peft.PeftModel.from_pretrained(tiny_base(architecture).model, str(tmp_path / "ours"))
    assert torch.allclose(plain_logits(theirs), expected, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    load(tmp_path / "theirs", base=base)
    with torch.no_grad():
        assert torch.allclose(base.model(input_ids=ids).logits[0, 5:], expected, atol=1e-4)


def test_a_prefix_under_normalised_keys_goes_out_and_is_refused_back(tmp_path):
    base = tiny_base("qwen3")
    attachment = attach(make("prefix_tuning", {"prefix_tuning": {"num_virtual_tokens": 5}}), base)
    fit(attachment)
    with torch.no_grad():
        expected = base.model(input_ids=torch.tensor([[*range(320, 325), 0, 5, 6, 7, 8, 9]])).logits[0, 5:]
    save(attachment, tiny_task(), tmp_path / "ours")
    attachment.detach()
    theirs = peft.PeftModel.from_pretrained(tiny_base("qwen3").model, str(tmp_path / "ours"))
    assert torch.allclose(plain_logits(theirs), expected, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="cannot be taken over"):
        load(tmp_path / "theirs", base=base)


PORTABLE = {
    "lora": {"use_rslora": True, "r": 4, "rank_pattern": ["q=2"], "alpha_pattern": ["down=7"]},
    "qlora": {"r": 4},
    "dylora": {"r": 4, "rank": 2},
    "adalora": {"init_r": 6, "target_r": 3},
    "krona": {"export_rank": 64},
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "llama-tied"])
@pytest.mark.parametrize(
    "settings",
    [*PORTABLE.items(), *(("lora", each) for each in ({"use_dora": True}, {"init_lora_weights": "pissa"}))],
    ids=str,
)
def test_ours_load_in_peft(architecture, settings, tmp_path):
    """As plain LoRA, with equal logits; qlora's over the weights that its four bits stand for."""
    name, chosen = settings
    base, other = tiny_base(architecture), tiny_base(architecture)
    attachment = attach(make(name, {name: chosen}), base)
    fit(attachment, steps=8)
    expected = plain_logits(base.model)
    for path, packed in getattr(attachment, "packed", {}).items():
        oriented(other.model.get_submodule(path)).data.copy_(dequantise(packed))
    save(attachment, tiny_task(), tmp_path / "adaptation")
    theirs = peft.PeftModel.from_pretrained(other.model, str(tmp_path / "adaptation"))
    assert torch.allclose(plain_logits(theirs), expected, atol=1e-4)
    config = json.loads((tmp_path / "adaptation" / "adapter_config.json").read_text())
    assert not config["use_rslora"] and "rank_pattern" not in config


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
@pytest.mark.parametrize("ends", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q"]])
def test_embeddings_and_head_adapt_together_where_they_are_tied(architecture, ends, tmp_path):
    base = tiny_base(architecture)
    attachment = attach(make("lora", {"lora": {"target_modules": ends, "r": 4}}), base)
    fit(attachment, steps=8)
    expected = plain_logits(base.model)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    theirs = peft.PeftModel.from_pretrained(tiny_base(architecture).model, str(tmp_path / "adaptation"))
    assert torch.allclose(plain_logits(theirs), expected, atol=1e-4)
    attachment.merge()
    assert torch.allclose(plain_logits(base.model), expected, atol=1e-4)
    if base.anatomy.tied:
        assert base.anatomy.tied and torch.equal(base.anatomy.head.weight, base.anatomy.embedding.weight)


def reloaded(folder, architecture):
    """What PEFT's own library computes with an adapter's folder."""
    return plain_logits(peft.PeftModel.from_pretrained(tiny_base(architecture).model, str(folder)))


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "phi"])
@pytest.mark.parametrize(
    "init",
    [True, False, "gaussian", "eva", "orthogonal", "mica", "pissa", "olora", "pissa_niter_4", "lora_ga", "loftq"],
)
def test_every_start_of_pefts_gives_its_logits_or_is_refused_by_name(init, architecture, tmp_path):
    """PiSSA and its like take a part out of the base, and PEFT takes it out again whenever it loads the adapter."""
    torch.manual_seed(0)
    targets = ["c_attn", "c_fc"] if architecture == "gpt2" else ["q_proj", "v_proj"]
    more = {"loftq_config": peft.LoftQConfig(loftq_bits=4)} if init == "loftq" else {}
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, init_lora_weights=init, **more)
    if init == "loftq":  # its start needs a GPU, but not the folder that says so
        config.init_lora_weights = True
    theirs = shaken(peft.get_peft_model(tiny_base(architecture).model, config))
    if init == "loftq":
        config.init_lora_weights, config.loftq_config = init, {"loftq_bits": 4, "loftq_iter": 1}
    try:
        theirs.save_pretrained(tmp_path)
        expected = reloaded(tmp_path, architecture)
    except Exception:  # PEFT cannot do it here itself, such as OLoRA on transposed weights
        expected = None
    base, bare = tiny_base(architecture), fingerprint(tiny_base(architecture))
    if expected is None or init in ("pissa_niter_4", "lora_ga"):
        with pytest.raises(ArtifactError, match=r"init_lora_weights=.*path_initial_model_for_weight_conversion"):
            load(tmp_path, base=base)
    else:
        loaded = load(tmp_path, base=base)
        assert torch.allclose(plain_logits(base.model), expected, atol=1e-4)
        save(loaded.attachment, tiny_task(), tmp_path / "ours")
        base.release()
        assert fingerprint(base) == bare
        load(tmp_path / "ours", base=base)
        assert torch.allclose(plain_logits(base.model), expected, atol=1e-4)
        base.attached[-1].merge()
        assert torch.allclose(plain_logits(base.model), expected, atol=1e-3)
    base.release()
    assert fingerprint(base) == bare


FIELDS = {
    "use_dora": {"use_dora": True},
    "use_rslora": {"use_rslora": True},
    "rank_pattern as an expression": {"rank_pattern": {r"layers\.0\..*(q|v)_proj": 2, "q_proj": 3}},
    "alpha_pattern as an expression": {"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 3, r".*\.v_proj": 7}},
    "alpha_pattern twice": {"alpha_pattern": {"q_proj": 3, "self_attn.q_proj": 9}},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "bias of the targets": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "layers_to_transform": {"layers_to_transform": [1]},
    "an expression for targets": {"target_modules": r".*layers\.1\..*_proj"},
    "exclude_modules": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "lm_head saved": {"modules_to_save": ["lm_head"]},
    "both ends saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "a norm saved": {"modules_to_save": ["input_layernorm"]},
    "single tokens": {"trainable_token_indices": [3, 5, 8]},
    "single tokens by name": {"trainable_token_indices": {"embed_tokens": [6, 7]}},
    "PiSSA and DoRA": {"init_lora_weights": "pissa", "use_dora": True},
    "PiSSA with a saved head": {"init_lora_weights": "pissa", "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both ends adapted": {"target_modules": ["embed_tokens", "lm_head"]},
    "embeddings with DoRA": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "replicated layers": {"layer_replication": [[0, 2], [1, 2]]},
    "single parameters": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "activated": {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
    "kasa": {"kasa_config": {}},
}


PEFT_FAILS = {("layer_replication", "qwen2")}  # what PEFT cannot run after it has loaded it


@pytest.mark.parametrize("save_embeddings", ["auto", True])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "qwen2"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_every_field_of_a_lora_works_as_in_peft_or_is_refused_by_name(fields, architecture, save_embeddings, tmp_path):
    torch.manual_seed(0)
    given = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], **fields}
    theirs = shaken(peft.get_peft_model(tiny_base(architecture).model, peft.LoraConfig(**given)))
    theirs.save_pretrained(tmp_path, save_embedding_layers=save_embeddings)
    if any((name, architecture) in PEFT_FAILS for name in fields):
        with pytest.raises(IndexError):
            reloaded(tmp_path, architecture)
        return
    expected = reloaded(tmp_path, architecture)
    base = tiny_base(architecture)
    bare = fingerprint(base)
    try:
        loaded = load(tmp_path, base=base)
    except ArtifactError as error:
        assert any(name in str(error) for name in fields), error
    else:
        assert torch.allclose(plain_logits(base.model), expected, atol=1e-4)
        assert torch.allclose(head_logits(base), expected[:5], atol=1e-4)
        save(loaded.attachment, tiny_task(), tmp_path / "ours")
        base.release()
        load(tmp_path / "ours", base=base)
        assert torch.allclose(plain_logits(base.model), expected, atol=1e-4)
        with suppress(TechniqueError):  # what PEFT cannot merge it says
            base.attached[-1].merge()
            assert torch.allclose(plain_logits(base.model), expected, atol=1e-3)
            base.model.save_pretrained(tmp_path / "merged")
            merged = type(base.model).from_pretrained(tmp_path / "merged")
            assert torch.allclose(plain_logits(merged), expected, atol=1e-3)
    base.release()
    assert fingerprint(base) == bare


@torch.no_grad()
def head_logits(base):
    """The logits by the way that scoring takes: the inner model, and then its head."""
    batch = batch_of(base, [TokenSequence([0, 5, 6, 7, 8, 9], [False] + [True] * 5, 1)])
    return target_logits(base, batch)


@pytest.mark.parametrize("pattern", ["(a+)+", "(.*)(.*)(.*)x", "((a|b)*)*$", "(?=a)q_proj", "["])
def test_an_expression_that_chooses_alphas_is_refused(pattern, tmp_path):
    theirs = peft.get_peft_model(tiny_base().model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    theirs.save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "alpha_pattern": {pattern: 3}}))
    with pytest.raises(ArtifactError, match="alpha_pattern"):
        load(tmp_path, base=tiny_base())


def test_a_field_of_a_newer_peft_is_refused_by_name(tmp_path):
    theirs = peft.get_peft_model(tiny_base().model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    theirs.save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps({**config, "use_tomorrow": True, "unused": None}))
    with pytest.raises(ArtifactError, match="use_tomorrow=True"):
        load(tmp_path, base=tiny_base())
    settings.write_text(json.dumps({**config, "init_lora_weights": "tomorrow"}))
    with pytest.raises(ArtifactError, match="init_lora_weights='tomorrow'"):
        load(tmp_path, base=tiny_base())


def test_hostile_adapters_are_refused_and_the_base_keeps_its_bits(tmp_path):
    from safetensors.torch import load_file, save_file

    base = tiny_base()
    before = Base(base.model, base.tokenizer).fingerprint
    config = peft.LoraConfig(r=4, target_modules=["q_proj"])
    peft.get_peft_model(tiny_base().model, config).save_pretrained(tmp_path)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    good, said = load_file(file), json.loads(settings.read_text())
    name = next(iter(good))
    for tensors in (
        {**good, "base_model.model.model.embed_tokens.weight": torch.zeros(320, 32)},
        {key: value for key, value in good.items() if key != name},
        {**good, name: torch.full_like(good[name], float("nan"))},
        {**good, name: good[name][:, :3].contiguous()},
        {},
    ):
        save_file(tensors, file)
        with pytest.raises(ArtifactError, match="refused"):
            load(tmp_path, base=base)
    save_file(good, file)
    for change in ({"r": 10**9}, {"r": "x"}, {"peft_type": "EVIL"}, {"lora_alpha": -1}, {"base_model_name_or_path": 3}):
        settings.write_text(json.dumps({**said, **change}))
        with pytest.raises(ArtifactError):
            load(tmp_path, base=None if "base_model_name_or_path" in change else base)
    assert Base(base.model, base.tokenizer).fingerprint == before
    assert not any(module._forward_hooks for module in base.model.modules())


def test_bitsandbytes_packs_float64_as_the_float32_that_it_takes():
    pytest.importorskip("bitsandbytes")
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    packed, exact = quantise_by_bitsandbytes(weight), quantise_by_bitsandbytes(weight.double())
    assert exact.state.dtype == torch.float32  # its kernels on a GPU refuse float64
    assert dequantise(exact).dtype == torch.float64
    assert torch.equal(dequantise(exact), dequantise(packed).double())
