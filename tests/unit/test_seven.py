"""What each of the seven promises beyond the contract: counts, identities, traps."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunewise.core.errors import SettingError, TechniqueError
from tunewise.data.task import Example, Message
from tunewise.engine.model import Base
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, fit, logits, loss, tiny_base, tiny_task


def put(name, base, **settings):
    return attach(make(name, {name: settings}), base)


# LoRA


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


# BitFit


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


# Last layers


def test_last_layers_counts_blocks_norm_and_head():
    base = tiny_base("llama")
    block = sum(p.numel() for p in base.anatomy.blocks[-1].parameters())
    names = put("last_layers", base, k=1).params()
    assert sum(p.numel() for p in names.values()) == block + 32 + base.anatomy.head.weight.numel()
    assert all(name.startswith(("model.layers.1.", "model.norm.", "head.")) for name in names)
    for k, blocks in ((0, 0), (0.5, 1), (0.51, 2), (2, 2)):
        found = put("last_layers", tiny_base("llama"), k=k).params()
        assert len({name.split(".")[2] for name in found if name.startswith("model.layers")}) == blocks


def test_tied_heads_stay_frozen_unless_asked():
    base = tiny_base("llama-tied")
    assert not any(name.startswith("head") for name in put("last_layers", base).params())
    untied = put("last_layers", base, head="untie")
    embeddings = base.anatomy.embedding.weight.detach().clone()
    fit(untied)
    assert not base.anatomy.tied and torch.equal(base.anatomy.embedding.weight, embeddings)
    untied.detach()
    assert base.anatomy.tied
    tied = put("last_layers", base, head="tied")
    fit(tied)
    assert base.anatomy.tied and not torch.equal(base.anatomy.embedding.weight, embeddings)


def test_last_layers_refuses_what_does_not_fit():
    with pytest.raises(SettingError, match="the model has 2 blocks"):
        put("last_layers", tiny_base(), k=3)
    with pytest.raises(SettingError, match="separate from"):
        put("last_layers", tiny_base("llama"), head="untie")
    with pytest.raises(SettingError, match="tied to"):
        put("last_layers", tiny_base("llama-tied"), head="trained")


# Prompt tuning


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma", "opt"])
def test_a_prompt_of_real_embeddings_equals_that_text(architecture):
    base = tiny_base(architecture, torch.float64)
    text = "the cat sat on"
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    attachment = put("prompt_tuning", base, init="text", init_text=text, num_virtual_tokens=len(ids))
    tail = base.tokenizer("a mat", add_special_tokens=False)["input_ids"]
    virtual = list(range(320, 320 + len(ids)))
    with torch.no_grad():
        soft = base.model(input_ids=torch.tensor([virtual + tail])).logits[0, len(ids) :]
        attachment.detach()
        hard = base.model(input_ids=torch.tensor([ids + tail])).logits[0, len(ids) :]
    assert torch.allclose(soft, hard, atol=1e-6)


def test_prompt_tuning_counts_and_leaves_the_embeddings_alone():
    base = tiny_base()
    table = base.anatomy.embedding.weight.detach().clone()
    attachment = put("prompt_tuning", base, num_virtual_tokens=7)
    fit(attachment)
    assert sum(p.numel() for p in attachment.params().values()) == 7 * 32
    assert torch.equal(base.anatomy.embedding.weight, table)


def test_label_words_start_the_prompt():
    base, task = tiny_base(), tiny_task()
    attachment = put("prompt_tuning", base, init="label", num_virtual_tokens=5)
    means = []
    for label in task.labels:
        ids = base.tokenizer(label, add_special_tokens=False)["input_ids"]
        means.append(base.anatomy.embedding.weight[ids].mean(0))
    rows = attachment.state()["prompt"][:2]
    assert all(any(torch.allclose(row, mean) for row in rows) for mean in means)
    with pytest.raises(TechniqueError, match="classification"):
        attach(make("prompt_tuning", {"prompt_tuning": {"init": "label"}}), base, tiny_task("generation"))


def test_too_many_virtual_tokens_are_refused():
    base = tiny_base()
    base.max_length = 30
    with pytest.raises(TechniqueError, match="more than half of the window"):
        put("prompt_tuning", base)


# In-context learning


def test_icl_never_shows_the_question_cuts_nothing_and_keeps_to_the_window():
    base, task = tiny_base(), tiny_task()
    attachment = attach(make("icl", {"icl": {"k": 16}}), base, task)
    encoder = encoder_for(attachment, task)
    for example in (*task.train, *task.test):
        rendered = attachment.render(example)
        shown = [m.content for m in rendered.messages[:-1] if m.role == "user"]
        assert shown and example.prompt not in shown
        assert set(shown) <= {other.prompt for other in task.train}
        sequence = encoder.encode([rendered])[0]
        assert not sequence.cut and len(sequence.ids) <= encoder.limit


def test_icl_puts_the_nearest_last():
    task = tiny_task()
    attachment = attach(make("icl", {"icl": {"k": 3}}), tiny_base(), task)
    question = Example((Message("user", "the bird sat on a mat by day 99"),), "small")
    assert "bird" in attachment.render(question).messages[-3].content


def test_icl_chooses_k_on_validation():
    task = tiny_task()
    attachment = attach(make("icl"), tiny_base(), task)
    losses = {}
    for k in (1, 2, 4, 8):
        attachment.k = k
        losses[k] = loss(attachment, task, task.validation)
    again = attach(make("icl"), attachment.base, task)
    assert again.k == min((k for k in losses), key=lambda k: losses[k]) or again.k > 8


def test_icl_says_when_nothing_fits():
    base = tiny_base()
    base.max_length = 40
    with pytest.raises(TechniqueError, match="no worked example fits"):
        put("icl", base)
    with pytest.raises(TechniqueError, match="plain text"):
        from dataclasses import replace

        task = tiny_task()
        attach(make("icl"), tiny_base(), replace(task, train=tuple(Example((), "text") for _ in range(5))))
