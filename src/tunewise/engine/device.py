"""Reads a device from text (`cpu`, `cuda:1`, or a size such as `24GB`), and says which device a tensor is on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from tunewise.core.errors import SettingError
from tunewise.core.operating_system import processor_name
from tunewise.core.units import BYTES, quantity
from tunewise.engine.fake_tensor import FakeTensor

if TYPE_CHECKING:
    import torch


def device_of(words: str) -> tuple[str, float]:
    """Return ("cpu" or "cuda", its bytes of memory); a size alone is that of a GPU.

    Raises:
        SettingError: `words` is neither a device nor a size, or torch does not see that GPU.
    """
    import psutil
    import torch

    if words == "cpu":
        return "cpu", float(psutil.virtual_memory().total)
    if re.fullmatch(r"cuda(:\d+)?", words):
        number = int(words.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise SettingError(f'--device is "{words}", but torch sees {torch.cuda.device_count()} GPUs here')
        return "cuda", float(torch.cuda.mem_get_info(number)[1])
    try:
        size = quantity("--device", words, {unit: worth for unit, worth in BYTES.items() if unit})
    except SettingError:
        size = 0.0
    if not size:
        raise SettingError(f'--device is "{words}" but must be cpu, cuda, cuda:1 and so on, or a size such as 24GB')
    return "cuda", size


_simulated: list[str] = []  # device types that fake tensors stand for, one per nested `simulated`


@contextmanager
def simulated(kind: str) -> Iterator[None]:
    """Within the block, let fake tensors stand for tensors on a device of this type ("cpu" or "cuda")."""
    _simulated.append(kind)
    try:
        yield
    finally:
        _simulated.pop()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU's on a device; a fake one is copied, as the simulated device is known here alone."""
    return tensor.clone() if is_fake(tensor) else tensor.to(device)


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor is fake: it has a shape and no contents."""
    return isinstance(tensor, FakeTensor)


def device_name(kind: str) -> str:
    """Return the model of the GPU that this process uses, or of its processor."""
    import torch

    return str(torch.cuda.get_device_name()) if kind.startswith("cuda") else processor_name()


def has_bf16_arithmetic(kind: str) -> bool:
    """Whether devices of this type here multiply matrices in bf16 at least as fast as in fp32.

    CPUs without instructions for it compute bf16 through fp32, at a quarter of its rate.
    """
    import torch

    if kind != "cpu":
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is on a GPU, or is fake and stands for one on a GPU."""
    return tensor.is_cuda or (bool(_simulated) and _simulated[-1] == "cuda" and is_fake(tensor))
