"""Liger's kernels in place of a model's own norms, rotary positions and gated MLPs, as transformers puts them there.

They are written for GPUs, in Triton (Hsu et al. 2024, https://arxiv.org/abs/2410.10989). Losses stay this package's
own: it computes the head at labelled tokens alone.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from tunewise.core.errors import SettingError

if TYPE_CHECKING:
    from tunewise.engine.model import Base

KERNELS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def require_liger() -> None:
    """Refuse Liger's kernels where they cannot run.

    Raises:
        SettingError: there is no GPU, or the package is not installed.
    """
    if not torch.cuda.is_available():
        raise SettingError("--use-liger-kernel: Liger's kernels need a GPU, and there is none here; leave it out")
    if find_spec("liger_kernel") is None:
        raise SettingError(
            "--use-liger-kernel needs liger-kernel; install it (pip install liger-kernel), or leave it out"
        )


def use_liger(base: Base) -> None:
    """Give a model on a GPU Liger's kernels, once; transformers chooses those of its architecture.

    They stay, also for scoring, and those for rotary positions are used by all models of this architecture in this
    process.

    Raises:
        SettingError: they cannot run here, or the model is not on a GPU.
    """
    from transformers.integrations.liger import apply_liger_kernel

    if base.uses_liger:
        return
    require_liger()
    if base.device.type != "cuda":
        raise SettingError(f"--use-liger-kernel: Liger's kernels need a GPU, and the model is on {base.device.type}")
    apply_liger_kernel(base.model, KERNELS)
    base.uses_liger = True
