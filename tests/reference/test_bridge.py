"""PEFT's methods through the same contract as ours; what fails is listed, with the PEFT that it fails with."""

import json

import peft
import pytest
import torch

from tunewise.adaptation.artifact import load, save
from tunewise.core.errors import ArtifactError, SettingError, TechniqueError
from tunewise.techniques.peft_bridge import methods, survey
from tunewise.techniques.registry import make
from tunewise.testing import (
    CHECKS,
    attach,
    check_learns,
    check_save_load,
    fingerprint,
    fit,
    logits,
    tiny_base,
    tiny_task,
)


def short(name):
    return name.removeprefix("peft:")


# Settings that fit a width of 32.
SMALL = {
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 1},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 20},
    "miss": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": [0, 261, 262, 263, 264, 265, 266]},
    "vblora": {"vector_length": 4, "num_vectors": 16, "topk": 2},
    "waveft": {"n_frequency": 20},
}
# With PEFT 0.21.2: methods that cannot merge, and one that draws noise in training.
FAILING = {
    "adaption_prompt": {"check_merge"},  # is not built like PEFT's other tuners
    "beft": {"check_merge"},  # has no bias to merge into where linears have none
    "pvera": {"check_gradients"},  # samples its update for each token, in another order in another layout
}
# Methods that are refused, and the technique of ours that the refusal names.
REFUSED = {
    "adalora": "adalora",
    "cartridge": "prefix_tuning",
    "cpt": "prompt_tuning",
    "lily": "lora",
    "multitask_prompt_tuning": "mpt",
    "p_tuning": "p_tuning",
    "poly": "mpt",
    "prefix_tuning": "prefix_tuning",
    "prompt_tuning": "prompt_tuning",
    "shadow": "lst",
    "xlora": "lora",
}
TESTED_ABOVE = ("check_documented", "check_learns", "check_save_load")


def small(name, **settings):
    return make(f"peft:{name}", {f"peft:{name}": SMALL.get(name, {}) | settings})


@pytest.mark.parametrize("name", [kind.value.lower() for kind in peft.PeftType])
def test_every_method_of_peft_learns_and_reloads_or_is_refused_with_ours_named(name):
    if name in REFUSED:
        with pytest.raises((SettingError, TechniqueError), match=rf"peft:{name}\b.*; .*\b{REFUSED[name]}\b"):
            attach(small(name), tiny_base())
    else:
        check_learns(small(name), tiny_base("llama"))
        check_save_load(small(name), tiny_base("llama"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adamss", {"use_asa": True}, "use_asa=true: .* use adalora"),
        ("lora", {"init_lora_weights": "eva"}, 'init_lora_weights="eva": .* use lora'),
        ("lora", {"monteclora_config": {}}, "monteclora_config={}: it needs a term in the loss"),
    ],
)
def test_settings_that_need_calls_in_the_training_loop_are_refused(name, settings, message):
    recipe, base = small(name, **settings), tiny_base()
    assert recipe.why_not_trainable() == recipe.lacks(base, tiny_task()) != ""
    with pytest.raises(TechniqueError, match=message):
        attach(recipe, base)


def test_pefts_layers_train_with_their_dropout_and_answer_without():
    weights, noise = [], []
    for rate in (0.0, 0.5):
        attachment = attach(small("lora", lora_dropout=rate), tiny_base())
        fit(attachment, steps=2)
        weights.append(torch.cat([tensor.flatten() for tensor in attachment.state().values()]))
        noise.append(logits(attachment) - logits(attachment))
    assert not torch.equal(*weights)
    assert not any(difference.any() for difference in noise)


def test_the_base_stays_in_evaluation_mode_inside_of_pefts_layers():
    base = tiny_base()
    bare = list(base.model.modules())
    attachment = attach(small("lora"), base)
    attachment.before_step(0, 1)
    assert any(module.training for module in base.model.modules())
    assert not any(module.training for module in bare)
    attachment.after_step(0, 1)
    assert not any(module.training for module in base.model.modules())


def test_an_adalora_that_peft_trained_loads_with_the_ranks_that_it_kept(tmp_path):
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=2, total_step=8, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(tiny_base().model, config)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.tensor([[0, 5, 6, 7, 8, 9]])
    for step in range(8):
        theirs(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    theirs.eval()
    theirs.save_pretrained(tmp_path)
    expected = theirs(input_ids=ids).logits
    base = tiny_base()
    attachment = load(tmp_path, base=base).attachment
    assert torch.allclose(base.model(input_ids=ids).logits, expected, atol=1e-5)
    with pytest.raises(TechniqueError, match="use adalora"):
        fit(attachment)


@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ not in TESTED_ABOVE], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", [name for name in map(short, methods()) if name not in REFUSED])
def test_contract(name, check):
    settings = SMALL.get(name, {})
    try:
        check(make(f"peft:{name}", {f"peft:{name}": settings}), tiny_base("llama"))
    except (Exception, AssertionError) as error:
        assert check.__name__ in FAILING.get(name, ()), f"{name} fails {check.__name__}: {error!r}"
    else:
        assert check.__name__ not in FAILING.get(name, ()), f"{name} passes {check.__name__} now; take it off the list"


def test_pefts_adapters_of_any_kind_load_here(tmp_path):
    for name in ("ia3", "loha", "oft", "vera"):
        torch.manual_seed(0)
        kind = getattr(peft, {"ia3": "IA3Config", "loha": "LoHaConfig", "oft": "OFTConfig", "vera": "VeraConfig"}[name])
        theirs = peft.get_peft_model(tiny_base().model, kind(task_type="CAUSAL_LM"))
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        ids = torch.tensor([[0, 5, 6, 7, 8, 9]])
        expected = theirs(input_ids=ids).logits
        theirs.save_pretrained(tmp_path / name)
        base = tiny_base()
        load(tmp_path / name, base=base)
        assert torch.allclose(base.model(input_ids=ids).logits, expected, atol=1e-5), name


def test_ours_load_in_peft(tmp_path):
    base = tiny_base()
    attachment = attach(make("peft:ia3"), base)
    fit(attachment)
    ids = torch.tensor([[0, 5, 6, 7, 8, 9]])
    expected = base.model(input_ids=ids).logits
    save(attachment, tiny_task(), tmp_path / "adaptation")
    theirs = peft.PeftModel.from_pretrained(tiny_base().model, str(tmp_path / "adaptation"))
    assert torch.allclose(theirs(input_ids=ids).logits, expected, atol=1e-5)


def test_wrong_names_and_fields_are_refused():
    with pytest.raises(SettingError, match='did you mean "peft:ia3"'):
        make("peft:ia4")
    with pytest.raises(SettingError, match='did you mean "target_modules"'):
        make("peft:ia3", {"peft:ia3": {"target_module": ["q_proj"]}})
    with pytest.raises(SettingError, match="no setting"):
        make("peft:lora", {"peft:lora": {"auto_mapping": {"parent_library": "os"}}})
    base = tiny_base()
    before = fingerprint(base)
    with pytest.raises(TechniqueError, match="PEFT cannot put peft:miss on this model"):
        attach(make("peft:miss"), base)
    base.release()
    assert fingerprint(base) == before


def test_an_adapters_file_chooses_nothing_that_is_imported(tmp_path):
    theirs = peft.get_peft_model(tiny_base().model, peft.IA3Config(task_type="CAUSAL_LM"))
    theirs.save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    said = json.loads(settings.read_text())
    evil = {"auto_mapping": {"base_model_class": "x", "parent_library": "evil"}, "revision": "evil"}
    settings.write_text(json.dumps({**said, **evil}))
    load(tmp_path, base=tiny_base())
    settings.write_text(json.dumps({**said, "peft_type": "EVIL"}))
    with pytest.raises(ArtifactError, match="has no method"):
        load(tmp_path, base=tiny_base())


def test_a_survey_says_what_works_and_leaves_the_base_bare():
    base = tiny_base()
    before = fingerprint(base)
    rows = {row["technique"]: row for row in survey(base)}
    assert rows["peft:ia3"] == {
        "technique": "peft:ia3",
        "parameters": rows["peft:ia3"]["parameters"],
        "trains": True,
        "merges": True,
        "reason": None,
    }
    assert "the number of its task" in rows["peft:poly"]["reason"] and not rows["peft:poly"]["trains"]
    assert "use lora" in rows["peft:lily"]["reason"] and not rows["peft:lily"]["trains"]
    assert fingerprint(base) == before


@pytest.mark.parametrize(("architecture", "there"), [("gpt2", "c_proj"), ("phi3", "down_proj"), ("gpt_neox", "dense")])
def test_a_target_that_names_nothing_is_refused_where_peft_leaves_it_out(architecture, there):
    """PEFT takes what it finds, which is not the keys of these models."""
    base = tiny_base(architecture)
    before = fingerprint(base)
    settings = {"target_modules": ["k_proj", there], "feedforward_modules": []}
    with pytest.raises(TechniqueError, match='target_modules names "k_proj", but no module here is called that'):
        attach(make("peft:ia3", {"peft:ia3": settings}), base)
    base.release()
    assert fingerprint(base) == before


def test_an_adapter_that_names_modules_of_other_models_loads(tmp_path):
    torch.manual_seed(0)
    names = ["q_proj", "query_key_value", "c_attn"]
    theirs = peft.get_peft_model(tiny_base().model, peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=names))
    theirs.save_pretrained(tmp_path / "loha")
    loaded = load(tmp_path / "loha", base=tiny_base())
    assert all("q_proj" in name for name in loaded.attachment.params())


def test_a_method_that_is_told_nothing_to_train_says_what_it_needs():
    base = tiny_base("llama")
    with pytest.raises(TechniqueError, match="trains nothing on this model; give its token_indices"):
        make("peft:trainable_tokens").attach(base, torch.Generator())
    given = make("peft:trainable_tokens", {"peft:trainable_tokens": {"token_indices": [5, 6]}})
    attachment = given.attach(base, torch.Generator())
    assert sum(parameter.numel() for parameter in attachment.params().values()) == 2 * base.model.config.hidden_size
    attachment.detach()
