"""Divides the devices or the cores of this machine among workers, so that none of them uses another one's."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunewise.core.errors import SettingError
from tunewise.core.operating_system import processor_name, usable_cores

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Slot:
    """Where one worker runs.

    Attributes:
        number: its place among the slots, from 0.
        environment: variables of its process.
        cores: the cores that it keeps to; empty where it may use all of them.
        kind: the name of its GPU or processor.
        shares: whether its neighbours take memory bandwidth from it, so that its seconds are not those of one alone.
    """

    number: int
    environment: Mapping[str, str]
    kind: str
    cores: tuple[int, ...] = ()
    shares: bool = True


def threads_each(workers: int) -> int:
    """Return the threads of each of so many workers: what the user set, or an equal share of the cores.

    The number of threads changes the order of sums and with it the last bits, so it is the same in all slots.
    """
    return threads_given() or max(1, len(usable_cores()) // max(workers, 1))


def threads_given() -> int:
    """Return the threads that the user has set for each process; 0 where nothing was set."""
    given = os.environ.get(THREADS, "")
    return int(given) if given.isdigit() else 0


def local_slots(workers: int, device: str | None) -> list[Slot]:
    """Return a slot for each worker on this machine: a GPU each where the model is on GPUs, else a group of cores.

    Args:
        workers: how many.
        device: the device that the user named; None is the best that there is.

    Raises:
        SettingError: there are not so many devices or cores.
    """
    import torch

    environment = {THREADS: str(threads_each(workers))}
    kind = device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    if kind.startswith(("cuda", "mps")):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        count = torch.cuda.device_count() if kind == "cuda" else 1
        if workers > count:
            named = f"{kind} is one device" if kind != "cuda" else f"torch sees {count} GPUs here"
            raise SettingError(f"--workers is {workers}, but {named}; give at most {count}, or --device cpu")
        if kind != "cuda":
            return [Slot(0, environment, kind, shares=False)]
        names = [visible[place] if visible != [""] else str(place) for place in range(workers)]
        return [
            Slot(
                place,
                {**environment, "CUDA_VISIBLE_DEVICES": name},
                torch.cuda.get_device_name(place),
                shares=False,
            )
            for place, name in enumerate(names)
        ]
    cores = usable_cores()
    if workers > len(cores):
        raise SettingError(f"--workers is {workers}, but there are {len(cores)} cores here; give at most {len(cores)}")
    size = len(cores) // workers
    groups = [tuple(cores[place * size : (place + 1) * size]) for place in range(workers)]
    name = processor_name()
    return [Slot(place, environment, name, group, shares=workers > 1) for place, group in enumerate(groups)]


def require_one_kind(kinds: Sequence[str], mixed: bool, remedy: str) -> bool:
    """Return whether the devices of workers are of several kinds, and refuse them where that was not asked for.

    Args:
        kinds: the model of each worker's device.
        mixed: whether they may differ.
        remedy: what the user can do about it.

    Raises:
        SettingError: it names the kinds.
    """
    counts = Counter(kinds)
    if len(counts) > 1 and not mixed:
        named = " and ".join(f"{count} x {kind}" for kind, count in counts.most_common())
        raise SettingError(
            f"the workers have devices of {len(counts)} kinds ({named}), and seconds of one are not those of another; "
            f"{remedy}, or give --mixed to have all rows timed on one device"
        )
    return len(counts) > 1
