"""Whether an export is the model that was trained: both read the same prompts, and their outputs are compared.

    logits     at the last positions of each prompt, the largest difference
    greedy     the trained model's likeliest continuation, read by both: where the export's likeliest token is another
               one, and preferred by more than twice the tolerance, they disagree
    tokenizer  the ids that both tokenizers make of the prompts' and labels' text, where the export has one, and the
               chat template
    score      on the task's examples, where data is given: labels by likelihood, answers by the task's metric

What an export is compared with is the reference: the trained model, or where a whole model is stored in a coarser type,
the trained model with its merged weights rounded to that type in memory. The first difference would be an error of the
export, the second is what rounding does, and the record holds both.

The tolerance is `TOLERANCE` of the type that both compute in, times the largest logit. An adapter that is stored in a
coarser type has that type's tolerance. The logits of an approximation may also be off by a given share of what training
moved.

With no difference in n prompts, the share of prompts that differ is below 1 - 0.05^(1/n) at 95 % confidence, about 3/n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.core.progress import Progress
from tunewise.data.task import Example, Task
from tunewise.engine.conversation import final_answer
from tunewise.engine.generation import answer_room
from tunewise.export.parity_record import ParityFigures, RoundingFigures, TokenizerDifference
from tunewise.export.readers import Passage, Reader
from tunewise.fitting import metrics
from tunewise.fitting.forgetting import own_text
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.engine.encoding import Encoder

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PROMPTS = 60  # with no difference in them, at most 4.9 % of prompts differ
CONTINUED = 16  # tokens of a continuation, at least
_MEASURED = 8  # prompts on which it is measured how far training and merging moved the logits
_CONFIDENCE = 0.95
# Labels that a reader scores in all: where a prompt is read once for all of them, and where it is read before each.
_MOST_SHARED, _MOST_ANSWERS = 512, 256


def bound(prompts: int) -> float:
    """Return the largest share of prompts that can differ where none of so many did, at 95 % confidence.

    It is the upper end of the exact one-sided binomial interval for none of n.
    """
    return float(1 - (1 - _CONFIDENCE) ** (1 / prompts))


@dataclass(frozen=True)
class Prompts:
    """The prompts that all models read, and what is needed to score the answers.

    `token_ids` holds the ids of each prompt, without the virtual tokens `placeholders` that stand before them. Where
    there is a task, `examples` hold the gold answers, the first `scored` of which are scored, `room` is the largest
    number of tokens of an answer, and `label_ids` are the ids of each label after each prompt, for classification.
    """

    source: str
    token_ids: list[list[int]]
    placeholders: list[int]
    room: int = CONTINUED
    task: Task | None = None
    examples: Sequence[Example] = ()
    scored: int = 0
    label_ids: list[list[list[int]]] = field(default_factory=list)
    encoder: Encoder | None = None

    @classmethod
    def of(cls, loaded: Adaptation, task: Task | None, count: int = PROMPTS) -> Prompts:
        """Take prompts from a task, as the attachment renders them; None: text that the model writes itself.

        The test split comes first, and the others where it has too few; only one split is scored.
        """
        attachment = loaded.attachment
        encoder = encoder_for(attachment, task or loaded.style)
        placeholders = encoder.placeholders
        if encoder.suffix:
            raise AssertionError("no format expresses virtual tokens after a prompt")
        if task is None:
            size = min(32, encoder.limit - CONTINUED)
            token_ids = [sequence.ids[:size] for sequence in own_text(attachment.base, 0, count, size)]
            return cls("text sampled from the model", token_ids, placeholders)
        examples = tuple(islice(chain(task.test, task.validation, task.train), count))
        scored = len((task.test or task.validation or task.train)[:count]) if task.kind != "text" else 0
        rendered = [attachment.render(example) for example in examples]
        label_ids = [encoder.answers(example, task.labels) for example in rendered] if task.labels else []
        room = max(CONTINUED, answer_room(encoder, task) if scored and not label_ids else 0)
        longest = max([room, *(len(ids) for labels in label_ids for ids in labels)])
        sequences = encoder.prompts(rendered, min(longest, encoder.limit // 2))
        token_ids = [sequence.ids[len(placeholders) :] for sequence in sequences]
        source = task.source or task.name
        return cls(source, token_ids, placeholders, room, task, examples, scored, label_ids, encoder)

    def scored_by(self, reader: Reader) -> int:
        """Return how many prompts a reader scores: the fewer, the more labels each has to be scored with."""
        if not self.label_ids or not self.scored:
            return self.scored
        most = _MOST_SHARED if reader.shares_prompts else _MOST_ANSWERS
        return min(self.scored, max(1, most // len(self.label_ids[0])))

    def end_of(self, continuation: list[int]) -> int:
        """Return how many tokens of a continuation are compared: its answer with its end, and `CONTINUED` at least."""
        if self.encoder is None:
            return len(continuation)
        return min(max(CONTINUED, self.encoder.until_stop(continuation) + 1), len(continuation))


@dataclass(frozen=True)
class ReaderOutputs:
    """What one model computes of each prompt.

    Attributes:
        logits: the last logits of each prompt, (positions, V).
        choices: the likeliest token at each position of the trained model's continuation; empty where none was read.
        margins: by how much its logit exceeds that of the reference's choice there; empty without a reference.
        scores: the task's score of each example; empty where none was scored.
    """

    logits: list[Tensor]
    choices: list[list[int]] = field(default_factory=list)
    margins: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Reporter:
    """Says which model reads, to a progress display."""

    progress: Progress
    what: str

    def __call__(self, done: int, total: int) -> None:
        """Report how many prompts are done."""
        self.progress(self.what, done, total)


def collect_logits(reader: Reader, prompts: Prompts, report: Reporter) -> ReaderOutputs:
    """Let a model read the first prompts, for the logits at their last positions alone.

    Those of the base and of the merged weights are compared as a whole, so that a few prompts do.
    """
    return _collect(reader, prompts, [Passage(ids) for ids in prompts.token_ids[:_MEASURED]], None, report)


def collect_trained(reader: Reader, prompts: Prompts, report: Reporter) -> ReaderOutputs:
    """Let the trained model continue all prompts and score them; its choices are its own continuations.

    Each continuation ends with its answer, if that has an end.
    """
    report(0, len(prompts.token_ids))
    continuations = reader.greedy(prompts.token_ids, prompts.room)
    continuations = [continuation[: prompts.end_of(continuation)] for continuation in continuations]
    labels = _labels_to_score(reader, prompts)
    passages = [Passage(ids, (), answers) for ids, answers in zip(prompts.token_ids, labels, strict=True)]
    outputs = replace(_collect(reader, prompts, passages, None, report), choices=continuations)
    return _with_scores_of_generated(reader, prompts, outputs, outputs)


def collect_outputs(
    reader: Reader,
    prompts: Prompts,
    trained: ReaderOutputs,
    report: Reporter,
    *,
    reference: ReaderOutputs | None = None,
) -> ReaderOutputs:
    """Let a model read all prompts with the trained model's continuations.

    Args:
        reader: the model.
        prompts: what it reads.
        trained: the trained model's outputs.
        report: called with the numbers of prompts that are done and of all.
        reference: the outputs that these will be compared with; None: these are the reference, and are not scored.
    """
    labels = _labels_to_score(reader, prompts) if reference is not None else [[]] * len(prompts.token_ids)
    passages = [Passage(*parts) for parts in zip(prompts.token_ids, trained.choices, labels, strict=True)]
    outputs = _collect(reader, prompts, passages, reference, report)
    return _with_scores_of_generated(reader, prompts, outputs, trained) if reference is not None else outputs


def _labels_to_score(reader: Reader, prompts: Prompts) -> list[list[list[int]]]:
    """Return the ids of the labels that a reader scores after each prompt."""
    scored = prompts.scored_by(reader) if prompts.label_ids else 0
    return [prompts.label_ids[index] if index < scored else [] for index in range(len(prompts.token_ids))]


def _collect(
    reader: Reader, prompts: Prompts, passages: list[Passage], reference: ReaderOutputs | None, report: Reporter
) -> ReaderOutputs:
    count = len(passages)
    logits: list[Tensor] = [torch.empty(0)] * count
    choices: list[list[int]] = [[]] * count
    margins: list[list[float]] = [[]] * count
    scores = [0.0] * count
    report(0, count)
    for done, (index, reading) in enumerate(reader.read(passages), 1):
        logits[index] = reading.logits.cpu().clone()
        chosen = reading.continued.argmax(-1)
        choices[index] = list(chosen.tolist())
        if reference is not None:
            theirs = torch.tensor(reference.choices[index], dtype=torch.long, device=chosen.device)
            preferred = reading.continued.gather(1, chosen[:, None]) - reading.continued.gather(1, theirs[:, None])
            margins[index] = list(preferred[:, 0].double().tolist())
        if reading.answer_nll and prompts.task is not None:
            answer = prompts.task.labels[reading.answer_nll.index(min(reading.answer_nll))]
            scores[index] = _score(prompts.task, answer, prompts.examples[index])
        report(done, count)
    return ReaderOutputs(logits, choices, margins, [scores[i] for i in range(count) if passages[i].answers])


def _score(task: Task, answer: str, example: Example) -> float:
    if task.metric == "accuracy":
        return float(answer == example.answer)
    references = [final_answer(reference) for reference in example.references or (example.answer,)]
    return metrics.find(task.metric)(final_answer(answer), references)


def _with_scores_of_generated(
    reader: Reader, prompts: Prompts, outputs: ReaderOutputs, trained: ReaderOutputs
) -> ReaderOutputs:
    """Score the model's own answers, where answers are generated.

    It generates those of its own where its choices are not the trained model's, and has the same ones elsewhere.
    """
    task, encoder = prompts.task, prompts.encoder
    if task is None or encoder is None or prompts.label_ids or not prompts.scored:
        return outputs
    answers = dict(enumerate(trained.choices[: prompts.scored]))
    others = [index for index in answers if outputs.choices[index] != trained.choices[index]]
    if others:
        generated = reader.greedy([prompts.token_ids[index] for index in others], prompts.room)
        answers |= dict(zip(others, generated, strict=True))
    stop, scores = None if encoder.chat else "\n\n", []
    for index, ids in answers.items():
        text = encoder.decode(ids[: encoder.until_stop(ids)], stop)
        scores.append(_score(task, text, prompts.examples[index]))
    return replace(outputs, scores=scores)


@dataclass(frozen=True)
class Allowance:
    """What may differ: `share` of the largest logit, and besides it the share `slack` of what training moved."""

    share: float
    slack: float = 0.0

    def tolerance(self, trained: ReaderOutputs, bare: ReaderOutputs) -> float:
        """Return the largest difference of logits that is allowed."""
        return self.share * max(_largest(trained.logits), 1.0) + self.slack * largest_gap(trained, bare)


def compare_outputs(
    reference: ReaderOutputs,
    exported: ReaderOutputs,
    trained: ReaderOutputs,
    bare: ReaderOutputs,
    prompts: Prompts,
    allowance: Allowance,
) -> ParityFigures:
    """Compare the outputs of an export with those of the reference.

    Args:
        reference: the outputs that an export without an error has: the trained model's, or its rounded weights'.
        exported: the export's outputs.
        trained: the trained model's outputs.
        bare: the outputs of the base without the adaptation.
        prompts: what all of them read.
        allowance: what may differ.
    """
    tolerance = allowance.tolerance(trained, bare)
    gaps = _gaps(reference, exported)
    # `not <=`, so that a difference that is not a number counts as one.
    differ = [
        index
        for index, (gap, margins) in enumerate(zip(gaps, exported.margins, strict=True))
        if not gap <= tolerance or any(not margin <= 2 * tolerance for margin in margins)
    ]
    same_continuations = [a == b for a, b in zip(reference.choices, exported.choices, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    figures: ParityFigures = {
        "same": not differ,
        "prompts": len(gaps),
        "source": prompts.source,
        "max_logit_difference": gaps[worst],
        "tolerance": tolerance,
        "largest_logit": _largest(trained.logits),
        "moved_by_training": largest_gap(trained, bare),
        "greedy_agreement": sum(same_continuations) / len(same_continuations),
        "greedy_tokens": max(map(len, exported.choices)),
        "differ": differ,
        "worst_prompt": worst,
    }
    scored = min(len(trained.scores), len(exported.scores))
    if scored and prompts.task is not None:
        figures["score"] = {
            "metric": prompts.task.metric,
            "trained": sum(trained.scores[:scored]) / scored,
            "exported": sum(exported.scores[:scored]) / scored,
            "examples": scored,
        }
    return figures


def rounding_figures(trained: ReaderOutputs, merged: ReaderOutputs, rounded: ReaderOutputs) -> RoundingFigures:
    """Say how far rounding moved the trained model, and how far merging did, which must be next to nothing."""
    pairs = [
        pair
        for expected, chosen in zip(trained.choices, rounded.choices, strict=True)
        for pair in zip(expected, chosen, strict=True)
    ]
    return {
        "max_logit_difference": largest_gap(trained, rounded),
        "greedy_tokens_unchanged": sum(expected == chosen for expected, chosen in pairs) / len(pairs),
        "merging_logit_difference": largest_gap(trained, merged),
    }


def _largest(logits: list[Tensor]) -> float:
    return max(float(rows.abs().max()) for rows in logits)


def largest_gap(first: ReaderOutputs, second: ReaderOutputs) -> float:
    """Return the largest difference of two models' logits, on the prompts that both have read."""
    return max(_gaps(first, second))


def _gaps(first: ReaderOutputs, second: ReaderOutputs) -> list[float]:
    """Return max |a - b| of each prompt that both read; infinity where a value is not finite or the shapes differ."""
    gaps = []
    for a, b in zip(first.logits, second.logits, strict=False):
        gap = float((a.double() - b.double()).abs().max()) if a.shape == b.shape else math.inf
        gaps.append(gap if math.isfinite(gap) else math.inf)
    return gaps


def tokenizer_problem(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, prompts: Prompts
) -> TokenizerDifference | None:
    """Compare the export's tokenizer with the model's on the text of prompts and labels; None where they agree.

    A difference is the chat template, the first prompt or label of whose text they make different ids, or the first
    label whose ids they make different text of.
    """
    if ours.chat_template != theirs.chat_template:
        return {"chat_template": "differs"}
    for index, ids in enumerate(prompts.token_ids):
        expected, actual = _ids_of_text(ours, theirs, ids)
        if expected != actual:
            return {"prompt": index, "trained": expected[:40], "exported": actual[:40]}
    labels = prompts.task.labels if prompts.task is not None else ()
    for label, ids in zip(labels, prompts.label_ids[0] if prompts.label_ids else (), strict=False):
        expected, actual = _ids_of_text(ours, theirs, ids)
        if expected != actual or ours.decode(ids) != theirs.decode(ids):
            return {"label": label, "trained": expected[:40], "exported": actual[:40]}
    return None


def _ids_of_text(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, ids: list[int]
) -> tuple[list[int], list[int]]:
    """Return what two tokenizers make of the text of `ids`."""
    text = str(ours.decode(ids, skip_special_tokens=True))
    return list(ours(text)["input_ids"]), list(theirs(text)["input_ids"])
