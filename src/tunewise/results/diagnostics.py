"""Defines what keeps a score in proportion: confused labels, lengths of answers, the most frequent label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from tunewise.core.json_record import Check, Count, JsonRecord, NonNegative
from tunewise.core.text import show

ONE_CLASS_SHARE = 0.95  # of the predictions; from here on a technique is said to predict one class
Share = Annotated[float, Check(lambda value: 0 <= value <= 1, "from 0 to 1")]


@dataclass(frozen=True, kw_only=True)
class Majority(JsonRecord):
    """Holds the score of always giving the most frequent label of the training split; no technique does that.

    Attributes:
        label: the most frequent label.
        share: its share of the training split.
        mean: its score on the test examples of the comparison, in the metric of the task.
        low: lower end of the score's 95 % interval over the test examples.
        high: upper end of it.
    """

    label: str
    share: Share
    mean: float
    low: float
    high: float

    @property
    def answer(self) -> str:
        """Name the answer: always answering "joy"."""
        return f'always answering "{show(self.label)}"'


@dataclass(frozen=True, kw_only=True)
class Confusion(JsonRecord):
    """Counts how often each label was predicted for the examples of each label: `counts[label][predicted label]`.

    Pairs that did not occur are left out, so that the record of a task with many labels stays small.
    """

    counts: dict[str, dict[str, Count]]

    @classmethod
    def of(cls, labels: Iterable[str], predicted: Iterable[str]) -> Confusion:
        """Count the pairs of the right and the predicted label of each example."""
        counts: dict[str, dict[str, int]] = {}
        for (label, answer), number in sorted(Counter(zip(labels, predicted, strict=True)).items()):
            counts.setdefault(label, {})[answer] = number
        return cls(counts=counts)

    @classmethod
    def total(cls, parts: Iterable[Confusion]) -> Confusion:
        """Add the counts of several seeds."""
        counts: dict[str, dict[str, int]] = {}
        for part in parts:
            for label, row in part.counts.items():
                for answer, number in row.items():
                    into = counts.setdefault(label, {})
                    into[answer] = into.get(answer, 0) + number
        return cls(counts=counts)

    def pairs(self) -> list[tuple[str, str, int]]:
        """Return (label, predicted label, how often), most frequent first."""
        pairs = [(label, answer, number) for label, row in self.counts.items() for answer, number in row.items()]
        return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))

    def mistakes(self) -> list[tuple[str, str, int]]:
        """Return the pairs of different labels, most frequent first."""
        return [pair for pair in self.pairs() if pair[0] != pair[1]]

    def one_class(self) -> tuple[str, float] | None:
        """Return the label that (nearly) all examples get, and its share of the predictions.

        It is None where no label has 95 % of the predictions, and where some label has that share of the examples, for
        then a good classifier predicts it as often; but a label that every example gets is returned wherever the
        examples have different labels.
        """
        predicted = Counter[str]()
        for _, answer, number in self.pairs():
            predicted[answer] += number
        if not predicted.total():
            return None
        label, number = predicted.most_common(1)[0]
        share = number / predicted.total()
        most_examples = max(sum(row.values()) for row in self.counts.values()) / predicted.total()
        if share == 1:
            return (label, share) if len(self.counts) > 1 else None
        return (label, share) if share >= ONE_CLASS_SHARE > most_examples else None


@dataclass(frozen=True)
class ClassScores:
    """Says how well the examples of one label are found: precision, recall, F1 and the number of examples."""

    label: str
    precision: float
    recall: float
    f1: float
    examples: int


def class_scores(confusion: Confusion, labels: Sequence[str]) -> list[ClassScores]:
    """Compute the scores of each label that examples or predictions have, in the order of `labels`."""
    from sklearn.metrics import precision_recall_fscore_support

    pairs = confusion.pairs()
    present = {name for label, answer, _ in pairs for name in (label, answer)}
    shown = [label for label in labels if label in present]
    if not shown:
        return []
    figures = precision_recall_fscore_support(
        [label for label, _, _ in pairs],
        [answer for _, answer, _ in pairs],
        labels=shown,
        sample_weight=[number for _, _, number in pairs],
        zero_division=0,
    )
    return [
        ClassScores(label, float(precision), float(recall), float(f1), round(float(examples)))
        for label, precision, recall, f1, examples in zip(shown, *figures, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class AnswerLengths(JsonRecord):
    """Measures generated answers in tokens.

    Attributes:
        answers: how many there are.
        mean: their mean length.
        longest: the length of the longest.
        reference_mean: the mean length of the expected answers.
        never_ended: how many were cut at the limit, before an end-of-sequence token or the text that ends an answer.
        limit: the largest number of tokens that an answer could have.
    """

    answers: Count
    mean: NonNegative
    longest: Count
    reference_mean: NonNegative
    never_ended: Count
    limit: Count

    @classmethod
    def total(cls, parts: Sequence[AnswerLengths]) -> AnswerLengths:
        """Summarise the answers of several seeds."""
        answers = sum(part.answers for part in parts)
        return cls(
            answers=answers,
            mean=sum(part.mean * part.answers for part in parts) / max(answers, 1),
            longest=max(part.longest for part in parts),
            reference_mean=sum(part.reference_mean * part.answers for part in parts) / max(answers, 1),
            never_ended=sum(part.never_ended for part in parts),
            limit=max(part.limit for part in parts),
        )


def one_class_sentence(confusions: Sequence[Confusion]) -> str | None:
    """Say that (nearly) all examples get one label, in which of the seeds, or return None."""
    found = [(seed, collapse) for seed, part in enumerate(confusions) if (collapse := part.one_class()) is not None]
    if not found:
        return None
    parts = []
    for label in dict.fromkeys(label for _, (label, _) in found):
        share = min(share for _, (name, share) in found if name == label)
        parts.append(f'"{show(label)}" for {"all" if share == 1 else f"{share:.0%} of the"} test examples')
    seeds = f" (in {len(found)} of {len(confusions)} seeds)" if len(found) < len(confusions) else ""
    return f"predicts {' or '.join(parts)}{seeds}"


def never_ended_sentence(lengths: AnswerLengths) -> str | None:
    """Say how many answers never ended, or return None where all did."""
    if not lengths.never_ended:
        return None
    return f"{lengths.never_ended:,} of {lengths.answers:,} answers never ended (cut at {lengths.limit} tokens)"
