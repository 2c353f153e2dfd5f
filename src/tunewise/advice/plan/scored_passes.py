"""What scored examples take: the work and the memory of a forward pass, and of each example in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunewise.advice.plan.ledger import Ledger, Work
from tunewise.contract.attachment import Attachment
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.packing import PASS_TOKENS, shared_prefix
from tunewise.fitting.scoring import encoder_for, label_table, loss

_EXAMPLES = 8  # scored examples of a trace
_TEXTS = 48  # sequences of a trace that scores labels, at most


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Says what scored examples take: `once` per forward pass, and `each` per example.

    `tokens` are those of a mean example beyond the beginning that all share. Peaks are in bytes, and like the work of
    one pass: `peak` with one example, and `peak_each` more for each further one.
    """

    once: Work
    each: Work
    tokens: float
    shared: float
    peak: float
    peak_each: float

    def passes(self, examples: int) -> float:
        """Return how many forward passes these examples take."""
        return max(1.0, examples * self.tokens / max(PASS_TOKENS - self.shared, 1.0))

    def work(self, examples: int) -> Work:
        """Return passes x once + examples x each."""
        return Work().plus(self.once, self.passes(examples)).plus(self.each, examples) if examples else Work()

    def peak_of(self, examples: int) -> float:
        """Return the peak of a pass that is as full as these examples make it: peak + (examples - 1) x peak_each."""
        return self.peak + (examples / self.passes(examples) - 1) * self.peak_each


@dataclass(frozen=True, kw_only=True)
class TwoPasses:
    """Holds what was counted in a pass over some examples, and in one over more of them.

    `few` and `many` count the examples, as if all were of mean length; they are the same where there is one only.
    """

    few: float
    many: float
    work_of_few: Work
    work_of_many: Work
    peak_of_few: float
    peak_of_many: float
    tokens: float
    shared: float

    def divided(self) -> Passes:
        """Divide work and peak into a part per pass and one per example."""
        if self.few == self.many:
            once, each, peak, grown = Work(), self.work_of_many, self.peak_of_many, 0.0
        else:
            further = max(self.many - self.few, 0.1)
            grows = self.work_of_many.plus(self.work_of_few, -1)
            each = Work().plus(Work(*(max(figure, 0.0) for figure in grows)), 1 / further)
            once = Work(*(max(figure, 0.0) for figure in self.work_of_few.plus(each, -self.few)))
            grown = max(self.peak_of_many - self.peak_of_few, 0.0) / further
            peak = max(self.peak_of_few - (self.few - 1) * grown, 0.0)
        return Passes(once=once, each=each, tokens=self.tokens, shared=self.shared, peak=peak, peak_each=grown)


@dataclass(frozen=True, kw_only=True)
class CountedPasses:
    """Holds what the loss on answers takes, and what scoring all labels takes; None where answers are generated."""

    answers: TwoPasses
    labels: TwoPasses | None


def traced_passes(attachment: Attachment, task: Task, ledger: Ledger) -> CountedPasses:
    """Count what the loss on answers and what scoring all labels takes."""
    examples = _spread(task.validation or task.test or task.train, _EXAMPLES)
    encoder, labels = encoder_for(attachment, task), None
    rendered = [attachment.render(example) for example in examples]
    if task.kind == "classification":
        shown = rendered[: max(2, min(_EXAMPLES, _TEXTS // max(len(task.labels), 1)))]
        prompts, tries = attachment.base.label_tokens.prompts(encoder, shown)
        added = [len(trie.ids) for trie in tries]
        labels = _passes(shown, prompts, lambda part: label_table(attachment, task, part), ledger, added)
    answers = _passes(examples, encoder.encode(rendered), lambda part: loss(attachment, task, part), ledger)
    return CountedPasses(answers=answers, labels=labels)


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Return up to `count` examples whose lengths are spread as those of all are, the middle one first."""
    ordered = sorted(examples, key=lambda example: len(example.prompt) + len(example.answer))
    count = min(count, len(ordered))
    places = [int((place + 0.5) * len(ordered) / count) for place in range(count)]
    return [ordered[place] for place in sorted(places, key=lambda place: abs(place - len(ordered) / 2))]


def _passes(
    examples: Sequence[Example],
    sequences: Sequence[TokenSequence],
    score: Callable[[Sequence[Example]], object],
    ledger: Ledger,
    added: Sequence[int] = (),
) -> TwoPasses:
    """Score half of the examples, then all.

    Half of them have as many labelled tokens as are computed at once where the vocabulary is large, so that logits,
    which do not grow from there on, are in the part per pass.

    Args:
        examples: what is scored; few enough for one pass.
        sequences: their tokens, from which the mean follows.
        score: scores examples.
        ledger: counts.
        added: tokens that labels add to each of the sequences.
    """
    shared = shared_prefix(sequences)
    more = added or [0] * len(sequences)
    sizes = [len(sequence.ids) - shared + tokens for sequence, tokens in zip(sequences, more, strict=True)]
    tokens = sum(sizes) / len(sizes)
    half = max(len(examples) // 2, 1)
    work_of_few, peak_of_few = _counted(lambda: score(examples[:half]), ledger)
    work_of_many, peak_of_many = _counted(lambda: score(examples), ledger)
    return TwoPasses(
        few=sum(sizes[:half]) / max(tokens, 1.0),
        many=sum(sizes) / max(tokens, 1.0),
        work_of_few=work_of_few,
        work_of_many=work_of_many,
        peak_of_few=peak_of_few,
        peak_of_many=peak_of_many,
        tokens=tokens,
        shared=float(shared),
    )


def _counted(run: Callable[[], object], ledger: Ledger) -> tuple[Work, float]:
    """Return the work of a call, and the bytes that are alive at most in it."""
    before = ledger.work
    ledger.take_allocations()
    run()
    return ledger.work.plus(before, -1), float(ledger.take_allocations().peak)
