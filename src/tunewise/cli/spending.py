"""Shows what a comparison is expected to take, and asks before it takes long."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psutil
import typer

from tunewise.cli.console import echo
from tunewise.core.errors import SettingError
from tunewise.core.units import rough_duration, size

if TYPE_CHECKING:
    from tunewise.results.estimate import Estimate

ASKED_SECONDS = 3600.0  # a comparison that takes longer is asked about
ENOUGH_STEPS = 20  # below which a technique's row shows little but where it starts


def describe(estimate: Estimate, available_bytes: float, minutes: float | None = None) -> list[str]:
    """Return the estimate as lines: all of it, each row, and a warning where memory will not do.

    Args:
        estimate: what is expected.
        available_bytes: memory that the process can have.
        minutes: the budget's minutes, if it is in minutes.
    """
    rows = estimate.rows
    parts = {
        name: sum(getattr(row, name) for row in rows) for name in ("preparing", "training", "scoring", "forgetting")
    }
    named = ", ".join(
        f"{name} {rough_duration(seconds)}" for name, seconds in {**parts, "start": estimate.startup}.items()
    )
    time = f"the budget's {minutes:g} min" if minutes is not None else rough_duration(estimate.seconds)
    count = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
    lines = [f"Estimate: about {time} and {size(estimate.peak_memory_bytes)} for {count} ({named})"]
    width = max(len(row.technique) for row in rows)
    lines += [
        f"  {row.technique:{width}}  {rough_duration(row.seconds):>8}  {size(row.peak_memory_bytes):>8}" for row in rows
    ]
    if minutes is not None and estimate.fewest_steps is not None and estimate.fewest_steps < ENOUGH_STEPS:
        lines.append(
            f"Warning: {minutes:g} min leave a technique as few as {estimate.fewest_steps} training "
            f"step{'' if estimate.fewest_steps == 1 else 's'}, and fewer than {ENOUGH_STEPS} show little; give more "
            "minutes, or compare fewer techniques, such as --techniques base,icl,lora"
        )
    if estimate.peak_memory_bytes > available_bytes:
        largest = max(rows, key=lambda row: row.peak_memory_bytes)
        lines.append(
            f"Warning: {largest.technique} is expected to need {size(largest.peak_memory_bytes)}, and "
            f"{size(available_bytes)} of memory are free; give a smaller --batch-size, --gradient-checkpointing, "
            "--dtype bfloat16, or leave it out"
        )
    return lines


class Consent:
    """Prints an estimate on stderr and asks whether to go on with a comparison of more than an hour.

    Args:
        agreed: whether `--yes` was given.
        minutes: the budget's minutes, if it is in minutes.
    """

    def __init__(self, agreed: bool, minutes: float | None = None) -> None:
        self._agreed, self._minutes = agreed, minutes
        self._available = psutil.virtual_memory().available

    def __call__(self, estimate: Estimate) -> None:
        """Show the estimate, and ask where it is long.

        Raises:
            SettingError: it takes long and nobody agreed.
        """
        for line in describe(estimate, self._available, self._minutes):
            echo(line, err=True)
        if self._agreed or estimate.seconds <= ASKED_SECONDS:
            return
        takes = f"this comparison is expected to take {rough_duration(estimate.seconds)}"
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise SettingError(f"{takes}; give --yes to run it, or a smaller budget or fewer techniques")
        if not typer.confirm("Go on?", default=False, err=True):
            raise SettingError(f"{takes} and was not started; give a smaller budget or fewer techniques")
