"""Devices in words: `cpu`, `cuda:1`, or a size such as `24GB`."""

from __future__ import annotations

import re

from tunewise.errors import SettingError

_UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2.0**20, "GiB": 2.0**30}


def device_of(words: str) -> tuple[str, float]:
    """("cpu" or "cuda", bytes of it); a bare size is a GPU's.

    Raises:
        SettingError: neither a device nor a size, or a GPU that is not there.
    """
    import psutil
    import torch

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", words.strip())
    if found and found[2] in _UNITS and float(found[1]) > 0:
        return "cuda", float(found[1]) * _UNITS[found[2]]
    if words == "cpu":
        return "cpu", float(psutil.virtual_memory().total)
    if re.fullmatch(r"cuda(:\d+)?", words):
        number = int(words.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise SettingError(f'--device is "{words}", but torch sees {torch.cuda.device_count()} GPUs here')
        return "cuda", float(torch.cuda.mem_get_info(number)[1])
    raise SettingError(f'--device is "{words}" but must be cpu, cuda, cuda:1 and so on, or a size such as 24GB')
