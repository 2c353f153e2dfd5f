"""Reads `--workers`: a number of processes on this machine, or the address of a Ray cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tunewise.comparison.slots import THREADS, threads_each
from tunewise.core.errors import SettingError

AUTO = "auto"
_RAY = "ray://"


@dataclass(frozen=True)
class Workers:
    """Says who runs the trials: `count` processes here, or actors on the Ray cluster at `address`."""

    count: int = 0
    address: str | None = None

    @classmethod
    def read(cls, text: str) -> Workers:
        """Read what the user gave.

        Raises:
            SettingError: it is neither a number from 1 on nor an address.
        """
        words = text.strip()
        if words == AUTO or (words.startswith(_RAY) and len(words) > len(_RAY)):
            return cls(address=words)
        if not words.isdecimal():
            raise SettingError(
                f'--workers is "{text}" but must be a number, the address of a Ray cluster such as '
                f"{_RAY}head:10001, or {AUTO} for the cluster that this machine is part of"
            )
        if int(words) < 1:
            raise SettingError(f"--workers is {words} but must be at least 1")
        return cls(count=int(words))

    def environment(self) -> dict[str, str]:
        """Return the variables of the process that leads them: it computes with as many threads as each of them."""
        if self.address is not None or THREADS in os.environ:
            return {}
        return {THREADS: str(threads_each(self.count))}
