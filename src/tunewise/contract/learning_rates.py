"""Default learning rates of LoRA and of full fine-tuning: a published rule by width and family, and optimisers' own.

    LoRA   rate(H) = 10 * 5e-5 * (2000 / H)^P       full, AdamW   rate(H) = 5e-5 * (2000 / H)^P
    H the model's width;   P = 0.781 for Llama and models built like it,   P = 0.0775 for Qwen

This is the rule of tinker-cookbook (Thinking Machines, `hyperparam_utils.get_lr`), fitted to sweeps over Llama and Qwen
models from 1 billion parameters up; LoRA's best rate was ten times full fine-tuning's at every size ("LoRA Without
Regret", Schulman et al. 2025). It gives no P for other families; they get Llama's, which is nearer to the 1 / H of Adam
on hidden weights (Yang et al. 2022, Tensor Programs V). Other techniques have `reference_rate` and `width_exponent`.
`docs/learning_rates.md` shows what the rule was measured against.
"""

from __future__ import annotations

REFERENCE_WIDTH = 4096  # at which a technique's `reference_rate` holds
LLAMA_EXPONENT, QWEN_EXPONENT = 0.781, 0.0775
_FULL_RATE, _LORA_OVER_FULL, _RULE_WIDTH = 5e-5, 10.0, 2000

# Full fine-tuning with optimisers that take steps of AdamW's size, as multiples of AdamW's rate.
_TIMES_ADAMW = {
    "adamw": 1.0,
    "adamw8bit": 1.0,  # the same update from moments in eight bits (Dettmers et al. 2022)
    "paged_adamw8bit": 1.0,
    "adamw_bf16": 1.0,
    "adafactor": 1.0,  # without scaling by parameter, g / sqrt(v) clipped to RMS 1 (Shazeer, Stern 2018, section 6)
    # Its step is rate * galore_scale: with 0.25 AdamW's. The authors fine-tune RoBERTa-base (H = 768) with 3e-5 * 4 =
    # 1.2e-4, the rule gives 1.06e-4 there; their 1e-2 * 0.25 is of training from scratch (Zhao et al. 2024).
    "galore": 4.0,
}
# Optimisers whose steps do not depend on the width as AdamW's do.
_OF_ITS_OWN = {
    "lomo": 1e-2,  # plain SGD; the authors' configuration has 3e-2 with clipped gradients (Lv et al. 2023)
    "adalomo": 5e-4,  # a share of each weight's size; the authors' for instructions, at all sizes (Lv et al. 2023)
}


def lora_rate(model_type: str, width: int) -> float:
    """Return LoRA's default rate for a model of this type (`config.model_type`) and width."""
    return _LORA_OVER_FULL * full_rate(model_type, width)


def full_rate(model_type: str, width: int, optimizer: str = "adamw") -> float:
    """Return the default rate of full fine-tuning with an optimiser, for a model of this type and width."""
    if optimizer in _OF_ITS_OWN:
        return _OF_ITS_OWN[optimizer]
    exponent = QWEN_EXPONENT if model_type.startswith("qwen") else LLAMA_EXPONENT
    return _TIMES_ADAMW[optimizer] * _FULL_RATE * (_RULE_WIDTH / width) ** exponent
