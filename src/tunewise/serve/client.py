"""Requests to the engine from the same process: for the terminal and for files of prompts."""

from __future__ import annotations

import queue
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tunewise.contract.attachment import CitedText
from tunewise.data.task import Message
from tunewise.engine.decoding import Sampling
from tunewise.serve.prompts import Question
from tunewise.serve.scheduler import Ended, Engine, Event, Job, Piece, Started


@dataclass
class Reply:
    """One answer as far as it has been written; `reason` is why it ended, `error` why it failed."""

    text: str = ""
    citations: list[CitedText] = field(default_factory=list)
    reason: str | None = None
    error: Exception | None = None

    @property
    def sources(self) -> list[str]:
        """Return the sources of what the prompt quotes."""
        return [each.source for each in self.citations]

    @property
    def done(self) -> bool:
        """Tell whether the answer has ended or failed."""
        return self.reason is not None or self.error is not None

    def take(self, event: Event) -> None:
        """Add what an event of the engine says to the reply."""
        if isinstance(event, Started):
            self.citations = event.citations
        elif isinstance(event, Piece):
            self.text += event.text
        elif isinstance(event, Ended):
            self.reason = event.reason
        else:
            self.error = event.error


def ask(
    engine: Engine, talks: Mapping[str, Sequence[Message]], sampling: Sampling, max_tokens: int
) -> Iterator[dict[str, Reply]]:
    """Let several adaptations answer at once, each its own conversation.

    Args:
        engine: the running engine.
        talks: the conversation of each adaptation, by the adaptation's name.
        sampling: how tokens are drawn.
        max_tokens: the largest number of tokens of an answer.

    Yields:
        All replies, by name, each time that one of them has changed.
    """
    events, replies = queue.Queue[tuple[str, Event]](), {name: Reply() for name in talks}

    def job_of(name: str, talk: Sequence[Message]) -> Job:
        return Job(name, Question(tuple(talk)), sampling, lambda event: events.put((name, event)), max_tokens)

    jobs = [job_of(name, talk) for name, talk in talks.items()]
    engine.submit(jobs)
    try:
        while not all(reply.done for reply in replies.values()):
            name, event = events.get()
            replies[name].take(event)
            yield replies
    finally:
        for job in jobs:
            job.cancelled = True


def answer_all(
    engine: Engine, model: str, questions: Mapping[int, Question], batch: int, max_tokens: int
) -> Generator[tuple[int, Reply], None, None]:
    """Answer many questions greedily, at most `batch` at a time.

    Args:
        engine: the running engine.
        model: the adaptation's name.
        questions: by index.
        batch: how many answers are written at a time.
        max_tokens: the largest number of tokens of an answer.

    Yields:
        Index and reply of each question, in the order in which they finish.
    """
    events, waiting, replies = queue.Queue[tuple[int, Event]](), list(questions)[::-1], dict[int, Reply]()
    jobs: dict[int, Job] = {}
    try:
        while waiting or replies:
            while waiting and len(replies) < batch:
                index = waiting.pop()
                replies[index] = Reply()

                def tell(event: Event, index: int = index) -> None:
                    events.put((index, event))

                jobs[index] = Job(model, questions[index], Sampling(), tell, max_tokens)
                engine.submit([jobs[index]])
            index, event = events.get()
            replies[index].take(event)
            if replies[index].done:
                yield index, replies.pop(index)
                jobs.pop(index)
    finally:
        for job in jobs.values():
            job.cancelled = True
