"""What prompt_tuning promises beyond the contract: counts, identities, traps."""

import pytest
import torch

from tunewise.core.errors import TechniqueError
from tunewise.techniques.registry import make
from tunewise.testing import attach, fit, tiny_base, tiny_task


def put(name, base, **settings):
    return attach(make(name, {name: settings}), base)


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
