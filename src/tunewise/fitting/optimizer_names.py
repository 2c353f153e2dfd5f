"""Hugging Face's names of optimisers (`--optim`), as the techniques that have a choice of them name them."""

from __future__ import annotations

OPTIMIZER_NAMES = {
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adafactor": "adafactor",
    "adamw_8bit": "adamw8bit",
    "adamw_bnb_8bit": "adamw8bit",
    "paged_adamw": "paged_adamw",
    "paged_adamw_32bit": "paged_adamw",
    "paged_adamw_8bit": "paged_adamw8bit",
    "galore_adamw": "galore",
    "lomo": "lomo",
    "adalomo": "adalomo",
    "adamw_bf16": "adamw_bf16",
}
