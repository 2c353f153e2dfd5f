"""Optimisers by name: torch's AdamW, Adafactor, and bitsandbytes' in eight bits."""

from __future__ import annotations

from typing import Any, cast

import torch

from tunewise.errors import TechniqueError

Groups = list[dict[str, Any]]


def build(name: str, groups: Groups, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """The optimiser of this name over parameter groups with their learning rates and weight decays.

    Raises:
        TechniqueError: bitsandbytes is wanted and not installed.
    """
    if name == "adamw":
        tensors = [p for group in groups for p in group["params"]]
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in tensors)
        return torch.optim.AdamW(groups, betas=betas, fused=fused)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)
    return _eight_bits(name, groups, betas)


def _eight_bits(name: str, groups: Groups, betas: tuple[float, float]) -> torch.optim.Optimizer:
    try:
        import bitsandbytes
    except ImportError as error:
        raise TechniqueError(
            f"the optimizer {name} needs bitsandbytes; install tunewise[bitsandbytes], or use adamw"
        ) from error
    kind = {"adamw8bit": "AdamW8bit", "paged_adamw8bit": "PagedAdamW8bit", "paged_adamw": "PagedAdamW32bit"}[name]
    return cast(torch.optim.Optimizer, getattr(bitsandbytes.optim, kind)(groups, betas=betas))
