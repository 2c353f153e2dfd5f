"""Settings that must not matter, and gradients that must equal the plain ones, for every architecture known."""

import pytest
import torch

from tunewise.engine.forward import why_not_packed
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import (
    ARCHITECTURES,
    attach,
    check_gradients,
    check_scores_agree,
    encoder_for,
    tiny_base,
    tiny_task,
)

# These compute in float32 inside whatever the weights are (every RMS norm, GPT-Neo's attention), so that a sum taken in
# another order, which moves float64 by 1e-16, can move what they give by float32's last bit.
INNER_FLOAT32 = dict.fromkeys(
    ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "gpt_neo"),
    1e-6,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["full", "lora", "last_layers"])
def test_gradients_equal_the_plain_loss(architecture, name):
    check_gradients(make(name), tiny_base(architecture, torch.float64), INNER_FLOAT32.get(architecture, 1e-9))
    check_gradients(make(name), tiny_base(architecture), 1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["base", "lst", "prefix_tuning", "prompt_tuning", "p_tuning", "adapter", "icl", "rag"])
def test_likelihoods_equal_the_plain_ones(architecture, name):
    """Of techniques that change the forward pass or the prompt; the contract runs all, on fewer architectures."""
    check_scores_agree(make(name), tiny_base(architecture))


def trajectory(rows, accumulate, name="full"):
    base, task, losses = tiny_base("llama", torch.float64), tiny_task(), []
    attachment = attach(make(name), base, task)
    settings = TrainSettings(
        max_steps=5, per_device_train_batch_size=rows, gradient_accumulation_steps=accumulate, adam_beta2=0.95
    )
    train(
        attachment,
        encoder_for(attachment, task).encode(task.train),
        settings,
        on_step=lambda step, loss: losses.append(loss),
    )
    return losses


def test_accumulation_equals_one_large_batch():
    whole = trajectory(8, 1)
    for rows, accumulate in ((1, 8), (2, 4), (4, 2)):
        assert trajectory(rows, accumulate) == pytest.approx(whole, rel=1e-7)


def test_no_graph_below_the_lowest_trainable_block():
    base = tiny_base("llama")
    attachment = attach(make("last_layers", {"last_layers": {"k": 1}}), base)
    assert why_not_packed(base) is None
    seen = []
    for block in base.anatomy.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    sequences = encoder_for(attachment, tiny_task()).encode(tiny_task().train)
    train(attachment, sequences, TrainSettings(max_steps=1))
    assert seen == [False, True]


def test_packed_attention_builds_no_square_mask(monkeypatch):
    """Nothing of the row's length squared is allocated in a packed step, forward or backward."""
    base = tiny_base("llama")
    attachment = attach(make("lora"), base)
    sequences = encoder_for(attachment, tiny_task()).encode(tiny_task().train)
    largest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, tuple) else (found,):
                if isinstance(tensor, torch.Tensor):
                    largest[0] = max(largest[0], tensor.numel())
            return found

    row = sum(len(s.ids) for s in sequences[:8])
    with Watch():
        train(attachment, sequences, TrainSettings(max_steps=1))
    assert row**2 > largest[0]
