"""Scores an attachment on a task: label likelihoods, greedy answers, loss per answer token.

Everything here runs without gradients and does the same arithmetic for the base and for what was tuned.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tunewise.contract.attachment import Attachment
from tunewise.contract.study import Study
from tunewise.core.progress import Progress, silent
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import Encoder, TokenSequence
from tunewise.engine.forward import batch_of, nll, why_not_packed
from tunewise.engine.generation import answer_room, generate, stop_of
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, by_beginning, by_tokens, packed_batch
from tunewise.fitting import metrics


@dataclass(frozen=True)
class Scores:
    """How well a split is answered.

    `per_example` holds the metric in [0, 1]; `nll` is in nats per answer token over the whole split; `others` are the
    further metrics; `cut` counts examples that did not fit the window whole.
    """

    metric: str
    per_example: list[float]
    nll: float
    others: dict[str, float]
    predictions: list[str] = field(repr=False)
    seconds_per_example: float = 0.0
    prompt_tokens: float = 0.0
    cut: int = 0

    @property
    def mean(self) -> float:
        """The metric's mean."""
        return sum(self.per_example) / len(self.per_example)


def encoder_for(attachment: Attachment, task: Task) -> Encoder:
    """The encoder that leaves room for this attachment's virtual tokens."""
    return Encoder(attachment.base, task, attachment.virtual_tokens, attachment.virtual_suffix)


@torch.no_grad()
def loss(attachment: Attachment, task: Task, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood in nats per answer token."""
    total, count, _ = _likelihood(attachment, encoder_for(attachment, task).encode(_rendered(attachment, examples)))
    return total / max(count, 1)


def study(
    attachment: Attachment, task: Task, validation: Sequence[Example], seed: int, report: Progress = silent
) -> Study:
    """What a technique may look at before training: of validation, the sample alone that all choices are made on."""
    shown = replace(task, validation=tuple(validation))
    return Study(shown, seed, lambda: loss(attachment, shown, shown.validation), report)


@torch.no_grad()
def score(
    attachment: Attachment,
    task: Task,
    examples: Sequence[Example],
    progress: Progress = silent,
    *,
    as_given: bool = False,
) -> Scores:
    """Answer the examples and score the answers by the task's metric.

    With `as_given`, the attachment does not put its own text, such as worked examples, before a question.
    """
    rendered = list(examples) if as_given else _rendered(attachment, examples)
    if task.kind == "classification":
        return _classify(attachment, task, examples, rendered, progress)
    if task.kind == "text":
        return _likeliness(attachment, task, rendered)
    return _generate(attachment, task, examples, rendered, progress)


def _rendered(attachment: Attachment, examples: Sequence[Example]) -> list[Example]:
    return [attachment.render(example) for example in examples]


def _likelihood(attachment: Attachment, sequences: list[TokenSequence]) -> tuple[float, int, list[tuple[float, int]]]:
    """(total nats, tokens, the same per sequence) over the answers' tokens."""
    found = [(0.0, 0)] * len(sequences)
    for group in _groups(attachment.base, sequences):
        batch = batch_of(attachment.base, [_last_answer_only(sequences[index]) for index in group])
        values = nll(attachment.base, batch).double()
        sums = torch.zeros(len(group), dtype=torch.float64, device=values.device).index_add_(0, batch.owner, values)
        counts = torch.bincount(batch.owner, minlength=len(group))
        for index, total, count in zip(group, sums.tolist(), counts.tolist(), strict=True):
            found[index] = total, count
    return sum(total for total, _ in found), sum(count for _, count in found), found


def _groups(base: Base, sequences: list[TokenSequence]) -> list[list[int]]:
    """Indices of the sequences of each scoring pass."""
    return (by_tokens if why_not_packed(base) else by_beginning)(sequences, PASS_TOKENS)


def _last_answer_only(sequence: TokenSequence) -> TokenSequence:
    """The answer alone is scored, not the labelled turns before it."""
    labelled = [place >= sequence.prompt for place in range(len(sequence.ids))]
    return TokenSequence(sequence.ids, labelled, sequence.prompt, sequence.cut)


@dataclass(frozen=True)
class LabelTable:
    """Negative log-likelihoods of labels: `nll[example][label]` in nats, end mark included, over `tokens` tokens."""

    nll: list[list[float]]
    tokens: list[list[int]]
    prompts: list[TokenSequence] = field(repr=False)


@torch.no_grad()
def label_table(
    attachment: Attachment,
    task: Task,
    rendered: Sequence[Example],
    progress: Progress = silent,
) -> LabelTable:
    """Each label's likelihood after prompts that are computed once for all labels, and what they share once for all."""
    encoder = encoder_for(attachment, task)
    answers = _label_ids(encoder, rendered, task.labels)
    room = max((len(ids) for row in answers for ids in row), default=0)
    prompts = encoder.prompts(rendered, room)
    table: list[list[float]] = [[]] * len(rendered)
    done = 0
    for group in _groups(attachment.base, prompts):
        values = label_nll(attachment.base, [prompts[i] for i in group], [answers[i] for i in group])
        for index, row in zip(group, values, strict=True):
            table[index] = row
        done += len(group)
        progress("scoring", done, len(rendered))
    return LabelTable(table, [[len(ids) for ids in row] for row in answers], prompts)


def _classify(
    attachment: Attachment, task: Task, examples: Sequence[Example], rendered: list[Example], progress: Progress
) -> Scores:
    started = time.perf_counter()
    found, shift = label_table(attachment, task, rendered, progress), attachment.label_bias()
    seconds = (time.perf_counter() - started) / len(examples)
    nll = torch.tensor(found.nll, dtype=torch.float64)
    chosen = [task.labels[place] for place in (nll if shift is None else nll - shift).argmin(1).tolist()]
    gold = [task.labels.index(example.answer) for example in examples]
    tokens = sum(row[label] for row, label in zip(found.tokens, gold, strict=True))
    own = metrics.find(task.metric) if task.metric != "accuracy" else lambda label, answers: float(label in answers)
    return Scores(
        task.metric,
        [own(label, (example.answer,)) for label, example in zip(chosen, examples, strict=True)],
        sum(row[label] for row, label in zip(found.nll, gold, strict=True)) / max(tokens, 1),
        {"macro_f1": metrics.macro_f1(chosen, [example.answer for example in examples], task.labels)},
        chosen,
        seconds,
        sum(len(prompt.ids) for prompt in found.prompts) / len(found.prompts),
        sum(prompt.cut for prompt in found.prompts),
    )


def _label_ids(encoder: Encoder, examples: Sequence[Example], labels: tuple[str, ...]) -> list[list[list[int]]]:
    """Token ids of every label after every prompt."""
    flat = [Example(example.messages, label) for example in examples for label in labels]
    ids = [sequence.ids[sequence.prompt :] for sequence in encoder.encode(flat)]
    return [ids[start : start + len(labels)] for start in range(0, len(ids), len(labels))]


def label_nll(base: Base, prompts: list[TokenSequence], answers: list[list[list[int]]]) -> list[list[float]]:
    """Negative log-likelihood of every label, (prompts, labels)."""
    if why_not_packed(base):
        rows = [[_spelled(prompt, ids) for ids in row] for prompt, row in zip(prompts, answers, strict=True)]
        return [_per_sequence(base, row) for row in rows]
    batch = packed_batch(prompts, base.device, answers)
    values = nll(base, batch).double()
    width = max(len(row) for row in answers)
    sums = torch.zeros(len(prompts) * width, dtype=torch.float64, device=values.device)
    sums.index_add_(0, batch.owner * width + batch.branch, values)
    return [row[: len(own)] for row, own in zip(sums.view(-1, width).tolist(), answers, strict=True)]


def _spelled(prompt: TokenSequence, answer: list[int]) -> TokenSequence:
    return TokenSequence(prompt.ids + answer, [False] * len(prompt.ids) + [True] * len(answer), len(prompt.ids))


def _per_sequence(base: Base, sequences: list[TokenSequence]) -> list[float]:
    batch = batch_of(base, sequences)
    values = nll(base, batch).double()
    sums = torch.zeros(len(sequences), dtype=torch.float64, device=values.device)
    return list(sums.index_add_(0, batch.owner, values).tolist())


def _likeliness(attachment: Attachment, task: Task, rendered: list[Example]) -> Scores:
    """Plain text: the geometric mean probability of a token, so that higher is better as everywhere."""
    started = time.perf_counter()
    sequences = encoder_for(attachment, task).encode(rendered)
    total, count, each = _likelihood(attachment, sequences)
    mean = torch.tensor([nats / max(tokens, 1) for nats, tokens in each])
    return Scores(
        "likelihood",
        torch.exp(-mean).tolist(),
        total / max(count, 1),
        {"perplexity": float(torch.tensor(total / max(count, 1)).exp())},
        [""] * len(rendered),
        (time.perf_counter() - started) / len(rendered),
        sum(sequence.prompt for sequence in sequences) / len(sequences),
        sum(sequence.cut for sequence in sequences),
    )


def _generate(
    attachment: Attachment, task: Task, examples: Sequence[Example], rendered: list[Example], progress: Progress
) -> Scores:
    encoder = encoder_for(attachment, task)
    sequences = encoder.encode(rendered)
    total, count, _ = _likelihood(attachment, sequences)
    started = time.perf_counter()
    room = answer_room(encoder, task)
    predictions, prompts = generate(attachment.base, encoder, rendered, room, stop_of(task), progress)
    seconds = (time.perf_counter() - started) / len(examples)
    references = [example.references or (example.answer,) for example in examples]
    names = list(dict.fromkeys([task.metric, "exact_match", "f1", "rouge_l"]))
    table = {name: [metrics.find(name)(p, r) for p, r in zip(predictions, references, strict=True)] for name in names}
    others = {name: sum(values) / len(values) for name, values in table.items() if name != task.metric}
    others["bleu"] = metrics.corpus_bleu(predictions, references)
    return Scores(
        task.metric,
        table[task.metric],
        total / max(count, 1),
        others,
        predictions,
        seconds,
        sum(len(prompt.ids) for prompt in prompts) / len(prompts),
        sum(prompt.cut for prompt in prompts),
    )


def describe(scores: Scores) -> dict[str, Any]:
    """The record of scores in files, without the per-example parts."""
    return {
        "metric": scores.metric,
        "mean": scores.mean,
        "nll": scores.nll,
        "others": scores.others,
        "examples": len(scores.per_example),
        "cut": scores.cut,
    }
