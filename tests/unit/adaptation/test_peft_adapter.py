"""A PEFT adapter that adds tokens: its embeddings and its tokenizer come with it, or it is refused."""

import copy
import json

import peft
import pytest
import torch

from tunewise.adaptation.artifact import base_of, load
from tunewise.core.errors import ArtifactError
from tunewise.testing import tiny_base


def adapter_with_tokens(tmp_path, architecture="llama", rows=322, tokens=("<tool>", "<result>"), save=True, **fields):
    """A base's folder, an adapter with tokens of its own, and what PEFT computes with the two."""
    base = tiny_base(architecture)
    base.model.save_pretrained(tmp_path / "base")
    base.model.name_or_path = str(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens([f"<{index}>" for index in range(len(tokenizer), 320)])
    tokenizer.add_tokens(list(tokens))
    torch.manual_seed(0)
    base.model.resize_token_embeddings(rows)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    for name, value in fields.items():
        setattr(config, name, value)
    model = peft.get_peft_model(base.model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=save)
    tokenizer.save_pretrained(tmp_path / "adapter")
    return logits_of(model)


@torch.no_grad()
def logits_of(model):
    return model(input_ids=torch.tensor([[0, 5, 260, 7]])).logits[0]


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [320, 321]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_new_tokens_come_with_the_adapter(fields, architecture, tmp_path):
    expected = adapter_with_tokens(tmp_path, architecture, **fields)
    loaded = load(tmp_path / "adapter")
    base = loaded.attachment.base
    assert base.vocabulary == 322 and base.tokenizer("<tool>", add_special_tokens=False)["input_ids"] == [320]
    assert torch.allclose(logits_of(base.model), expected, atol=1e-4)
    served = base_of(tmp_path / "adapter")
    load(tmp_path / "adapter", base=served)
    assert torch.allclose(logits_of(served.model), expected, atol=1e-4)


def test_a_vocabulary_that_was_cut_to_the_tokenizer_comes_back(tmp_path):
    padded = tiny_base()
    padded.model.resize_token_embeddings(384)
    padded.model.save_pretrained(tmp_path / "base")
    padded.model.name_or_path = str(tmp_path / "base")
    padded.tokenizer.save_pretrained(tmp_path / "base")
    padded.model.resize_token_embeddings(320)
    model = peft.get_peft_model(
        padded.model,
        peft.LoraConfig(r=4, target_modules=["q_proj"]),
    )
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert torch.allclose(logits_of(load(tmp_path / "adapter").attachment.base.model), logits_of(model), atol=1e-4)


def test_another_base_in_memory_is_refused(tmp_path):
    adapter_with_tokens(tmp_path)
    with pytest.raises(ArtifactError, match="322 rows, as it adds tokens, and tiny-llama has 320"):
        load(tmp_path / "adapter", base=tiny_base())


@pytest.mark.parametrize("given", [False, True])
def test_tokens_without_embeddings_are_refused(given, tmp_path):
    adapter_with_tokens(tmp_path, save=False)
    with pytest.raises(ArtifactError, match=r'"<tool>" \(id 320\).*save_embedding_layers'):
        load(tmp_path / "adapter", base=tiny_base() if given else None)


def test_a_base_whose_tokenizer_has_more_tokens_is_refused_where_the_adapter_brings_none(tmp_path):
    adapter_with_tokens(tmp_path, save=False)
    tokenizer = (tmp_path / "adapter" / "tokenizer.json").read_text()
    (tmp_path / "base" / "tokenizer.json").write_text(tokenizer)
    (tmp_path / "adapter" / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="tokens without an embedding"):
        load(tmp_path / "adapter")


def test_embeddings_of_two_sizes_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    adapter_with_tokens(tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"] = torch.zeros(330, 32)
    save_file(tensors, file)
    with pytest.raises(ArtifactError, match="322 and 330 rows"):
        load(tmp_path / "adapter")


def test_the_revision_of_the_base_is_the_adapters(tmp_path, monkeypatch):
    from tunewise.adaptation import peft_adapter

    adapter_with_tokens(tmp_path)
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "revision": "v2"}))
    given = {}

    def loading(name, **options):
        given.update(options)
        raise ArtifactError("enough")

    monkeypatch.setattr(peft_adapter, "load_base", loading)
    with pytest.raises(ArtifactError, match="enough"):
        base_of(tmp_path / "adapter", device="cpu")
    assert given["revision"] == "v2" and given["device"] == "cpu"


def test_serving_takes_an_adapter_that_changes_its_base_on_and_off(tmp_path):
    from tunewise.serve.adaptation_pool import AdaptationPool
    from tunewise.serve.loading import unadapted

    theirs = peft.get_peft_model(
        tiny_base().model, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="olora", lora_alpha=12)
    )
    with torch.no_grad():
        theirs.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.add_(0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    base = tiny_base()
    bare, expected = logits_of(base.model), logits_of(theirs)
    pool = AdaptationPool(base)
    pool.add("bare", unadapted)
    pool.add("mine", lambda base: load(tmp_path / "adapter", base=base))
    for _ in range(2):
        pool.activate("mine")
        assert torch.allclose(logits_of(base.model), expected, atol=1e-4)
        pool.activate("bare")
        assert torch.equal(logits_of(base.model), bare)


def test_a_tokenizer_that_brings_expressions_is_refused(tmp_path):
    adapter_with_tokens(tmp_path)
    file = tmp_path / "adapter" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split]}
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ArtifactError, match=r"tokenizer has regular expressions that the tokenizer of .* lacks"):
        load(tmp_path / "adapter")
