"""Scores an attachment on a task: by label likelihoods, by greedy answers, and by the loss per answer token.

Everything here runs without gradients and does the same arithmetic for the base and for a tuned model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypedDict

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.contract.study import Allowance, Readings, Study
from tunewise.core.progress import REFERENCES, SCORING, VALIDATING, Progress, as_stage, silent
from tunewise.data.task import Example, Task
from tunewise.engine.conversation import final_answer
from tunewise.engine.encoding import Encoder, TokenSequence
from tunewise.engine.forward import batch_of, nll, why_not_packed
from tunewise.engine.generation import Generated, answer_room, generate, stop_of
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, by_shared_prefix, by_tokens, packed_batch, row_tokens
from tunewise.engine.token_trie import TokenTrie
from tunewise.fitting import label_search, metrics
from tunewise.fitting.allowance import allowance as allowance_of
from tunewise.fitting.settings import TrainSettings
from tunewise.fitting.source_training import SourceTraining
from tunewise.results.diagnostics import AnswerLengths, Confusion


@dataclass(frozen=True)
class Scores:
    """Says how well a split is answered.

    `per_example` is the metric in [0, 1] per example. `nll` is in nats per answer token over the whole split. `others`
    are further metrics by name. `prompt_tokens` is a mean. `truncated` counts examples that were shortened to fit the
    window. `confusion` is of a classification, `lengths` of a generation.
    """

    metric: str
    per_example: list[float]
    nll: float
    others: dict[str, float]
    predictions: list[str] = field(repr=False)
    seconds_per_example: float = 0.0
    prompt_tokens: float = 0.0
    truncated: int = 0
    confusion: Confusion | None = None
    lengths: AnswerLengths | None = None

    @property
    def mean(self) -> float:
        """Return the mean of the metric over the examples."""
        return sum(self.per_example) / len(self.per_example)


def encoder_for(attachment: Attachment, task: Task) -> Encoder:
    """Return the task's encoder, which leaves room for this attachment's virtual tokens."""
    return Encoder(attachment.base, task, attachment.virtual_tokens, attachment.virtual_suffix)


@torch.no_grad()
def loss(attachment: Attachment, task: Task, examples: Sequence[Example], progress: Progress = silent) -> float:
    """Return the mean negative log-likelihood in nats per answer token."""
    sequences = encoder_for(attachment, task).encode(_rendered(attachment, examples))
    total, count, _ = _answer_nats(attachment, sequences, as_stage(progress, VALIDATING))
    return total / max(count, 1)


def study(
    attachment: Attachment,
    task: Task,
    validation: Sequence[Example],
    seed: int,
    report: Progress = silent,
    allowance: Allowance | None = None,
    trains: SourceTraining | None = None,
    readings: Readings | None = None,
) -> Study:
    """Return what a technique may look at before training.

    Of the validation split that is only the sample `validation`, on which all choices are made. The allowance, and how
    source tasks are trained on, are those of a training with the default settings where none are given. Without
    `readings`, nothing that is read is kept.
    """
    visible = replace(task, validation=tuple(validation))
    if allowance is None:
        allowance = allowance_of(attachment.base, task, TrainSettings())
    return Study(
        visible,
        seed,
        lambda examples: AnswerReading.of(attachment, visible, examples),
        allowance,
        trains or SourceTraining(TrainSettings()),
        report,
        readings or Readings(),
    )


@dataclass(frozen=True)
class AnswerReading:
    """Examples as the attachment renders them, laid out in forward passes for their answers' losses, not read yet."""

    attachment: Attachment
    sequences: list[TokenSequence]

    @classmethod
    def of(cls, attachment: Attachment, task: Task, examples: Sequence[Example]) -> AnswerReading:
        """Render and encode examples."""
        return cls(attachment, encoder_for(attachment, task).encode(_rendered(attachment, examples)))

    @property
    def tokens(self) -> int:
        """The tokens that reading computes; what examples share is counted once for each forward pass."""
        base = self.attachment.base
        groups = [[self.sequences[index] for index in group] for group in _groups(base, self.sequences)]
        return sum(_computed_tokens(base, [_last_answer_only(sequence) for sequence in group]) for group in groups)

    def losses(self) -> list[tuple[float, int]]:
        """Read them; return for each example the nats of its answer and the number of the answer's tokens."""
        return _answer_nats(self.attachment, self.sequences, silent)[2]


def _computed_tokens(base: Base, sequences: Sequence[TokenSequence], answers: Sequence[TokenTrie] = ()) -> int:
    """Count the tokens that one forward pass computes, padding included where sequences are padded."""
    if not why_not_packed(base):
        return row_tokens(sequences, answers)
    if not answers:
        return len(sequences) * max(len(sequence.ids) for sequence in sequences)
    return sum(
        len(trie.answers) * (len(sequence.ids) + max(map(len, trie.answers)))
        for sequence, trie in zip(sequences, answers, strict=True)
    )


@torch.no_grad()
def score(
    attachment: Attachment,
    task: Task,
    examples: Sequence[Example],
    progress: Progress = silent,
    *,
    as_given: bool = False,
    opponents: Sequence[str] | None = None,
) -> Scores:
    """Answer the examples and score the answers by the task's metric.

    With `as_given`, the attachment does not put its own text, such as worked examples, before a question, and labels
    are compared without the bias that it found for its own task's labels. A judge compares with the answers of
    `opponents`, by default with the right answers.
    """
    rendered = list(examples) if as_given else _rendered(attachment, examples)
    if task.kind == "classification":
        bias = None if as_given else attachment.label_bias()
        return _score_labels(attachment, task, examples, rendered, bias, progress)
    if task.kind == "text":
        return _score_text(attachment, task, rendered, progress)
    return _score_generated(attachment, task, examples, rendered, progress, opponents)


def _rendered(attachment: Attachment, examples: Sequence[Example]) -> list[Example]:
    return [attachment.render(example) for example in examples]


def _answer_nats(
    attachment: Attachment, sequences: list[TokenSequence], progress: Progress
) -> tuple[float, int, list[tuple[float, int]]]:
    """Return (total nats, number of tokens, the same two per sequence) over the answers' tokens."""
    per_sequence, done = [(0.0, 0)] * len(sequences), 0
    own = attachment.base.ranks.turns(_groups(attachment.base, sequences), divided=True)
    for group, counts_here in own:
        batch = batch_of(attachment.base, [_last_answer_only(sequences[index]) for index in group], divide=True)
        values = nll(attachment.base, batch).double()
        if not counts_here:
            continue
        sums = torch.zeros(len(group), dtype=torch.float64, device=values.device).index_add_(0, batch.owner, values)
        counts = torch.bincount(batch.owner, minlength=len(group))
        for index, total, count in zip(group, sums.tolist(), counts.tolist(), strict=True):
            per_sequence[index] = total, count
        done += len(group)
        progress(SCORING, done, sum(len(group) for group, _ in own))
    if attachment.base.ranks.size > 1:
        flat = attachment.base.ranks.total(*chain.from_iterable(per_sequence))
        per_sequence = [(nats, int(count)) for nats, count in zip(flat[::2], flat[1::2], strict=True)]
    return sum(total for total, _ in per_sequence), sum(count for _, count in per_sequence), per_sequence


def _groups(base: Base, sequences: list[TokenSequence], answers: Sequence[TokenTrie] = ()) -> list[list[int]]:
    """Return the indices of the sequences of each scoring pass."""
    if why_not_packed(base):
        return by_tokens(sequences, PASS_TOKENS)
    return by_shared_prefix(sequences, PASS_TOKENS, [len(trie.ids) for trie in answers])


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
    spend: Callable[[int], None] | None = None,
    expected: Sequence[int] = (),
    bias: Tensor | None = None,
) -> LabelTable:
    """Compute each label's likelihood after each prompt.

    A prompt is computed once for all its labels, a prefix that prompts share once for all of them, and what labels
    begin with alike once for these. `spend` is told beforehand how many tokens will be computed at most, and may raise
    to prevent it. With the number of each prompt's `expected` label, labels that cannot be the likeliest one after
    `bias` is subtracted need not be computed to their end, and have an infinite negative log-likelihood then.
    """
    base = attachment.base
    prompts, tries = base.label_tokens.prompts(encoder_for(attachment, task), rendered)
    searched = bool(expected) and not base.ranks.sharded and label_search.is_worth_it(base, tries)
    divided = [[trie] if searched else trie.parts(PASS_TOKENS) for trie in tries]
    owner = [index for index, parts in enumerate(divided) for _ in parts]
    sequences, parts = [prompts[index] for index in owner], list(chain.from_iterable(divided))
    groups = _groups(base, sequences, parts)
    passes = [([sequences[i] for i in group], [parts[i] for i in group]) for group in groups]
    if spend is not None:
        spend(sum(_computed_tokens(base, *each) for each in passes))
    nats: dict[int, list[float]] = {}
    own = base.ranks.turns(list(zip(groups, passes, strict=True)))
    total = sum(len(group) for (group, _), counts in own if counts)
    progress(SCORING, 0, total)
    for (group, each), counts in own:
        if searched:
            rows = label_search.search(base, *each, [expected[index] for index in group], bias)
        else:
            rows = label_nll(base, *each)
        if not counts:
            continue
        nats.update(zip(group, rows, strict=True))
        progress(SCORING, len(nats), total)
    nats = {index: row for share in base.ranks.gathered([nats]) for index, row in share.items()}
    table: list[list[float]] = [[] for _ in prompts]
    for part, index in enumerate(owner):
        table[index] += nats[part]
    return LabelTable(table, [[len(ids) for ids in trie.answers] for trie in tries], prompts)


def _score_labels(
    attachment: Attachment,
    task: Task,
    examples: Sequence[Example],
    rendered: list[Example],
    bias: Tensor | None,
    progress: Progress,
) -> Scores:
    started = time.perf_counter()
    gold = [task.labels.index(example.answer) for example in examples]
    table = label_table(attachment, task, rendered, progress, expected=gold, bias=bias)
    seconds = (time.perf_counter() - started) / len(examples)
    nats = torch.tensor(table.nll, dtype=torch.float64)  # (examples, labels)
    predictions = [task.labels[index] for index in (nats if bias is None else nats - bias).argmin(1).tolist()]
    tokens = sum(row[label] for row, label in zip(table.tokens, gold, strict=True))
    return Scores(
        metric=task.metric,
        per_example=label_scores(task, predictions, examples),
        nll=sum(row[label] for row, label in zip(table.nll, gold, strict=True)) / max(tokens, 1),
        others={"macro_f1": metrics.macro_f1(predictions, [example.answer for example in examples], task.labels)},
        predictions=predictions,
        seconds_per_example=seconds,
        prompt_tokens=sum(len(prompt.ids) for prompt in table.prompts) / len(table.prompts),
        truncated=sum(prompt.truncated for prompt in table.prompts),
        confusion=Confusion.of([example.answer for example in examples], predictions),
    )


def label_scores(task: Task, predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """Score predicted labels by the task's metric, one by one."""
    metric = metrics.find(task.metric) if task.metric != "accuracy" else lambda label, answers: float(label in answers)
    return [metric(label, (example.answer,)) for label, example in zip(predictions, examples, strict=True)]


def label_nll(base: Base, prompts: list[TokenSequence], answers: Sequence[TokenTrie]) -> list[list[float]]:
    """Return the negative log-likelihood of every answer to every prompt in nats, (prompts, answers)."""
    if why_not_packed(base):
        pairs = zip(prompts, answers, strict=True)
        return [_sequence_nll(base, [_with_answer(prompt, ids) for ids in trie.answers]) for prompt, trie in pairs]
    batch = packed_batch(prompts, base.device, answers)
    values = nll(base, batch).double()
    width = max(len(trie.answers) for trie in answers)
    sums = torch.zeros(len(prompts) * width, dtype=torch.float64, device=values.device)
    sums.index_add_(0, batch.owner * width + batch.branch, values)
    return [row[: len(trie.answers)] for row, trie in zip(sums.view(-1, width).tolist(), answers, strict=True)]


def _with_answer(prompt: TokenSequence, answer: Sequence[int]) -> TokenSequence:
    return TokenSequence([*prompt.ids, *answer], [False] * len(prompt.ids) + [True] * len(answer), len(prompt.ids))


def _sequence_nll(base: Base, sequences: list[TokenSequence]) -> list[float]:
    batch = batch_of(base, sequences)
    values = nll(base, batch).double()
    sums = torch.zeros(len(sequences), dtype=torch.float64, device=values.device)
    return list(sums.index_add_(0, batch.owner, values).tolist())


def _score_text(attachment: Attachment, task: Task, rendered: list[Example], progress: Progress) -> Scores:
    """Score plain text by exp(-nll), the geometric mean of its tokens' probabilities, so that higher is better."""
    started = time.perf_counter()
    sequences = encoder_for(attachment, task).encode(rendered)
    total, count, per_sequence = _answer_nats(attachment, sequences, progress)
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
    attachment: Attachment,
    task: Task,
    examples: Sequence[Example],
    rendered: list[Example],
    progress: Progress,
    opponents: Sequence[str] | None,
) -> Scores:
    encoder = encoder_for(attachment, task)
    sequences = encoder.encode(rendered)
    total, count, _ = _answer_nats(attachment, sequences, as_stage(progress, REFERENCES))
    started = time.perf_counter()
    room = answer_room(encoder, task)
    generated = generate(attachment.base, encoder, rendered, room, stop_of(task), progress)
    predictions, prompts = generated.texts, generated.prompts
    seconds = (time.perf_counter() - started) / len(examples)
    references = [
        [final_answer(reference) for reference in example.references or (example.answer,)] for example in examples
    ]
    final = [final_answer(prediction) for prediction in predictions]
    answers = metrics.Answers(final, references, [_question(example) for example in examples], opponents)
    per_example, others = metrics.scores(task.metric, answers, progress)
    exact = "squad_exact_match" if task.format == "question-answer" else "exact_match"
    for name in (exact, "f1", "rouge_l"):
        if name != task.metric:
            values, _ = metrics.scores(name, answers)
            others[name] = sum(values) / len(values)
    others["bleu"] = metrics.corpus_bleu(final, references)
    return Scores(
        metric=task.metric,
        per_example=per_example,
        nll=total / max(count, 1),
        others=others,
        predictions=predictions,
        seconds_per_example=seconds,
        prompt_tokens=sum(len(prompt.ids) for prompt in prompts) / len(prompts),
        truncated=sum(prompt.truncated for prompt in prompts),
        lengths=_lengths(generated, [_reference_tokens(encoder, sequence) for sequence in sequences], room),
    )


def _question(example: Example) -> str:
    """Return the conversation before an answer as a judge reads it; of a single question its text."""
    if len(example.messages) == 1:
        return example.prompt
    return "\n\n".join(f"{message.role}: {message.content}" for message in example.messages)


def _lengths(generated: Generated, reference_tokens: Sequence[int], room: int) -> AnswerLengths:
    count = len(generated.tokens)
    return AnswerLengths(
        answers=count,
        mean=sum(generated.tokens) / count,
        longest=max(generated.tokens),
        reference_mean=sum(reference_tokens) / count,
        never_ended=sum(not ended for ended in generated.ended),
        limit=room,
    )


def _reference_tokens(encoder: Encoder, sequence: TokenSequence) -> int:
    """Count the tokens of the expected answer, without its end."""
    return encoder.until_stop(sequence.ids[sequence.prompt :])


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
