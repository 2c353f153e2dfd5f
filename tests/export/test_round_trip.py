"""Every technique through every format that it can take: the export says what the trained model says, or is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tunewise.adaptation.artifact import load, save
from tunewise.contract.attachment import Attachment
from tunewise.core.errors import RequestError, SettingError, TechniqueError, TunewiseError
from tunewise.engine.model import load_base
from tunewise.engine.tiny import tiny_base, tiny_task
from tunewise.export.export import export
from tunewise.export.format import formats
from tunewise.export.formats.gguf import model_problem
from tunewise.fitting.scoring import encoder_for
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, fit

DOCS = Path(__file__).parents[2] / "docs"
CHECKED = ("peft", "merged", "lora", "sparse", "gguf", "ollama")  # onnx takes seconds each: it has its own test
ARCHITECTURES = ("llama", "gpt2")
WEIGHTS = {"merged", "gguf", "ollama"}
# What works for the settings that the techniques are given here; what is not named is refused. Of a technique that has
# no line here, what is written must be right, and the rest must be refused.
EXPECTED = {
    "base": WEIGHTS | {"sparse"},
    "icl": set(),
    "rag": set(),
    "full": WEIGHTS,
    "last_layers": WEIGHTS,
    "bitfit": WEIGHTS | {"sparse"},
    **{name: WEIGHTS | {"lora", "sparse"} for name in ("lt_sft", "diff_pruning", "fish_mask", "threshold_mask")},
    **{name: set() for name in ("adapter", "lst", "mpt", "p_tuning", "pasta")},
    "prompt_tuning": {"peft"},
    "prefix_tuning": {"peft"},
    **{name: WEIGHTS | {"lora", "peft"} for name in ("lora", "qlora", "adalora", "dylora")},
    "krona": WEIGHTS | {"lora"},
}
OTHERWISE = {
    ("llama", "bitfit"): {"merged"},  # it adds biases there, which neither GGUF nor a list of entries holds
    ("llama", "bitfit+lora"): {"merged"},
    ("gpt2", "last_layers"): WEIGHTS | {"sparse"},  # the head is tied and so left alone: less than a third is changed
}
COMPOSED = {
    "icl+lora": set(),
    "lora+prompt_tuning": set(),
    "bitfit+lora": WEIGHTS,
}
# Their state is made by looking at the task or by training; the others' is only moved, which takes no time.
TRAINED = ("icl", "rag", "icl+lora", "adalora", "fish_mask", "mpt", "diff_pruning", "lt_sft", "threshold_mask")
SETTINGS = {
    "lora": {"r": 2},
    "threshold_mask": {"init": "uniform"},  # otherwise a few steps switch nothing off
    "dylora": {"r": 4},
    "adalora": {"init_r": 3, "target_r": 2},
    "mpt": {"sources": ["world:reviews"]},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A function that saves a tiny model of an architecture, once, as a Hugging Face folder."""
    root = tmp_path_factory.mktemp("bases")

    def place(architecture):
        folder = root / architecture
        if not folder.exists():
            base = tiny_base(architecture)
            base.model.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)
        return folder

    return place


def fitted(name, folder, base, settings=None, noise=0.05):
    """An adaptation whose every trained number is moved, so that a lost one shows; with no training to wait for."""
    attachment = make(name, settings or SETTINGS).resolved(base).attach(base, torch.Generator().manual_seed(0))
    for phase in range(attachment.phases):
        attachment.start_phase(phase)
        moved = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in attachment.params().values():
                parameter.add_(torch.randn(parameter.shape, generator=moved) * noise)
    save(attachment, tiny_task(), folder)
    base.release()
    return folder


def trained(name, folder, base):
    """An adaptation after a few steps."""
    attachment = attach(make(name, SETTINGS), base)
    fit(attachment, steps=4)
    save(attachment, tiny_task(), folder)
    base.release()


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*all_techniques(), *COMPOSED])
def test_every_technique_through_every_format(architecture, name, places, tmp_path):
    base = load_base(places(architecture))
    if name in TRAINED:
        trained(name, tmp_path / "adaptation", base)
    else:
        fitted(name, tmp_path / "adaptation", base)
    expected = OTHERWISE.get((architecture, name), {**EXPECTED, **COMPOSED}.get(name))
    fingerprint, done = base.fingerprint, set()
    for form in CHECKED:
        out = tmp_path / form
        try:
            record = export(tmp_path / "adaptation", form, out, base=base, task=tiny_task())
        except TechniqueError as error:
            assert (
                f"{name} cannot be exported to {'gguf' if form == 'ollama' and 'bias' in str(error) else form}"
                in str(error)
            )
            assert not out.exists() and not list(tmp_path.glob(".*.tmp"))
        else:
            done.add(form)
            assert record["same"] and record["greedy_agreement"] == 1 and not record["differ"], record
            if form != "lora":
                assert record["max_logit_difference"] <= 1e-5 * max(record["largest_logit"], 1)
            assert record["moved_by_training"] > 100 * record["max_logit_difference"] or name == "base"
            assert record["score"]["trained"] == record["score"]["exported"]
            assert json.loads((out / "parity.json").read_text("utf-8")) == record
        assert not base.attached
        base.frozen_fingerprint = None
        assert base.fingerprint == fingerprint
    if expected is None:
        assert "merged" in done or not make(name).mergeable
    else:
        assert done == expected


def test_the_guide_says_what_works():
    """The table of the guide is the one that the tests hold."""
    text = (DOCS / "export.md").read_text("utf-8")
    columns = ("peft", "lora", "sparse", "merged", "onnx", "gguf", "ollama")
    for name, expected in EXPECTED.items():
        works = expected | ({"onnx"} if "merged" in expected else set())
        row = [name, *("yes" if form in works else "" for form in columns)]
        assert "| `" + "` | ".join(row[:1]) + "` | " + " | ".join(row[1:]) + " |" in text, row


def test_what_is_expected_is_there():
    assert set(EXPECTED) <= set(all_techniques())
    assert {*CHECKED, "onnx"} == set(formats())


MERGED = [name for name, works in {**EXPECTED, **COMPOSED}.items() if "merged" in works]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"),
    [("base", ARCHITECTURES[1]), *((name, ARCHITECTURES[i % len(ARCHITECTURES)]) for i, name in enumerate(MERGED))],
)
def test_onnx(name, architecture, places, tmp_path):
    """The merged model is written, whatever the technique was: each is seen with one architecture in turn."""
    base = load_base(places(architecture))
    (trained if name in TRAINED else fitted)(name, tmp_path / "adaptation", base)
    record = export(tmp_path / "adaptation", "onnx", tmp_path / "out", base=base, task=tiny_task())
    assert record["same"] and record["greedy_agreement"] == 1
    moved = 0.0 if name == "base" else 100 * record["max_logit_difference"] if name in TRAINED else 0.1
    assert record["moved_by_training"] >= moved
    assert record["max_logit_difference"] <= 1e-5 * record["largest_logit"]
    assert record["tokenizer"] == "same"
    with pytest.raises(SettingError, match="float32"):
        export(tmp_path / "adaptation", "onnx", tmp_path / "half", base=base, task=tiny_task(), dtype="float16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_half_precision_is_rounding_and_nothing_else(form, dtype, places, tmp_path):
    """The export agrees with the rounded weights as exactly as float32 does; what rounding did is told apart."""
    base = load_base(places("llama"))
    fingerprint = base.fingerprint
    fitted("lora", tmp_path / "a", base)
    record = export(tmp_path / "a", form, tmp_path / "out", base=base, task=tiny_task(), dtype=dtype)
    assert record["same"] and record["dtype"] == dtype
    assert record["max_logit_difference"] <= record["tolerance"] == pytest.approx(1e-5 * record["largest_logit"])
    rounding, bound = record["rounding"], {"bfloat16": 2e-2, "float16": 2e-3}[dtype]
    assert 10 * record["tolerance"] < rounding["max_logit_difference"] <= bound * record["largest_logit"]
    assert 0 <= rounding["merging_logit_difference"] <= record["tolerance"]
    assert 0.5 < rounding["greedy_tokens_unchanged"] <= 1
    base.frozen_fingerprint = None
    assert base.fingerprint == fingerprint


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_an_adapter_in_half_precision_is_within_its_bound(dtype, bound, places, tmp_path):
    base = load_base(places("llama"))
    record = export(
        fitted("lora", tmp_path / "a", base), "peft", tmp_path / "out", base=base, task=tiny_task(), dtype=dtype
    )
    assert record["same"] and 0 < record["max_logit_difference"] <= bound * record["largest_logit"]
    assert "rounding" not in record


def test_a_model_is_stored_in_the_type_of_its_checkpoint(tmp_path):
    """Which is not the type that it was loaded and trained in; an adapter keeps that one."""
    tiny = tiny_base("llama")
    tiny.model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    assert base.model.dtype == torch.float32
    fitted("lora", tmp_path / "a", base)
    types = {}
    for form in ("merged", "gguf", "peft", "lora"):
        record = export(tmp_path / "a", form, tmp_path / form, base=base, task=tiny_task())
        assert record["same"] and ("rounding" in record) == (record["dtype"] == "bfloat16")
        types[form] = record["dtype"]
    assert types == {"merged": "bfloat16", "gguf": "bfloat16", "peft": "float32", "lora": "float32"}
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    wider = export(tmp_path / "a", "merged", tmp_path / "wide", base=base, task=tiny_task(), dtype="float32")
    assert wider["same"] and wider["dtype"] == "float32" and "rounding" not in wider


def test_the_record_says_what_the_number_of_prompts_proves(places, tmp_path):
    base = load_base(places("llama"))
    fitted("lora", tmp_path / "a", base)
    few = export(tmp_path / "a", "merged", tmp_path / "few", base=base, task=tiny_task(), parity_prompts=3)
    assert few["prompts"] == 3 and few["most_that_differ"] == pytest.approx(1 - 0.05 ** (1 / 3))
    assert few["score"]["examples"] == 3 and few["checked"] is True
    # Of the twenty examples four are of the test split, which is scored; all are compared.
    most = export(tmp_path / "a", "merged", tmp_path / "most", base=base, task=tiny_task())
    assert most["prompts"] == 20 and most["score"]["examples"] == 4
    assert "The data has 20 examples, so fewer than 60 prompts were compared." in most["notes"]


def test_without_parity_an_export_is_marked_as_unproved(places, tmp_path, monkeypatch):
    base = load_base(places("llama"))
    fitted("lora", tmp_path / "a", base)
    monkeypatch.setattr(type(formats()["merged"]), "read", lambda *_: pytest.fail("the export is read"))
    record = export(tmp_path / "a", "merged", tmp_path / "out", base=base, parity_prompts=None)
    assert record["same"] is None and record["checked"] is False and "prompts" not in record
    assert record["notes"] == ["It was not compared with the trained model."]
    assert json.loads((tmp_path / "out" / "parity.json").read_text("utf-8")) == record
    assert not base.attached


def change_one_weight(out):
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] += 0.5
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def swap_label_token(out):
    """Exchange the ids of two tokens that stand in no prompt, one of which begins a label."""
    path = out / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    vocab = content["model"]["vocab"]
    label = load_tokenizer(out)(" small")["input_ids"][1]
    token = next(text for text, index in vocab.items() if index == label)
    vocab[token], vocab["Z"] = vocab["Z"], vocab[token]
    path.write_text(json.dumps(content), "utf-8")


def change_merges(out):
    path = out / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:3]
    path.write_text(json.dumps(content), "utf-8")


def change_template(out):
    (out / "chat_template.jinja").write_text("{{ messages[0].content }}", "utf-8")


def load_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [change_one_weight, swap_label_token, change_merges, change_template])
def test_an_export_that_was_altered_on_disk_is_found(change, dtype, places, tmp_path, monkeypatch):
    """Also where it is rounded: an error is not taken for rounding."""
    base = load_base(places("llama"))
    fitted("lora", tmp_path / "a", base)
    read = formats()["merged"].read

    def altered(self, folder, base):
        change(folder)
        return read(folder, base)

    monkeypatch.setattr(type(formats()["merged"]), "read", altered)
    record = export(tmp_path / "a", "merged", tmp_path / "out", base=base, task=tiny_task(), dtype=dtype)
    assert record["same"] is False and "most_that_differ" not in record
    if change is change_one_weight:
        assert record["differ"] and record["tokenizer"] == "same"
    else:
        assert set(record["tokenizer"]) & {"label", "prompt", "chat_template"}


def test_a_merge_that_is_wrong_is_not_taken_for_rounding(places, tmp_path, monkeypatch):
    """The rounded weights come from the same merge as the export, so that the merge has a check of its own."""
    base = load_base(places("llama"))
    fitted("lora", tmp_path / "a", base)
    merge = Attachment.merge

    def wrong(self):
        model = merge(self)
        with torch.no_grad():
            model.get_parameter("model.layers.0.mlp.down_proj.weight")[0, 0] += 0.5
        return model

    monkeypatch.setattr(Attachment, "merge", wrong)
    record = export(tmp_path / "a", "merged", tmp_path / "out", base=base, task=tiny_task(), dtype="bfloat16")
    assert record["max_logit_difference"] <= record["tolerance"]
    assert not record["same"] and record["rounding"]["merging_logit_difference"] > record["tolerance"]


@pytest.mark.parametrize("form", ["merged", "peft"])
def test_generated_answers_are_scored_as_the_trained_model_gives_them(form, places, tmp_path):
    base = load_base(places("llama"))
    fitted("lora", tmp_path / "a", base)
    task = tiny_task("generation")
    record = export(tmp_path / "a", form, tmp_path / "out", base=base, task=task)
    assert record["same"] and record["score"]["trained"] == record["score"]["exported"]
    assert record["score"]["metric"] == "rouge_l" and record["greedy_tokens"] >= 16


OTHERS = ("llama-tied", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gemma", "phi", "gpt_neox")
NOT_BY_TRANSFORMERS = ("gemma", "phi", "gpt_neox")


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize("name", ["full", "lora"])
def test_gguf_of_other_models(architecture, name, places, tmp_path):
    base = load_base(places(architecture))
    record = export(fitted(name, tmp_path / "a", base), "gguf", tmp_path / "out", base=base, task=tiny_task())
    assert record["same"]
    if architecture in NOT_BY_TRANSFORMERS:
        assert any(f"reads no GGUF files of {architecture} models" in note for note in record["notes"])
    else:
        assert record["tokenizer"] == "same"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", *OTHERS])
def test_llama_cpp_computes_what_was_trained(architecture, places, tmp_path):
    """An independent program reads the file: the same ids of a text, and the same logits to what it rounds."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    base = load_base(places(architecture))
    base.name = "small"  # of a model that is called Phi-3, llama.cpp expects tokens that this one does not have
    if architecture == "mistral":
        base.model.config.sliding_window = None
    folder = fitted("full", tmp_path / "a", base)
    export(folder, "gguf", tmp_path / "out", base=base, task=tiny_task(), parity_prompts=None)
    text = "the cat sat on a mat, and small birds sing in old trees by day"
    reader = llama_cpp.Llama(str(tmp_path / "out" / "model.gguf"), n_ctx=64, logits_all=True, verbose=False)
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert reader.tokenize(text.encode(), add_bos=False, special=True) == ids
    reader.eval(ids)
    found = torch.from_numpy(reader.scores[: len(ids)].copy())
    with torch.no_grad():
        expected = load(folder, base=base).attachment.merge()(torch.tensor([ids])).logits[0].float()
    # Its keys and values are in fp16, and its GELU is a table of fp16.
    assert (found - expected).abs().max() < 5e-3 * expected.abs().max()
    assert (found.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize(("architecture", "message"), [("mistral", "slides"), ("opt", "llama.cpp does not run .* opt")])
def test_gguf_refuses_what_it_cannot_say(architecture, message, places, tmp_path):
    base = load_base(places(architecture))
    with pytest.raises(TechniqueError, match=message) as raised:
        export(fitted("lora", tmp_path / "a", base), "gguf", tmp_path / "out", base=base, task=tiny_task())
    assert "merged" in str(raised.value)


@pytest.mark.parametrize(
    ("architecture", "changed", "message"),
    [
        ("phi", {"qk_layernorm": True}, "qk_layernorm is True"),
        ("gpt_neox", {"hidden_act": "relu"}, "its activation is relu"),
        ("gemma2", {"query_pre_attn_scalar": 12}, "scaled by 12 and not the size of a head"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "not one layer of 2 sees"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30"),
        ("phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each head"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "scaled .longrope."),
    ],
)
def test_gguf_refuses_settings_that_the_file_cannot_express(architecture, changed, message):
    config = tiny_base(architecture).model.config
    assert not model_problem(config)
    for name, value in changed.items():
        setattr(config, name, value)
    assert re.search(message, model_problem(config))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gguf_in_eight_bits(architecture, places, tmp_path):
    """The file holds what the package's own code makes of the merged weights, and the model that reads it agrees."""
    import gguf

    base = load_base(places(architecture))
    folder = fitted("lora", tmp_path / "a", base)
    record = export(folder, "gguf", tmp_path / "out", base=base, task=tiny_task(), dtype="q8_0")
    assert record["same"] and record["tokenizer"] == "same" and record["dtype"] == "q8_0"
    assert record["rounding"]["max_logit_difference"] > 0
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    kinds = {str(tensor.name): tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == kinds["blk.0.ffn_up.weight"] == kinds["blk.0.attn_output.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32" and int(reader.get_field("general.file_type").contents()) == 7
    model = load(folder, base=base).attachment.merge()
    name = {"llama": "model.layers.0.mlp.up_proj.weight", "gpt2": "transformer.h.0.mlp.c_fc.weight"}[architecture]
    expected = model.get_parameter(name).detach().clone()
    expected = expected.T if architecture == "gpt2" else expected
    base.release()
    (stored,) = [tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_up.weight"]
    values = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
    largest = expected.reshape(-1, 32).abs().amax(1, keepdim=True).expand(-1, 32).reshape(expected.shape)
    assert values.shape == expected.shape and not values.equal(expected)
    assert ((values - expected).abs() <= largest / 254 + 1e-3 * largest).all(), (
        "half of a step of 127, the scale in fp16"
    )


def test_only_gguf_is_quantised(places, tmp_path):
    base = load_base(places("llama"))
    with pytest.raises(SettingError, match=r'dtype "q8_0" is not one of float32'):
        export(fitted("lora", tmp_path / "a", base), "merged", tmp_path / "out", base=base, dtype="q8_0")


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_one_of_two_tied_tensors(form, places, tmp_path):
    """The head is trained as a copy of tied embeddings: both are written, and neither takes the other's place."""
    base = load_base(places("llama-tied"))
    settings = {"last_layers": {"head": "untie"}}
    fitted("last_layers", tmp_path / "a", base, settings)
    record = export(tmp_path / "a", form, tmp_path / "out", base=base, task=tiny_task())
    assert record["same"] and record["moved_by_training"] > 0.1
    assert base.model.config.tie_word_embeddings


def test_dylora_at_a_rank(places, tmp_path):
    base = load_base(places("llama"))
    fitted("dylora", tmp_path / "a", base)
    export(tmp_path / "a", "peft", tmp_path / "out", base=base, task=tiny_task(), settings={"dylora": {"rank": 2}})
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))["r"] == 2
    with pytest.raises(SettingError, match="fixed by training"):
        export(tmp_path / "a", "peft", tmp_path / "no", base=base, settings={"dylora": {"r": 2}})


def test_lora_takes_the_rank_or_the_error(places, tmp_path):
    base = load_base(places("llama"))
    fitted("krona", tmp_path / "a", base)
    ranks, errors = [], []
    for place, options in enumerate([{"error": 0.0}, {"error": 0.5}, {"rank": 1}]):
        record = export(tmp_path / "a", "lora", tmp_path / str(place), base=base, task=tiny_task(), **options)
        ranks.append(record["rank"])
        errors.append(record["error"])
    assert ranks[0] > ranks[1] >= ranks[2] == 1
    assert errors[0] < 1e-6 and errors[1] <= 0.5


def test_qlora_says_what_the_unquantised_base_would_do(places, tmp_path):
    base = load_base(places("llama"))
    record = export(fitted("qlora", tmp_path / "a", base), "peft", tmp_path / "out", base=base, task=tiny_task())
    assert record["same"] and record["on_the_unquantised_base"] > 0.1


@pytest.mark.parametrize("form", ["merged", "peft", "lora"])
def test_qlora_with_few_targets_exports_what_was_trained(form, places, tmp_path):
    """The linears without an update are in four bits too, so a merged model holds what these stand for."""
    base = load_base(places("llama"))
    folder = fitted("qlora", tmp_path / "a", base, {"qlora": {"target_modules": ["q"], "r": 2}})
    assert export(folder, form, tmp_path / "out", base=base, task=tiny_task())["same"]


def test_text_that_the_model_writes_is_compared_where_there_is_no_data(places, tmp_path):
    base = load_base(places("llama"))
    record = export(fitted("lora", tmp_path / "a", base), "merged", tmp_path / "out", base=base)
    assert record["source"] == "text sampled from the model" and record["prompts"] == 60 and "score" not in record
    style = json.loads((tmp_path / "a" / "adaptation.json").read_text("utf-8"))["style"]
    assert style["source"] == tiny_task().source


@pytest.mark.parametrize("form", ["merged", "peft", "sparse", "gguf"])
def test_an_export_that_is_not_the_model_is_told(form, places, tmp_path, monkeypatch):
    """One number of it changed between writing and reading: exit code 1, nothing deleted."""
    base = load_base(places("gpt2"))
    fitted("bitfit" if form == "sparse" else "lora", tmp_path / "a", base)
    read = formats()[form].read

    def spoilt(folder, base):
        reader = read(folder, base)
        with torch.no_grad():
            reader.model.get_input_embeddings().weight[5:60].mul_(1.5)
        return reader

    original = base.model.get_input_embeddings().weight.detach().clone()
    monkeypatch.setattr(type(formats()[form]), "read", lambda self, folder, base: spoilt(folder, base))
    record = export(tmp_path / "a", form, tmp_path / "out", base=base, task=tiny_task())
    with torch.no_grad():
        base.model.get_input_embeddings().weight.copy_(original)
    assert not record["same"] and record["differ"] and record["max_logit_difference"] > record["tolerance"]
    assert json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))["same"] is False
    assert len(list((tmp_path / "out").iterdir())) > 1


def test_an_export_that_cannot_be_read_is_told(places, tmp_path, monkeypatch):
    base = load_base(places("llama"))

    def broken(self, folder, base):
        raise ValueError("no such\nthing")

    monkeypatch.setattr(type(formats()["merged"]), "read", broken)
    with pytest.raises(TunewiseError, match="cannot be read back: no such thing") as raised:
        export(fitted("lora", tmp_path / "a", base), "merged", tmp_path / "out", base=base, task=tiny_task())
    assert raised.value.exit_code == 1 and (tmp_path / "out" / "model.safetensors").is_file()
    assert not base.attached


FRESH = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, outputs = sys.argv[1], {}
for argument in sys.argv[2:]:
    form, _, folder = argument.partition("=")
    if form == "peft":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), folder)
    elif form == "sparse":
        exec(GUIDE.replace("my-llama", base).replace("export/sparse", folder))
    elif form == "gguf":
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype="float32")
        AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        outputs[argument] = model.eval()(input_ids=torch.tensor([[0, 5, 6, 7, 8, 9]])).logits[0, -6:].tolist()
assert "tunewise" not in sys.modules
print(json.dumps(outputs))
"""


@pytest.mark.slow
def test_a_process_without_tunewise_reads_them(places, tmp_path):
    """PEFT, transformers and the guide's own lines give the trained model's logits where tunewise is not imported."""
    base, expected = load_base(places("llama")), {}
    for name, forms in {"lora": ["peft", "merged", "gguf"], "prompt_tuning": ["peft"], "lt_sft": ["sparse"]}.items():
        (trained if name in TRAINED else fitted)(name, tmp_path / name, base)
        loaded = load(tmp_path / name, base=base)
        before = encoder_for(loaded.attachment, loaded.style).placeholders
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([[*before, 0, 5, 6, 7, 8, 9]])).logits[0, -6:]
        base.release()
        for form in forms:
            out = tmp_path / f"{name}-{form}"
            assert export(tmp_path / name, form, out, base=base, task=tiny_task())["same"]
            expected[f"{form}={out}"] = logits
    guide = re.search(r"```python\n(.*?)```", (DOCS / "export.md").read_text("utf-8"), re.DOTALL)[1]
    code = FRESH.replace("GUIDE", repr(guide))
    done = subprocess.run([sys.executable, "-c", code, str(places("llama")), *expected], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout.splitlines()[-1])
    for argument, logits in expected.items():
        assert torch.allclose(torch.tensor(outputs[argument]), logits, atol=1e-5), argument


def test_wrong_requests(places, tmp_path):
    base = load_base(places("llama"))
    fitted("lora", tmp_path / "a", base)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for form, out, options in (
        ("pickle", "o", {}),
        ("merged", "full", {}),
        ("merged", "o", {"dtype": "int8"}),
        ("lora", "o", {"error": 1.5}),
        ("lora", "o", {"rank": -1}),
        ("merged", "o", {"parity_prompts": 0}),
        ("merged", "o", {"parity_prompts": -3}),
    ):
        with pytest.raises(RequestError):
            export(tmp_path / "a", form, tmp_path / out, base=base, task=tiny_task(), **options)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"] and not (tmp_path / "o").exists()
