"""What a technique may look at before it is trained, and how much of it it may read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tunewise.core.progress import Progress, silent

if TYPE_CHECKING:
    from tunewise.data.task import Example, Task
    from tunewise.fitting.source_training import SourceTraining


Item = TypeVar("Item")

FORWARD_PASSES = 1.5  # as many tokens are read forwards in the time in which a training reads one, as measured


class AllowanceUsedUpError(Exception):
    """Says that a reading would cost more tokens than an allowance has left; nothing was read."""


@dataclass
class Allowance:
    """Counts the tokens that are read to make choices before training, and says how many may be read.

    `tokens` may be read in all, and `spent` of them have been. A part of an allowance spends from its `whole` too.
    """

    tokens: int
    spent: int = 0
    whole: Allowance | None = None

    @classmethod
    def of_training(cls, tokens: float) -> Allowance:
        """Return what may be read before training where a training reads `tokens`: the work of that training.

        Choosing takes forward passes alone, on prompts that are longer than a training's sequences; a token of a
        training with LoRA takes as long as `FORWARD_PASSES` tokens of them.
        """
        return cls(max(int(FORWARD_PASSES * tokens), 0))

    @property
    def left(self) -> int:
        """Return the tokens that may still be read, from 0 on."""
        left = max(self.tokens - self.spent, 0)
        return left if self.whole is None else min(left, self.whole.left)

    def spend(self, tokens: int) -> None:
        """Count tokens that are about to be read for a choice.

        Raises:
            AllowanceUsedUpError: fewer are left; none are counted.
        """
        if tokens > self.left:
            raise AllowanceUsedUpError(f"{tokens:,} tokens are more than the {self.left:,} that are left")
        self.count(tokens)

    def count(self, tokens: int) -> None:
        """Count tokens that are read in any case, however many are left."""
        self.spent += tokens
        if self.whole is not None:
            self.whole.count(tokens)

    def part(self, share: float) -> Allowance:
        """Return an allowance of this share of what is left."""
        return Allowance(int(share * self.left), whole=self)


class Reading(Protocol):
    """Describes examples laid out for the model, as the attachment renders them now, and not read yet."""

    @property
    def tokens(self) -> int:
        """The tokens that reading computes; what examples share is counted once for each forward pass."""

    def losses(self) -> list[tuple[float, int]]:
        """Read them; return for each example the nats of its answer and the number of the answer's tokens."""


@dataclass
class Readings:
    """Keeps what was read before a training, so that trainings with the same preparation need not read it again.

    It keeps nothing unless `keeps` says so. What it keeps belongs to one seed and to one `Technique.preparation()`.
    """

    keeps: bool = False
    _kept: dict[tuple[str, int], tuple[Any, int]] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: tuple[str, int], read: Callable[[], Item], allowance: Allowance) -> Item:
        """Return what `read` returned when it was first called under this key, and count the tokens that it counted."""
        if key in self._kept:
            value, tokens = self._kept[key]
            allowance.count(tokens)
            return value
        before = allowance.spent
        result = read()
        if self.keeps:
            self._kept[key] = result, allowance.spent - before
        return result


@dataclass(frozen=True)
class Study:
    """Holds what a technique may look at before it is trained.

    `lay_out(examples)` lays examples out for the attachment as it is. `allowance` counts the tokens read. `trains`
    runs trainings on other data than the task's, such as those of source tasks. `readings` keeps what the trainings of
    a search read in common.
    """

    task: Task
    seed: int
    lay_out: Callable[[Sequence[Example]], Reading]
    allowance: Allowance
    trains: SourceTraining
    report: Progress = silent
    readings: Readings = field(default_factory=Readings)
    _reads: Counter[str] = field(default_factory=Counter, init=True, repr=False)  # shared by copies with other fields

    def once(self, what: str, read: Callable[[], Item]) -> Item:
        """Return what `read()` returns, without reading again where a training with the same preparation has done so.

        What is returned must not be changed, and must depend on nothing but the seed, the task and the settings in
        `Technique.preparation()`.
        """
        key = what, self._reads[what]
        self._reads[what] += 1
        return self.readings.once(key, read, self.allowance)

    def validation_loss(self) -> float:
        """Return the loss on validation of the attachment as it is, in nats per answer token; it is always computed."""
        reading = self.lay_out(self.task.validation)
        self.allowance.count(reading.tokens)
        losses = self.once("losses", reading.losses)
        return sum(nats for nats, _ in losses) / max(sum(count for _, count in losses), 1)

    def losses(self, examples: Sequence[Example]) -> list[float]:
        """Return each example's share of their loss; the mean of the shares is the loss in nats per answer token.

        Raises:
            AllowanceUsedUpError: reading them costs more than is left of the allowance.
        """
        reading = self.lay_out(examples)
        self.allowance.spend(reading.tokens)
        losses = self.once("losses", reading.losses)
        mean_tokens = max(sum(count for _, count in losses), 1) / max(len(losses), 1)
        return [nats / mean_tokens for nats, _ in losses]

    def counted(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        """Yield the items one by one and report progress as `what`."""
        for done, item in enumerate(items):
            self.report(what, done, len(items))
            yield item
        self.report(what, len(items), len(items))
