"""The thread that owns the model: requests in through a bounded queue, pieces of answers out.

Requests of one adaptation are decoded together, those that come later join between two steps. Adaptations take turns
of a few steps each. Nothing else touches the model while it runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from tunewise.core.errors import TunewiseError
from tunewise.serve.adaptation_pool import Wardrobe
from tunewise.serve.decoding import Cohort, Row, Sampling, Token
from tunewise.serve.detokenizer import Text
from tunewise.serve.prompts import Question, Reader

_TURN = 8  # decoding steps before another adaptation that waits has its turn
_log = logging.getLogger("tunewise")


@dataclass(frozen=True)
class Started:
    """The prompt was read: how long it is, and what it cites."""

    prompt_tokens: int
    sources: list[str]


@dataclass(frozen=True)
class Piece:
    """More of the answer: text that is certain now, and the token that was drawn."""

    text: str
    token: Token


@dataclass(frozen=True)
class Ended:
    """The answer is whole; `reason` is "stop" or "length"."""

    reason: str
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """There will be no (more) answer."""

    error: Exception


Event: TypeAlias = Started | Piece | Ended | Failed


class Busy(TunewiseError):
    """The queue is full."""


class Stopping(TunewiseError):
    """The server takes no more requests."""


@dataclass(eq=False)
class Job:
    """One answer that is asked for: of which adaptation, to what, how, and who is told (on the engine's thread).

    `cancelled` may be set by anyone at any time; it is then dropped before the next step, without another event.
    """

    model: str
    question: Question
    sampling: Sampling
    tell: Callable[[Event], None]
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    cancelled: bool = False


@dataclass(eq=False)
class _Answer:
    """A job in the making; the `owner` of a row."""

    job: Job
    text: Text
    room: int
    end: int | None
    drawn: int = 0

    def take(self, token: Token) -> str | None:
        """Tell a token; why the answer ends with it, or None."""
        self.drawn += 1
        said = self.text.push(token.id) if token.id != self.end else ""
        reason = "stop" if token.id == self.end or self.text.stopped else "length" if self.drawn == self.room else None
        self.job.tell(Piece(said + (self.text.finish() if reason else ""), token))
        return reason


@dataclass
class Counts:
    """What the engine has done since it began, and what it does now."""

    waiting: int = 0
    running: int = 0
    steps: int = 0
    rows: int = 0
    cancelled: int = 0
    switches: int = 0


class Engine:
    """Answers jobs on a thread of its own; `queue` jobs may wait, `rows` are decoded at a time."""

    def __init__(self, wardrobe: Wardrobe, *, queue: int = 256, rows: int = 32) -> None:
        self.wardrobe, self.queue, self.rows = wardrobe, queue, rows
        self.counts, self.created = Counts(), int(time.time())
        self.readers = {name: Reader(outfit.adaptation) for name, outfit in wardrobe.outfits.items()}
        self._waiting: deque[Job] = deque()
        self._running: dict[str, list[Cohort]] = {}
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of the jobs, or none.

        Raises:
            Busy: there is no room in the queue for all of them.
            Stopping: the engine ends.
        """
        with self._changed:
            if self._ending or not self.alive:
                raise Stopping("the server is stopping; ask another one, or again when it is back")
            if len(self._waiting) + len(jobs) > self.queue:
                raise Busy(f"{len(self._waiting)} requests wait already and at most {self.queue} may; try again later")
            self._waiting.extend(jobs)
            self.counts.waiting = len(self._waiting)
            self._changed.notify()

    def stop(self, timeout: float | None = None) -> None:
        """Take no more jobs, finish those that were taken, and end the thread; what is left then is told so."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self.alive:
            self._thread.join(timeout)

    @torch.no_grad()
    def _work(self) -> None:
        try:
            while self._wait():
                for name in self._turns():
                    self._turn(name)
        except BaseException as error:
            _log.exception("the engine stopped")
            self._fail_all(error)
            raise
        finally:
            self.wardrobe.bare()

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when all is done and the engine ends."""
        with self._changed:
            while not (self._waiting or self._running):
                if self._ending:
                    return False
                self._changed.wait()
        return True

    def _turns(self) -> list[str]:
        """The adaptations that have something to do, those that wait longest first."""
        with self._changed:
            return list(dict.fromkeys([*self._running, *(job.model for job in self._waiting)]))

    def _turn(self, name: str) -> None:
        """A few steps of one adaptation."""
        self.wardrobe.wear(name)
        self.counts.switches = self.wardrobe.switches
        cohorts = self._running.pop(name, [])
        for _ in range(_TURN):
            cohorts = self._joined(cohorts, self._admit(name, sum(len(cohort.rows) for cohort in cohorts)))
            cohorts = [cohort for cohort in cohorts if self._advance(cohort)]
            if not cohorts:
                break
        if cohorts:
            self._running[name] = cohorts
        self.counts.running = self._others()

    def _others(self) -> int:
        return sum(len(cohort.rows) for cohorts in self._running.values() for cohort in cohorts)

    def _admit(self, name: str, own: int) -> Cohort | None:
        """The waiting jobs of this adaptation for which there is room, as a new cohort."""
        room = self.rows - own - self._others()
        taken: list[Job] = []
        with self._changed:
            for job in [*self._waiting]:
                if job.cancelled:
                    self.counts.cancelled += 1
                elif job.model == name and len(taken) < room:
                    taken.append(job)
                else:
                    continue
                self._waiting.remove(job)
            self.counts.waiting = len(self._waiting)
        rows = [row for job in taken if (row := self._read(job)) is not None]
        if not rows:
            return None
        self.counts.running = own + self._others() + len(rows)
        try:
            return Cohort(self.wardrobe.base, rows)
        except Exception as error:  # whatever a technique's hooks raise costs these rows alone
            _fail(rows, error)
            return None

    def _read(self, job: Job) -> Row | None:
        """The row of a job, or None where it is refused."""
        reader = self.readers[job.model]
        try:
            prompt = reader.read(job.question, job.max_tokens)
        except Exception as error:  # a chat template or a search raises what it likes; it costs this request alone
            job.tell(Failed(error))
            return None
        text = Text(reader.decode, (*job.stops, *prompt.stops), not job.question.raw)
        job.tell(Started(len(prompt.ids), prompt.sources))
        return Row(prompt.ids, job.sampling, _Answer(job, text, prompt.room, reader.end))

    def _joined(self, cohorts: list[Cohort], new: Cohort | None) -> list[Cohort]:
        if new is None or any(cohort.join(new) for cohort in cohorts[:1]):
            return cohorts
        return [*cohorts, new]

    def _advance(self, cohort: Cohort) -> bool:
        """Draw a token for every row, drop what is done or cancelled, read the tokens; False when none is left."""
        self._drop_cancelled(cohort)
        if not cohort.rows:
            return False
        try:
            tokens, going = cohort.draw(), []
            for place, (row, token) in enumerate(zip(cohort.rows, tokens, strict=True)):
                reason = row.owner.take(token)
                if reason is None:
                    going.append(place)
                else:
                    row.owner.job.tell(Ended(reason, row.owner.drawn))
            self.counts.steps, self.counts.rows = self.counts.steps + 1, self.counts.rows + len(tokens)
            cohort.keep(going)
            if going:
                cohort.step([tokens[place].id for place in going])
        except Exception as error:  # whatever a technique's hooks raise costs these rows alone
            _fail(cohort.rows, error)
            return False
        return bool(going)

    def _drop_cancelled(self, cohort: Cohort) -> None:
        going = [place for place, row in enumerate(cohort.rows) if not row.owner.job.cancelled]
        self.counts.cancelled += len(cohort.rows) - len(going)
        cohort.keep(going)

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self._ending = True
            waiting, self._waiting = list(self._waiting), deque()
        failure = TunewiseError(f"the engine stopped ({error!r}); start the server again")
        for job in waiting:
            job.tell(Failed(failure))
        for cohorts in self._running.values():
            for cohort in cohorts:
                _fail(cohort.rows, failure)


def _fail(rows: Sequence[Row], error: Exception) -> None:
    _log.warning("%d answers failed: %s", len(rows), error)
    for row in rows:
        row.owner.job.tell(Failed(error))
