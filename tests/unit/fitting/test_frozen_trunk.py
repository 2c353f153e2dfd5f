"""States below the lowest trained block, computed once: the same training, and nothing left behind."""

import pytest
import torch

from tunewise.engine.forward import why_not_packed
from tunewise.fitting.frozen_trunk import trunk_of
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import _sequences, attach, tiny_base, tiny_task

LOWER = {"last_layers": {"k": 1}}


def run(name, architecture, reuse, **settings):
    base, losses = tiny_base(architecture), []
    attachment = attach(make(name, LOWER if "+" not in name else {**LOWER, "icl": {"k": 1}}), base)
    rows = _sequences(attachment, tiny_task())
    train_settings = TrainSettings(max_steps=8, **settings)
    train(attachment, rows, train_settings, on_step=lambda step, loss: losses.append(loss), reuse_trunk=reuse)
    return losses, {key: tensor.clone() for key, tensor in attachment.state().items()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt", "phi3"])
@pytest.mark.parametrize("name", [*LOWER, "icl+last_layers"])
def test_the_same_losses_with_and_without(name, architecture):
    (with_losses, with_state), (losses, state) = run(name, architecture, True), run(name, architecture, False)
    assert with_losses == pytest.approx(losses, rel=1e-5)
    assert len(set(with_losses)) == 8
    for key, tensor in state.items():
        assert torch.allclose(tensor, with_state[key], atol=1e-3), key


def test_the_frozen_blocks_are_not_run_in_later_steps():
    base, calls = tiny_base("llama"), []
    attachment = attach(make("last_layers", LOWER), base)
    rows = _sequences(attachment, tiny_task())
    assert why_not_packed(base) is None
    base.anatomy.blocks[0].self_attn.register_forward_hook(lambda *_: calls.append(0))
    base.anatomy.blocks[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    train(attachment, rows, TrainSettings(max_steps=8))
    assert calls.count(1) >= 8
    assert calls.count(0) == 1  # the recording
    assert not any("forward" in vars(block) for block in base.anatomy.blocks)


@pytest.mark.parametrize(
    ("name", "visits", "expected"), [("last_layers", 100, True), ("last_layers", 12, False), ("lora", 100, False)]
)
def test_it_is_used_where_it_pays(name, visits, expected):
    from contextlib import nullcontext

    base = tiny_base("llama")
    attachment = attach(make(name), base)
    trunk = trunk_of(attachment, _sequences(attachment, tiny_task()), visits, nullcontext())
    assert (trunk is not None) == expected


def test_embeddings_trained_with_a_tied_head_have_no_trunk():
    base = tiny_base("llama-tied")
    attachment = attach(make("last_layers", {"last_layers": {"head": "tied"}}), base)
    assert not attachment.trunk()


def test_the_ladder_keeps_no_outputs_of_all_blocks():
    """They would take rows x tokens x width x blocks, of a technique whose purpose is to need little memory."""
    assert not attach(make("lst"), tiny_base("llama")).trunk()


def test_named_blocks_are_trained_and_what_lies_below_the_lowest_is_the_trunk():
    base = tiny_base("llama")
    attachment = attach(make("last_layers", {"last_layers": {"layers": ["1"]}}), base)
    assert list(attachment.trunk()) == [0]
    assert not any(".layers.0." in name for name in attachment.params())
    attachment.detach()
    attachment = attach(make("last_layers", {"last_layers": {"layers": ["0"]}}), base)
    assert not attachment.trunk()


def test_what_is_free_does_not_decide(monkeypatch):
    """A resumed run on a busier machine must decide as the first one did, or its bits would differ."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    base = tiny_base("llama")
    attachment = attach(make("last_layers"), base)
    rows = _sequences(attachment, tiny_task())
    for total, free, used in ((1 << 33, 0, True), (1 << 33, 1 << 40, True), (1 << 12, 1 << 40, False)):
        memory = SimpleNamespace(total=total, available=free)
        monkeypatch.setattr("tunewise.fitting.frozen_trunk.psutil.virtual_memory", lambda memory=memory: memory)
        assert (trunk_of(attachment, rows, 100, nullcontext()) is not None) == used
