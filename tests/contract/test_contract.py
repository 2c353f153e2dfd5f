"""Every technique of the registry through every check of the contract, on several architectures.

`TUNEWISE_TEST_DEVICE=cuda` runs them on a GPU.
"""

import os

import pytest
import torch

from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import (
    CHECKS,
    check_best_state,
    check_detach,
    check_documented,
    check_gradients,
    check_learns,
    check_only_its_own,
    check_recipe,
    check_resume,
    check_same_seed_same_bits,
    check_save_load,
    check_strict_load,
    example_settings,
    tiny_base,
)

DEVICE = os.environ.get("TUNEWISE_TEST_DEVICE", "cpu")
torch.backends.cudnn.allow_tf32 = False  # torch's default rounds what an LSTM multiplies to ten bits
ARCHITECTURES = ("llama", "llama-tied", "qwen3", "gpt2", "gpt_neox", "gpt_neox-tied")
SETTINGS = {
    **example_settings(),
    "qlora": {"lora_dropout": 0.0},  # gradients are compared between two passes
}


FORMS = [
    ("full", {"optimizer": "adamw8bit"}),
    ("full", {"optimizer": "adafactor", "learning_rate": 1e-3}),
    ("full", {"optimizer": "galore", "galore_rank": 4, "galore_update_proj_gap": 2, "learning_rate": 3e-3}),
    ("full", {"optimizer": "lomo", "learning_rate": 1e-2}),
    ("full", {"optimizer": "adalomo", "learning_rate": 1e-2}),
    ("full", {"lisa_layers": 1, "lisa_interval": 3}),
    ("lora", {"use_dora": True, "use_rslora": True}),
    ("lora", {"init_lora_weights": "olora", "loraplus_lr_ratio": 4.0}),
    ("lora", {"target_modules": ["all-linear", "embed_tokens"]}),
    ("icl", {"selection": "balanced", "order": "validation", "k": 3}),
    ("icl", {"selection": "dpp", "calibrate": "contextual", "instruction": "Say what it is."}),
    ("icl", {"selection": "gain", "order": "interleaved", "calibrate": "none"}),
    ("icl", {"selection": "mmr", "instructions": ["Say it.", "Tell me."], "calibrate": "batch"}),
    ("rag", {"k": 2, "floor": 0.0, "style": "quoted"}),
    ("qlora", {"target_modules": ["q", "down", "embed_tokens"], "lora_dropout": 0.0}),
    ("qlora", {"target_modules": ["q"], "lora_dropout": 0.0}),
    ("qlora", {"optimizer": "paged_adamw8bit", "lora_dropout": 0.0}),
    ("dylora", {"update": "frozen", "scaling": "constant"}),
    ("krona", {"form": "block"}),
    ("krona", {"form": "residual"}),
]


# What a technique does with the training loop does not depend on the model's layout: one of fused projections here, and
# one of separate ones in half precision. That something is learnt depends on the layout, and not on tied embeddings.
LOOP_CHECKS = (check_documented, check_recipe, check_resume, check_best_state, check_same_seed_same_bits)
_OF_CHECK = dict.fromkeys(LOOP_CHECKS, ("gpt2",)) | {check_learns: ("llama", "qwen3", "gpt2", "gpt_neox-tied")}
SEEN = [
    pytest.param(architecture, check, id=f"{architecture}-{check.__name__}")
    for check in CHECKS
    for architecture in _OF_CHECK.get(check, ARCHITECTURES)
]


@pytest.mark.parametrize(("architecture", "check"), SEEN)
@pytest.mark.parametrize("name", [*all_techniques(), "icl+lora", "rag+lora", "lora+prompt_tuning", "lt_sft+adapter"])
def test_contract(name, architecture, check):
    check(make(name, SETTINGS), tiny_base(architecture, device=DEVICE))


# Those that compare bits; the others compare numbers closely, and half precision rounds them.
EXACT_CHECKS = (
    check_only_its_own,
    check_learns,
    check_same_seed_same_bits,
    check_detach,
    check_save_load,
    check_strict_load,
    check_resume,
    check_best_state,
)


@pytest.mark.parametrize("check", EXACT_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [*all_techniques(), "icl+lora", "lora+prompt_tuning", "lt_sft+adapter"])
def test_contract_in_half_precision(name, check):
    check(make(name, SETTINGS), tiny_base("llama-tied", torch.bfloat16, DEVICE))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[0]}-{'-'.join(map(str, form[1].values()))}")
def test_contract_of_forms(form, check):
    """Settings that make another technique of one: their own optimisers, layouts and starts."""
    name, settings = form
    if "8bit" in settings.get("optimizer", ""):
        pytest.importorskip("bitsandbytes")
    precise = torch.float64 if check is check_gradients else torch.float32
    check(make(name, {name: settings}), tiny_base("llama-tied", precise, DEVICE))
