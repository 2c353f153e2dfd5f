"""Whether an export is the model that was trained: both read the same prompts, and what they say is compared.

    logits     at the last positions of each prompt, the largest difference
    greedy     the likeliest continuation, token by token; where two differ although the export prefers its own by
               more than twice the tolerance, they disagree
    tokenizer  the ids that both tokenizers make of the prompts' text, where the export has one, and the chat template
    score      on the task's examples, where data is given: labels by likelihood, answers by the task's metric

The tolerance is `TOLERANCE` of the coarser type of the two, times the largest logit: half precision rounds every
weight. An approximation may be off by its own share of what training changed, besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewise.core.progress import Progress
from tunewise.data.task import Example, Task
from tunewise.engine.generation import answer_room
from tunewise.export.readers import Causal, Reader
from tunewise.fitting import metrics
from tunewise.fitting.forgetting import own_text
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.encoding import Encoder

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PROMPTS, CONTINUED, POSITIONS = 64, 16, 4


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts, without virtual tokens, and what is asked about each.

    `answers` holds the ids of each label, for classification; `examples` the gold answers, where there is a task.
    """

    source: str
    rows: list[list[int]]
    before: list[int]
    room: int = 0
    task: Task | None = None
    examples: Sequence[Example] = ()
    answers: list[list[list[int]]] = field(default_factory=list)
    encoder: Encoder | None = None

    @classmethod
    def of(cls, loaded: Adaptation, task: Task | None, count: int = PROMPTS) -> Prompts:
        """Prompts of the task as the attachment renders them, or else text that the model writes itself."""
        attachment = loaded.attachment
        encoder = encoder_for(attachment, task or loaded.style)
        head, foot = encoder.placeholders, encoder.suffix
        if foot:
            raise AssertionError("no format expresses virtual tokens after a prompt")
        if task is None:
            size = min(32, encoder.limit - CONTINUED)
            rows = [own.ids[:size] for own in own_text(attachment.base, 0, count, size)]
            return cls("text sampled from the model", rows, head)
        examples = (task.test or task.validation or task.train)[:count]
        rendered = [attachment.render(example) for example in examples]
        answers = [encoder.answers(own, task.labels) for own in rendered] if task.labels else []
        room = max([CONTINUED, answer_room(encoder, task) if not answers else 0])
        room = max([room, *(len(ids) for row in answers for ids in row)])
        rows = [found.ids[len(head) :] for found in encoder.prompts(rendered, min(room, encoder.limit // 2))]
        return cls(task.source or task.name, rows, head, room, task, examples, answers, encoder)


@dataclass(frozen=True)
class Measured:
    """What one model says: logits (positions, V) and continuation of each prompt, and per example the task's score."""

    logits: list[Tensor]
    greedy: list[list[int]]
    scores: list[float]


class Trained(Causal):
    """The trained adaptation itself, with its virtual tokens before every sequence."""

    def __init__(self, attachment: Attachment, before: list[int]) -> None:
        super().__init__(attachment.base.model, attachment.base.device, attachment.base.tokenizer)
        self.before = before

    def logits(self, ids: list[int]) -> Tensor:
        """Of the real tokens."""
        return super().logits(self.before + ids)[len(self.before) :]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """After the real tokens."""
        return super().greedy(self.before + ids, count)


def measure(reader: Reader, prompts: Prompts, what: str, progress: Progress, *, briefly: bool = False) -> Measured:
    """Let a model read all prompts; `briefly` for its logits alone."""
    logits, greedy, scores = [], [], []
    for index, ids in enumerate(prompts.rows):
        progress(what, index, len(prompts.rows))
        logits.append(reader.logits(ids)[-POSITIONS:].cpu())
        if briefly:
            continue
        greedy.append(reader.greedy(ids, CONTINUED))
        if prompts.task is not None and prompts.task.kind != "text":
            scores.append(_score(reader, prompts, index))
    progress(what, len(prompts.rows), len(prompts.rows))
    return Measured(logits, greedy, scores)


def _score(reader: Reader, prompts: Prompts, index: int) -> float:
    task, example, ids = prompts.task, prompts.examples[index], prompts.rows[index]
    assert task is not None and prompts.encoder is not None
    if prompts.answers:
        losses = [_nll(reader, ids, answer) for answer in prompts.answers[index]]
        said = task.labels[losses.index(min(losses))]
    else:
        found = reader.greedy(ids, prompts.room)
        end = prompts.encoder.eos
        stop = None if prompts.encoder.chat else "\n\n"
        said = prompts.encoder.decode(found[: found.index(end)] if end in found else found, stop)
    if task.metric == "accuracy":
        return float(said == example.answer)
    return metrics.find(task.metric)(said, example.references or (example.answer,))


def _nll(reader: Reader, ids: list[int], answer: list[int]) -> float:
    own = reader.logits(ids + answer[:-1])[len(ids) - 1 :].log_softmax(-1)
    return -float(own[torch.arange(len(answer)), torch.tensor(answer)].sum())


def verdict(
    exported: Reader, trained: Measured, found: Measured, bare: Measured, prompts: Prompts, share: float, slack: float
) -> dict[str, Any]:
    """The figures and whether they are those of one model, as JSON.

    `bare` is the base without the adaptation; `share` of the largest logit, and `slack` of what training changed, may
    be lost.
    """
    largest = max(float(own.abs().max()) for own in trained.logits)
    moved = max(_gap(a, b) for a, b in zip(trained.logits, bare.logits, strict=True))
    tolerance = share * max(largest, 1.0) + slack * moved
    gaps = [_gap(a, b) for a, b in zip(trained.logits, found.logits, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    apart = _apart(exported, trained, found, prompts, tolerance)
    same = [a == b for a, b in zip(trained.greedy, found.greedy, strict=True)]
    result: dict[str, Any] = {
        "same": gaps[worst] <= tolerance and not apart,
        "prompts": len(gaps),
        "source": prompts.source,
        "max_logit_difference": gaps[worst],
        "tolerance": tolerance,
        "largest_logit": largest,
        "moved_by_training": moved,
        "greedy_agreement": sum(same) / len(same),
        "greedy_tokens": CONTINUED,
        "differ": sorted({index for index, gap in enumerate(gaps) if not gap <= tolerance} | set(apart)),
        "worst_prompt": worst,
    }
    if trained.scores and prompts.task is not None:
        pair = [sum(own.scores) / len(own.scores) for own in (trained, found)]
        result["score"] = {"metric": prompts.task.metric, "trained": pair[0], "exported": pair[1]}
    return result


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one is no number or the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    gap = float((a.double() - b.double()).abs().max())
    return gap if math.isfinite(gap) else math.inf


def _apart(exported: Reader, trained: Measured, found: Measured, prompts: Prompts, tolerance: float) -> list[int]:
    """Prompts whose continuations differ where the export prefers its own by more than twice the tolerance.

    Two models whose logits differ by less than the tolerance cannot disagree about more than that.
    """
    apart = []
    for index, (own, other) in enumerate(zip(trained.greedy, found.greedy, strict=True)):
        at = next((i for i, pair in enumerate(zip(own, other, strict=True)) if pair[0] != pair[1]), None)
        if at is not None:
            last = exported.logits(prompts.rows[index] + own[:at])[-1]
            if not float(last[other[at]] - last[own[at]]) <= 2 * tolerance:
                apart.append(index)
    return apart


def tokenizer_problem(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, prompts: Prompts
) -> dict[str, Any] | None:
    """Where the export's tokenizer is not the model's: a prompt of whose text it makes other ids, or its template."""
    if ours.chat_template != theirs.chat_template:
        return {"chat_template": "differs"}
    for index, ids in enumerate(prompts.rows):
        text = str(ours.decode(ids, skip_special_tokens=True))
        a, b = (list(own(text)["input_ids"]) for own in (ours, theirs))
        if a != b:
            return {"prompt": index, "trained": a[:40], "exported": b[:40]}
    return None
