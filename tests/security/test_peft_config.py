"""Configurations of PEFT adapters from anybody: no expression is run, no huge number allocated, no type trusted."""

import json
import re
import shutil

import peft
import pytest
from safetensors.torch import load_file, save_file

from adaptation_files import contents, write_contents
from tunewise.adaptation.artifact import load, save
from tunewise.core.errors import ArtifactError, RequestError, SettingError, TechniqueError
from tunewise.engine.model import load_base
from tunewise.techniques.building.peft_config import is_name, value_of
from tunewise.techniques.peft_bridge import methods
from tunewise.techniques.registry import make
from tunewise.testing import attach, fingerprint, tiny_base, tiny_task

EVIL = "([a-z0-9._]+)+!"  # takes for ever on the name of a module
KINDS = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig, "ia3": peft.IA3Config, "vera": peft.VeraConfig}
KINDS |= {"lokr": peft.LoKrConfig, "oft": peft.OFTConfig, "fourierft": peft.FourierFTConfig, "boft": peft.BOFTConfig}
KINDS |= {"adalora": peft.AdaLoraConfig, "prompt_tuning": peft.PromptTuningConfig}
FEW = {"fourierft": {"n_frequency": 20}, "adalora": {"total_step": 4}, "vera": {"r": 4}}
FEW |= {"prompt_tuning": {"num_virtual_tokens": 4}}
NAMING = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "feedforward_modules")
PATTERNS = ("rank_pattern", "alpha_pattern", "n_frequency_pattern", "block_size_pattern", "lambda_pattern")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A folder with an adapter of each kind, as PEFT saves it."""
    root = tmp_path_factory.mktemp("adapters")
    for name, kind in KINDS.items():
        theirs = peft.get_peft_model(tiny_base().model, kind(task_type="CAUSAL_LM", **FEW.get(name, {})))
        theirs.save_pretrained(root / name)
    return root


@pytest.fixture
def changed(adapters, tmp_path):
    """A function that copies an adapter with other fields in its configuration and returns its folder."""

    def change(name, **fields):
        folder = shutil.copytree(adapters / name, tmp_path / "adapter", dirs_exist_ok=True)
        file = folder / "adapter_config.json"
        text = json.dumps({**json.loads(file.read_text()), **fields})
        file.write_text(text)
        return folder

    return change


def refused(folder, base=None):
    """The error of loading an adapter; the base keeps its bits and has no hook left."""
    base = base or tiny_base()
    before = fingerprint(base)
    with pytest.raises(RequestError) as error:
        load(folder, base=base)
    assert fingerprint(base) == before and not any(module._forward_hooks for module in base.model.modules())
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


@pytest.fixture
def expressions(monkeypatch):
    """The texts that are compiled as regular expressions."""
    seen = []
    compiled = re._compile

    def watched(pattern, flags):
        seen.append(pattern)
        return compiled(pattern, flags)

    monkeypatch.setattr(re, "_compile", watched)
    return seen


@pytest.mark.figure("S4")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.timeout(120)
def test_no_expression_of_a_file_is_run(name, changed, expressions):
    declared = {*peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name.upper())].__dataclass_fields__}
    for field in (*NAMING, *PATTERNS):
        if field not in declared:
            continue
        forms = [{EVIL: 4}] if field in PATTERNS else [EVIL, [EVIL], ["q_proj", EVIL]]
        for value in forms:
            folder = changed(name, **{field: value})
            try:
                load(
                    folder, base=tiny_base()
                )  # what a LoRA changes follows from its tensors, and prompts change nothing
                assert name in ("lora", "prompt_tuning")
            except ArtifactError as error:
                assert field in str(error)
            assert not any("a-z0-9" in str(pattern) for pattern in expressions)


def test_the_watch_sees_an_expression_that_is_run(expressions):
    assert re.fullmatch("q+", "qq") and "q+" in expressions


@pytest.mark.parametrize("name", [name.removeprefix("peft:") for name in methods()])
def test_no_expression_of_a_setting_is_taken(name):
    fields = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name.upper())]
    for field in (*NAMING, *PATTERNS):
        if field in fields.__dataclass_fields__:
            value = {EVIL: 4} if field in PATTERNS else [EVIL]
            with pytest.raises(SettingError, match=f"{field}.*regular expression|{field}.*type"):
                make(f"peft:{name}", {f"peft:{name}": {field: value}})


@pytest.mark.parametrize("text", ["q_proj", "model.layers.0.self_attn.q_proj", "^lm_head", "all-linear", "", "db1"])
def test_names(text):
    assert is_name(text)


@pytest.mark.parametrize("text", ["q.*", "a|b", "(a)", "[a]", "a{2}", "a$", "\\d", "a b", "a^", "a?", "é", "x\n"])
def test_expressions(text):
    assert not is_name(text)


def test_a_name_means_a_path_or_its_end():
    values = {"^q_proj": 1, "layers.1.q_proj": 2, "q_proj": 3, "roj": 4}
    for path, value in (("q_proj", 1), ("a.layers.1.q_proj", 2), ("a.layers.11.q_proj", 3), ("a.v_proj", None)):
        assert value_of(path, values) == value


HUGE = [10**7, 2**62, -(10**9), 1e300]


@pytest.mark.figure("S4")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.timeout(200)
def test_no_number_is_allocated_before_it_is_bounded(name, changed):
    """With a tiny base 2^27 values are room enough for all that a bounded number can ask for."""
    declared = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name.upper())].__dataclass_fields__
    skipped = {"task_type", "peft_type", "revision", "auto_mapping", "inference_mode"}
    for field, declaration in declared.items():
        if (
            field in skipped
            or not isinstance(declaration.default, (int, float))
            or declaration.default in (True, False)
        ):
            continue
        seed = field.endswith(("seed", "key"))
        for value in HUGE:
            folder = changed(name, **{field: value})
            if seed and abs(value) < 2**64:
                continue
            assert field in refused(folder), (field, value)


@pytest.mark.figure("S4")
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lora", {"r": 10**7}),
        ("lora", {"rank_pattern": {"q_proj": 10**7}}),
        ("lora", {"rank_pattern": {"q_proj": "4"}}),
        ("lora", {"rank_pattern": {"q_proj": [4]}}),
        ("lora", {"rank_pattern": ["q_proj"]}),
        ("lora", {"alpha_pattern": {"q_proj": None}}),
        ("lora", {"lora_alpha": 10**7}),
        ("lora", {"lora_alpha": "16"}),
        ("lora", {"use_rslora": "yes"}),
        ("lora", {"use_dora": 1}),
        ("lora", {"target_modules": {"q_proj": 1}}),
        ("lora", {"modules_to_save": [3]}),
        ("lora", {"bias": 3}),
        ("lora", {"revision": 3}),
        ("lora", {"peft_type": ["LORA"]}),
        ("lora", {"peft_type": None}),
        ("loha", {"rank_pattern": {"q_proj": {"a": 1}}}),
        ("vera", {"r": [4]}),
        ("prompt_tuning", {"num_virtual_tokens": 10**12}),
        ("prompt_tuning", {"num_virtual_tokens": "4"}),
    ],
    ids=str,
)
def test_a_field_of_another_type_or_out_of_bounds_is_refused_by_name(name, fields, changed):
    message = refused(changed(name, **fields))
    assert next(iter(fields)) in message or "has no method" in message


@pytest.mark.parametrize(
    "text",
    [
        '{"peft_type": "LORA", "lora_alpha": 1' + "0" * 400 + "}",
        '{"peft_type": "LORA", "lora_alpha": NaN}',
        '{"peft_type": "LORA", "lora_alpha": 1e999}',
        '{"peft_type": "LORA", "r": 4, "r": 8}',
        '{"peft_type": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "[]",
        '"x"',
        "",
        '{"peft_type": "LORA"',
    ],
    ids=["alpha", "NaN", "infinity", "twice", "deep", "list", "text", "empty", "cut"],
)
def test_what_is_no_strict_json_is_refused(text, changed):
    folder = changed("lora")
    (folder / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refused(folder)


def test_ranks_are_those_of_the_tensors(changed):
    """An expression that chose them is not needed for it."""
    folder = changed("lora", r=8, rank_pattern={r".*layers\.1\..*": 2}, target_modules=r".*_proj")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if ".layers.1." in name:
            tensors[name] = (tensors[name][:2] if "lora_A" in name else tensors[name][:, :2]).contiguous()
    save_file(tensors, file)
    attachment = load(folder, base=tiny_base()).attachment
    ranks = {name: len(p) for name, p in attachment.params().items() if name.endswith("lora_A")}
    assert {rank for name, rank in ranks.items() if ".layers.1." in name} == {2}
    assert {rank for name, rank in ranks.items() if ".layers.1." not in name} == {8}


def test_alphas_by_name_come_whole(changed):
    folder = changed("lora", alpha_pattern={"layers.1.self_attn.q_proj": 12.3456789})
    attachment = load(folder, base=tiny_base()).attachment
    assert attachment.scales["model.layers.1.self_attn.q_proj"] == 12.3456789 / 8


@pytest.mark.parametrize("fields", [{"target_modules": EVIL}, {"modules_to_save": [EVIL]}, {"rank_pattern": {EVIL: 2}}])
def test_an_adaptation_of_pefts_methods_is_checked_too(fields, tmp_path):
    base = tiny_base()
    save(attach(make("peft:loha"), base), tiny_task(), tmp_path / "a")
    base.release()
    facts, tensors = contents(tmp_path / "a")
    facts["settings"] |= fields
    write_contents(tmp_path / "a", facts, tensors)
    assert next(iter(fields)) in refused(tmp_path / "a", base)


@pytest.mark.parametrize("text", ["lm_head.*", "(a+)+$", "re:.*lm_head"])
def test_a_quantisation_that_names_modules_by_an_expression_is_refused(text, tmp_path, save_tiny):
    folder = save_tiny(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    for fields in ({"modules_to_not_convert": [text]}, {"dynamic": {text: {}}}, {"groups": {"a": {"targets": [text]}}}):
        content["quantization_config"] = {"quant_method": "fp8", **fields}
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(RequestError, match="quantization_config, a regular expression"):
            load_base(folder)


def test_what_peft_would_build_is_bounded_by_the_base(monkeypatch):
    monkeypatch.setattr("tunewise.techniques.peft_bridge._LEAST_ROOM", 0)
    base = tiny_base()
    before = fingerprint(base)
    attach(make("peft:loha", {"peft:loha": {"r": 4}}), base).detach()
    with pytest.raises(TechniqueError, match=r"it would hold more than .* values, twice what the model holds"):
        attach(make("peft:loha", {"peft:loha": {"r": 4096}}), base)
    base.release()
    assert fingerprint(base) == before
