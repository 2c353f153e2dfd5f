"""What a technique may look at before it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tunewise.core.progress import Progress, silent

if TYPE_CHECKING:
    from tunewise.data.task import Task


Item = TypeVar("Item")


@dataclass(frozen=True)
class Study:
    """Holds what a technique may look at before it is trained; `validation_loss()` scores the attachment as it is."""

    task: Task
    seed: int
    validation_loss: Callable[[], float]
    report: Progress = silent

    def counted(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        """Yield the items one by one and report progress as `what`."""
        for done, item in enumerate(items):
            self.report(what, done, len(items))
            yield item
        self.report(what, len(items), len(items))
