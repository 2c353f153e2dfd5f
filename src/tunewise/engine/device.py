"""Devices in words: `cpu`, `cuda:1`, or a size such as `24GB`."""

from __future__ import annotations

import re

from tunewise.core.errors import SettingError
from tunewise.results.needs import BYTES, quantity


def device_of(words: str) -> tuple[str, float]:
    """("cpu" or "cuda", bytes of it); a bare size is a GPU's.

    Raises:
        SettingError: neither a device nor a size, or a GPU that is not there.
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
