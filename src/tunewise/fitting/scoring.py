"""Scores an attachment on a task: by label likelihoods, by greedy answers, and by the loss per answer token.

Everything here runs without gradients and does the same arithmetic for the base and for a tuned model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch

from tunewise.contract.attachment import Attachment
from tunewise.contract.study import Study
from tunewise.core.progress import Progress, silent
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import Encoder, TokenSequence
from tunewise.engine.forward import batch_of, nll, why_not_packed
from tunewise.engine.generation import answer_room, generate, stop_of
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, by_shared_prefix, by_tokens, packed_batch
from tunewise.fitting import metrics


@dataclass(frozen=True)
class Scores:
    """Says how well a split is answered.

    `per_example` is the metric in [0, 1] per example. `nll` is in nats per answer token over the whole split. `others`
    are further metrics by name. `prompt_tokens` is a mean. `truncated` counts examples that were shortened to fit the
    window.
    """

    metric: str
    per_example: list[float]
    nll: float
    others: dict[str, float]
    predictions: list[str] = field(repr=False)
    seconds_per_example: float = 0.0
    prompt_tokens: float = 0.0
    truncated: int = 0

    @property
    def mean(self) -> float:
        """Return the mean of the metric over the examples."""
        return sum(self.per_example) / len(self.per_example)


def encoder_for(attachment: Attachment, task: Task) -> Encoder:
    """Return the task's encoder, which leaves room for this attachment's virtual tokens."""
    return Encoder(attachment.base, task, attachment.virtual_tokens, attachment.virtual_suffix)


@torch.no_grad()
def loss(attachment: Attachment, task: Task, examples: Sequence[Example]) -> float:
    """Return the mean negative log-likelihood in nats per answer token."""
    total, count, _ = _answer_nats(attachment, encoder_for(attachment, task).encode(_rendered(attachment, examples)))
    return total / max(count, 1)


def study(
    attachment: Attachment, task: Task, validation: Sequence[Example], seed: int, report: Progress = silent
) -> Study:
    """Return what a technique may look at before training.

    Of the validation split that is only the sample `validation`, on which all choices are made.
    """
    visible = replace(task, validation=tuple(validation))
    return Study(visible, seed, lambda: loss(attachment, visible, visible.validation), report)


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
        return _score_labels(attachment, task, examples, rendered, progress)
    if task.kind == "text":
        return _score_text(attachment, task, rendered)
    return _score_generated(attachment, task, examples, rendered, progress)


def _rendered(attachment: Attachment, examples: Sequence[Example]) -> list[Example]:
    return [attachment.render(example) for example in examples]


def _answer_nats(attachment: Attachment, sequences: list[TokenSequence]) -> tuple[float, int, list[tuple[float, int]]]:
    """Return (total nats, number of tokens, the same two per sequence) over the answers' tokens."""
    per_sequence = [(0.0, 0)] * len(sequences)
    for group in _groups(attachment.base, sequences):
        batch = batch_of(attachment.base, [_last_answer_only(sequences[index]) for index in group])
        values = nll(attachment.base, batch).double()
        sums = torch.zeros(len(group), dtype=torch.float64, device=values.device).index_add_(0, batch.owner, values)
        counts = torch.bincount(batch.owner, minlength=len(group))
        for index, total, count in zip(group, sums.tolist(), counts.tolist(), strict=True):
            per_sequence[index] = total, count
    return sum(total for total, _ in per_sequence), sum(count for _, count in per_sequence), per_sequence


def _groups(base: Base, sequences: list[TokenSequence]) -> list[list[int]]:
    """Return the indices of the sequences of each scoring pass."""
    return (by_tokens if why_not_packed(base) else by_shared_prefix)(sequences, PASS_TOKENS)


def _last_answer_only(sequence: TokenSequence) -> TokenSequence:
    """Label the answer alone, and not the labelled turns before it."""
    labelled = [position >= sequence.prompt for position in range(len(sequence.ids))]
    return TokenSequence(sequence.ids, labelled, sequence.prompt, sequence.truncated)


@dataclass(frozen=True)
class LabelTable:
    """Holds negative log-likelihoods of labels: `nll[example][label]` in nats, over `tokens[example][label]` tokens.

    The end-of-sequence token is one of them. `prompts` are the prompts as the model read them.
    """

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
    """Compute each label's likelihood after each prompt.

    A prompt is computed once for all its labels, and a prefix that prompts share once for all of them.
    """
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


def _score_labels(
    attachment: Attachment, task: Task, examples: Sequence[Example], rendered: list[Example], progress: Progress
) -> Scores:
    started = time.perf_counter()
    table, bias = label_table(attachment, task, rendered, progress), attachment.label_bias()
    seconds = (time.perf_counter() - started) / len(examples)
    nats = torch.tensor(table.nll, dtype=torch.float64)  # (examples, labels)
    predictions = [task.labels[index] for index in (nats if bias is None else nats - bias).argmin(1).tolist()]
    gold = [task.labels.index(example.answer) for example in examples]
    tokens = sum(row[label] for row, label in zip(table.tokens, gold, strict=True))
    metric = metrics.find(task.metric) if task.metric != "accuracy" else lambda label, answers: float(label in answers)
    return Scores(
        metric=task.metric,
        per_example=[metric(label, (example.answer,)) for label, example in zip(predictions, examples, strict=True)],
        nll=sum(row[label] for row, label in zip(table.nll, gold, strict=True)) / max(tokens, 1),
        others={"macro_f1": metrics.macro_f1(predictions, [example.answer for example in examples], task.labels)},
        predictions=predictions,
        seconds_per_example=seconds,
        prompt_tokens=sum(len(prompt.ids) for prompt in table.prompts) / len(table.prompts),
        truncated=sum(prompt.truncated for prompt in table.prompts),
    )


def _label_ids(encoder: Encoder, examples: Sequence[Example], labels: tuple[str, ...]) -> list[list[list[int]]]:
    """Return the token ids of every label after every prompt, (examples, labels)."""
    with_labels = [Example(example.messages, label) for example in examples for label in labels]
    ids = [sequence.ids[sequence.prompt :] for sequence in encoder.encode(with_labels)]
    return [ids[start : start + len(labels)] for start in range(0, len(ids), len(labels))]


def label_nll(base: Base, prompts: list[TokenSequence], answers: list[list[list[int]]]) -> list[list[float]]:
    """Return the negative log-likelihood of every answer in nats, (prompts, answers)."""
    if why_not_packed(base):
        rows = [[_with_answer(prompt, ids) for ids in row] for prompt, row in zip(prompts, answers, strict=True)]
        return [_sequence_nll(base, row) for row in rows]
    batch = packed_batch(prompts, base.device, answers)
    values = nll(base, batch).double()
    width = max(len(row) for row in answers)
    sums = torch.zeros(len(prompts) * width, dtype=torch.float64, device=values.device)
    sums.index_add_(0, batch.owner * width + batch.branch, values)
    return [row[: len(ids)] for row, ids in zip(sums.view(-1, width).tolist(), answers, strict=True)]


def _with_answer(prompt: TokenSequence, answer: list[int]) -> TokenSequence:
    return TokenSequence(prompt.ids + answer, [False] * len(prompt.ids) + [True] * len(answer), len(prompt.ids))


def _sequence_nll(base: Base, sequences: list[TokenSequence]) -> list[float]:
    batch = batch_of(base, sequences)
    values = nll(base, batch).double()
    sums = torch.zeros(len(sequences), dtype=torch.float64, device=values.device)
    return list(sums.index_add_(0, batch.owner, values).tolist())


def _score_text(attachment: Attachment, task: Task, rendered: list[Example]) -> Scores:
    """Score plain text by exp(-nll), the geometric mean of its tokens' probabilities, so that higher is better."""
    started = time.perf_counter()
    sequences = encoder_for(attachment, task).encode(rendered)
    total, count, per_sequence = _answer_nats(attachment, sequences)
    mean = torch.tensor([nats / max(tokens, 1) for nats, tokens in per_sequence])
    return Scores(
        metric="likelihood",
        per_example=torch.exp(-mean).tolist(),
        nll=total / max(count, 1),
        others={"perplexity": float(torch.tensor(total / max(count, 1)).exp())},
        predictions=[""] * len(rendered),
        seconds_per_example=(time.perf_counter() - started) / len(rendered),
        prompt_tokens=sum(sequence.prompt for sequence in sequences) / len(sequences),
        truncated=sum(sequence.truncated for sequence in sequences),
    )


def _score_generated(
    attachment: Attachment, task: Task, examples: Sequence[Example], rendered: list[Example], progress: Progress
) -> Scores:
    encoder = encoder_for(attachment, task)
    sequences = encoder.encode(rendered)
    total, count, _ = _answer_nats(attachment, sequences)
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
        metric=task.metric,
        per_example=table[task.metric],
        nll=total / max(count, 1),
        others=others,
        predictions=predictions,
        seconds_per_example=seconds,
        prompt_tokens=sum(len(prompt.ids) for prompt in prompts) / len(prompts),
        truncated=sum(prompt.truncated for prompt in prompts),
    )


class ScoreRecord(TypedDict):
    """Holds scores as files record them; `cut` counts examples that were shortened to fit the window."""

    metric: str
    mean: float
    nll: float
    others: dict[str, float]
    examples: int
    cut: int


def describe(scores: Scores) -> ScoreRecord:
    """Return the scores as files record them, without the per-example parts."""
    return {
        "metric": scores.metric,
        "mean": scores.mean,
        "nll": scores.nll,
        "others": scores.others,
        "examples": len(scores.per_example),
        "cut": scores.truncated,
    }
