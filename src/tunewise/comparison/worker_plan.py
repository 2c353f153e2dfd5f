"""What the worker process of a comparison is told first."""

from __future__ import annotations

from dataclasses import dataclass

from tunewise.comparison.workers import Workers
from tunewise.core.json_record import JsonRecord


@dataclass(frozen=True, kw_only=True)
class WorkerPlan(JsonRecord):
    """Says what a worker process carries out.

    Attributes:
        request: the comparison.
        attempt_id: identifies this attempt at it.
        estimating: whether it reports its estimate and waits before it goes on.
        estimate: the one of an earlier process of this attempt, or None.
        workers: what it leads, as `--workers` says, or None where trials run in itself.
        patience: seconds without a sign of life after which a trial is given up.
        mixed: whether workers may have devices of several kinds.
    """

    request: dict[str, object]
    attempt_id: str
    estimating: bool
    estimate: dict[str, object] | None
    workers: str | None
    patience: float
    mixed: bool

    @property
    def led(self) -> Workers | None:
        """The workers that it leads."""
        return Workers.read(self.workers) if self.workers is not None else None

    @property
    def elsewhere(self) -> bool:
        """Whether these are not processes of this machine, so that each must be told to end."""
        return self.led is not None and self.led.address is not None
