"""PEFT's methods through the same contract as ours; what fails is listed, with the PEFT that it fails with."""

import json

import peft
import pytest
import torch

from tunewise.adaptation.artifact import load, save
from tunewise.core.errors import ArtifactError, SettingError, TechniqueError
from tunewise.techniques.peft_bridge import methods, survey
from tunewise.techniques.registry import make
from tunewise.testing import CHECKS, attach, fingerprint, fit, tiny_base, tiny_task

# Settings that fit a width of 32.
SMALL = {
    "adalora": {"total_step": 100},
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
EVERY = {check.__name__ for check in CHECKS} - {"check_documented", "check_recipe", "check_identity_at_start"}
# With PEFT 0.21.2: methods that cannot merge, and those that want more than ids of tokens.
FAILING = {
    "adaption_prompt": {"check_merge"},  # is not built like PEFT's other tuners
    "beft": {"check_merge"},  # has no bias to merge into where linears have none
    "lily": {"check_merge", "check_gradients"},  # routes by an average over a whole row, whatever is packed into it
    "poly": EVERY,  # wants task_ids with every pass
    "shadow": EVERY - {"check_strict_load"},  # cannot follow packed rows
    "xlora": EVERY - {"check_same_roles"} | {"check_identity_at_start"},  # wants trained LoRAs to mix, and says so
}


@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ != "check_documented"], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", [name.removeprefix("peft:") for name in methods()])
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
    assert "task_ids" in rows["peft:poly"]["reason"] and not rows["peft:poly"]["trains"]
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
