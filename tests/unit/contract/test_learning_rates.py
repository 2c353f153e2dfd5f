"""Default rates of LoRA and full fine-tuning: the published rule by family and width, and optimisers' own."""

import pytest

from tunewise.contract.learning_rates import full_rate, lora_rate
from tunewise.techniques.full import OPTIMIZERS
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base

# The rates that tinker-cookbook's `get_lr` gives for these families and widths.
PUBLISHED = [
    ("llama", 2048, 4.908e-4),
    ("llama", 4096, 2.857e-4),
    ("qwen3", 2560, 4.905e-4),
    ("qwen2", 3584, 4.780e-4),
]


@pytest.mark.parametrize(("model_type", "width", "rate"), PUBLISHED)
def test_loras_rate_is_the_published_one_and_fulls_a_tenth(model_type, width, rate):
    assert lora_rate(model_type, width) == pytest.approx(rate, rel=1e-3)
    assert full_rate(model_type, width) == pytest.approx(rate / 10, rel=1e-3)


@pytest.mark.parametrize("width", [32, 192, 576, 4096])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gpt2"])
def test_lora_takes_ten_times_fulls_rate_at_every_width(model_type, width):
    assert lora_rate(model_type, width) == pytest.approx(10 * full_rate(model_type, width))


# What each optimiser starts with at the widths 576 and 4096.
OF_OPTIMIZERS = {
    "adamw": (1.322e-4, 2.857e-5),
    "adamw8bit": (1.322e-4, 2.857e-5),
    "paged_adamw8bit": (1.322e-4, 2.857e-5),
    "adamw_bf16": (1.322e-4, 2.857e-5),
    "adafactor": (1.322e-4, 2.857e-5),
    "galore": (5.287e-4, 1.143e-4),
    "lomo": (1e-2, 1e-2),
    "adalomo": (5e-4, 5e-4),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_a_rate_of_its_own(optimizer):
    for width, rate in zip((576, 4096), OF_OPTIMIZERS[optimizer], strict=True):
        assert full_rate("llama", width, optimizer) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_recipes_take_the_rate_of_their_base(architecture):
    base = tiny_base(architecture)
    kind, width = base.model.config.model_type, base.anatomy.width
    assert make("lora").resolved(base).learning_rate == pytest.approx(lora_rate(kind, width), rel=1e-2)
    for optimizer in ("adamw", "galore", "adalomo"):
        resolved = make("full", {"full": {"optimizer": optimizer}}).resolved(base)
        assert resolved.learning_rate == pytest.approx(full_rate(kind, width, optimizer), rel=1e-2)
