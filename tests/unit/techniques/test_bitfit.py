"""What bitfit promises beyond the contract: counts, identities, traps."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunewise.core.errors import TechniqueError
from tunewise.engine.model import Base
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, fit, logits, tiny_base, tiny_task


def put(name, base, **settings):
    return attach(make(name, {name: settings}), base)


@pytest.mark.parametrize(
    ("kind", "settings", "count"),
    [
        ("gpt_neox", {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048,
                      "vocab_size": 50304}, 34_304),  # Pythia-70M
        ("gpt2", {}, 102_144),
        ("qwen2", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                   "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True}, 27_648),
    ],
)  # fmt: skip
def test_bitfit_trains_exactly_the_published_biases(kind, settings, count):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    base = Base(model, tiny_base().tokenizer)
    assert sum(p.numel() for p in base.anatomy.biases().values()) == count


def test_bitfit_labels_say_what_ran():
    assert put("bitfit", tiny_base("gpt_neox")).label == ""  # the published method
    assert "adaptation" in put("bitfit", tiny_base("llama")).label
    assert "6 of 14 linears" in put("bitfit", tiny_base("qwen2")).label


def test_bitfit_as_published_refuses_a_model_without_biases():
    with pytest.raises(TechniqueError, match="source=add"):
        put("bitfit", tiny_base("llama"), source="existing")


def test_added_biases_count_and_fit_a_standard_llama():
    base = tiny_base("llama")
    attachment = put("bitfit", base, source="add")
    sizes = [module.weight.shape[0] for _, _, module in base.anatomy.linears()]
    assert sum(p.numel() for p in attachment.params().values()) == sum(sizes)
    fit(attachment)
    expected = logits(attachment)
    merged = attachment.merge()
    config = copy.deepcopy(base.model.config)
    config.attention_bias = config.mlp_bias = True
    standard = AutoModelForCausalLM.from_config(config)
    standard.load_state_dict(merged.state_dict(), strict=True)
    loaded = Base(standard, base.tokenizer)
    assert torch.allclose(logits(attach(make("base"), loaded)), expected, atol=1e-5)


@pytest.mark.parametrize(("architecture", "dead"), [("gpt2", True), ("opt", True), ("qwen2", False)])
def test_key_biases_are_dead_weight_without_rotary_positions(architecture, dead):
    from tunewise.engine.forward import batch_of, layout, loss_sum

    base = tiny_base(architecture, torch.float64)
    attachment = put("bitfit", base)
    batch = batch_of(base, encoder_for(attachment, tiny_task()).encode(tiny_task().train))
    with layout(base, batch):
        loss_sum(base, batch).backward()
    width = base.anatomy.width
    for name, parameter in attachment.params().items():
        if "c_attn" in name:
            key, query = parameter.grad[width : 2 * width], parameter.grad[:width]
        elif "k_proj" in name:
            key, query = parameter.grad, attachment.params()[name.replace("k_proj", "q_proj")].grad
        else:
            continue
        assert (float(key.abs().max()) < 1e-9 * float(query.abs().max())) == dead
