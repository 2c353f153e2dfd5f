"""Asking the engine from the same process: for the terminal and for files of prompts."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tunewise.data.task import Message
from tunewise.serve.decoding import Sampling
from tunewise.serve.prompts import Question
from tunewise.serve.scheduler import Ended, Engine, Event, Job, Piece, Started


@dataclass
class Reply:
    """One answer as far as it is known; `error` is why there will be none."""

    text: str = ""
    sources: list[str] = field(default_factory=list)
    reason: str | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.reason is not None or self.error is not None

    def take(self, event: Event) -> None:
        """Bring it up to date."""
        if isinstance(event, Started):
            self.sources = event.sources
        elif isinstance(event, Piece):
            self.text += event.text
        elif isinstance(event, Ended):
            self.reason = event.reason
        else:
            self.error = event.error


def ask(
    engine: Engine, talks: Mapping[str, Sequence[Message]], sampling: Sampling, max_tokens: int
) -> Iterator[dict[str, Reply]]:
    """The replies of several adaptations, each to its own conversation, whenever one of them has grown."""
    events, replies = queue.Queue[tuple[str, Event]](), {name: Reply() for name in talks}

    def job(name: str, talk: Sequence[Message]) -> Job:
        return Job(name, Question(tuple(talk)), sampling, lambda event: events.put((name, event)), max_tokens)

    jobs = [job(name, talk) for name, talk in talks.items()]
    engine.submit(jobs)
    try:
        while not all(reply.done for reply in replies.values()):
            name, event = events.get()
            replies[name].take(event)
            yield replies
    finally:
        for own in jobs:
            own.cancelled = True


def answered(
    engine: Engine, model: str, asked: Mapping[int, Sequence[Message]], batch: int, max_tokens: int
) -> Iterator[tuple[int, Reply]]:
    """The greedy reply to each numbered conversation, as they are finished; `batch` are written at a time."""
    events, waiting, replies = queue.Queue[tuple[int, Event]](), list(asked)[::-1], dict[int, Reply]()
    jobs: dict[int, Job] = {}
    try:
        while waiting or replies:
            while waiting and len(replies) < batch:
                number = waiting.pop()
                replies[number] = Reply()

                def tell(event: Event, number: int = number) -> None:
                    events.put((number, event))

                jobs[number] = Job(model, Question(tuple(asked[number])), Sampling(), tell, max_tokens)
                engine.submit([jobs[number]])
            number, event = events.get()
            replies[number].take(event)
            if replies[number].done:
                yield number, replies.pop(number)
                jobs.pop(number)
    finally:
        for job in jobs.values():
            job.cancelled = True
