"""How a step is split into passes changes nothing but the order of its sums."""

import pytest
import torch

from tunewise.engine import packing
from tunewise.engine.forward import batch_of
from tunewise.fitting import loop
from tunewise.fitting import passes as passes_module
from tunewise.fitting.loop import train
from tunewise.fitting.passes import passes
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import _sequences, attach, example_settings, tiny_base, tiny_task

TRAINED = [name for name in all_techniques() if make(name, {}).trains]
GIVEN = example_settings()
GIVEN["lst"] = {"learning_rate": 3e-3}  # at larger ones AdamW turns the rounding of gradients that are 0 into steps
ENCODED = ("p_tuning", "prefix_tuning")  # their encoders are of float32
SETTINGS = TrainSettings(max_steps=3, per_device_train_batch_size=6, weight_decay=0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", TRAINED)
def test_several_passes_are_one(name, architecture, monkeypatch):
    dtype, tolerance = (torch.float32, 1e-3) if name in ENCODED else (torch.float64, 1e-5)
    base, task, ends, counts = tiny_base(architecture, dtype), tiny_task(), [], []

    def counted(*args, **given):
        counts[-1] += 1
        return batch_of(*args, **given)

    monkeypatch.setattr(loop, "batch_of", counted)
    # Virtual tokens are a prefix of all sequences, and would keep them together in one pass.
    monkeypatch.setattr(packing, "_PASS_PER_PREFIX", 1)
    plain = {"lora_dropout": 0.0} if hasattr(make(name), "lora_dropout") else GIVEN.get(name, {})
    for most in (1 << 20, 24):
        monkeypatch.setattr(passes_module, "PASS", most)
        counts.append(0)
        attachment = attach(make(name, {name: plain}), base, task)
        done = train(attachment, _sequences(attachment, task), SETTINGS, reuse_trunk=False)
        ends.append((done.final_loss, {key: tensor.clone() for key, tensor in attachment.state().items()}))
        attachment.detach()
    assert counts[0] < counts[1]
    assert ends[0][0] == pytest.approx(ends[1][0], rel=tolerance)
    assert ends[0][1].keys() == ends[1][1].keys()
    for key, whole in ends[0][1].items():
        assert torch.allclose(whole, ends[1][1][key], atol=tolerance), key


def test_an_optimizer_inside_the_backward_pass_sees_the_whole_batch(monkeypatch):
    monkeypatch.setattr(passes_module, "PASS", 8)
    base, task = tiny_base(), tiny_task()
    for optimizer, count in (("lomo", 1), ("adamw", 4)):
        attachment = attach(make("full", {"full": {"optimizer": optimizer}}), base, task)
        assert len(passes(attachment, _sequences(attachment, task), [0, 1, 2, 3])) == count
        attachment.detach()
