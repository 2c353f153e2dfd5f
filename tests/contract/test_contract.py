"""Every technique of the registry through every check of the contract, on several architectures."""

import pytest

from tunewise.registry import all_techniques, make
from tunewise.testing import CHECKS, tiny_base

ARCHITECTURES = ("llama", "llama-tied", "qwen3", "gpt2", "gpt_neox", "gpt_neox-tied")
SETTINGS = {
    "mpt": {"sources": ["world:letters/name", "world:letters/age"], "source_steps": 3},
    "qlora": {"lora_dropout": 0.0},  # gradients are compared between two passes
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [*all_techniques(), "icl+lora", "lora+prompt_tuning", "lt_sft+adapter"])
def test_contract(name, architecture, check):
    check(make(name, SETTINGS), tiny_base(architecture))
