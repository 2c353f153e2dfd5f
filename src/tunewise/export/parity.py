"""Whether an export is the model that was trained: both read the same prompts, and their outputs are compared.

    logits     at the last positions of each prompt, the largest difference
    greedy     the likeliest continuation, token by token; where two differ although the export prefers its own by
               more than twice the tolerance, they disagree
    tokenizer  the ids that both tokenizers make of the prompts' text, where the export has one, and the chat template
    score      on the task's examples, where data is given: labels by likelihood, answers by the task's metric

The tolerance is `TOLERANCE` of the coarser type of the two, times the largest logit: half precision rounds every
weight. The logits of an approximation may also be off by a given share of what training moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.core.progress import Progress
from tunewise.data.task import Example, Task
from tunewise.engine.generation import answer_room
from tunewise.export.parity_record import ParityFigures, TokenizerDifference
from tunewise.export.readers import CausalReader, Reader
from tunewise.fitting import metrics
from tunewise.fitting.forgetting import own_text
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.encoding import Encoder

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PROMPTS, CONTINUED, POSITIONS = 64, 16, 4  # prompts, tokens of a continuation, positions of a prompt with logits


@dataclass(frozen=True)
class Prompts:
    """The prompts that both models read, and what is needed to score the answers.

    `token_ids` holds the ids of each prompt, without the virtual tokens `placeholders` that stand before them. Where
    there is a task, `examples` hold the gold answers, `room` is the largest number of tokens of an answer, and
    `label_ids` are the ids of each label after each prompt, for classification.
    """

    source: str
    token_ids: list[list[int]]
    placeholders: list[int]
    room: int = 0
    task: Task | None = None
    examples: Sequence[Example] = ()
    label_ids: list[list[list[int]]] = field(default_factory=list)
    encoder: Encoder | None = None

    @classmethod
    def of(cls, loaded: Adaptation, task: Task | None, count: int = PROMPTS) -> Prompts:
        """Take prompts from a task, as the attachment renders them; None: text that the model writes itself."""
        attachment = loaded.attachment
        encoder = encoder_for(attachment, task or loaded.style)
        placeholders = encoder.placeholders
        if encoder.suffix:
            raise AssertionError("no format expresses virtual tokens after a prompt")
        if task is None:
            size = min(32, encoder.limit - CONTINUED)
            token_ids = [sequence.ids[:size] for sequence in own_text(attachment.base, 0, count, size)]
            return cls("text sampled from the model", token_ids, placeholders)
        examples = (task.test or task.validation or task.train)[:count]
        rendered = [attachment.render(example) for example in examples]
        label_ids = [encoder.answers(example, task.labels) for example in rendered] if task.labels else []
        room = max([CONTINUED, answer_room(encoder, task) if not label_ids else 0])
        room = max([room, *(len(ids) for labels in label_ids for ids in labels)])
        sequences = encoder.prompts(rendered, min(room, encoder.limit // 2))
        token_ids = [sequence.ids[len(placeholders) :] for sequence in sequences]
        return cls(task.source or task.name, token_ids, placeholders, room, task, examples, label_ids, encoder)


@dataclass(frozen=True)
class ReaderOutputs:
    """What one model computes: for each prompt the last logits (positions, V), its continuation, and its score.

    `scores` is empty where there is no task.
    """

    logits: list[Tensor]
    greedy: list[list[int]]
    scores: list[float]


class TrainedReader(CausalReader):
    """Reads with the trained adaptation itself, with its virtual tokens before every sequence."""

    def __init__(self, attachment: Attachment, placeholders: list[int]) -> None:
        super().__init__(attachment.base.model, attachment.base.device, attachment.base.tokenizer)
        self.placeholders = placeholders

    def logits(self, ids: list[int]) -> Tensor:
        """Compute the logits (T, V) of the real tokens."""
        return super().logits(self.placeholders + ids)[len(self.placeholders) :]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Continue the virtual tokens and `ids` by `count` tokens, each the likeliest."""
        return super().greedy(self.placeholders + ids, count)


def collect_outputs(
    reader: Reader, prompts: Prompts, what: str, progress: Progress, *, only_logits: bool = False
) -> ReaderOutputs:
    """Let a model read all prompts.

    Args:
        reader: the model.
        prompts: what it reads.
        what: what the progress report says is being done.
        progress: called as progress(what, done, total).
        only_logits: whether continuations and scores are left out.
    """
    logits, greedy, scores = [], [], []
    for index, ids in enumerate(prompts.token_ids):
        progress(what, index, len(prompts.token_ids))
        logits.append(reader.logits(ids)[-POSITIONS:].cpu())
        if only_logits:
            continue
        greedy.append(reader.greedy(ids, CONTINUED))
        if prompts.task is not None and prompts.task.kind != "text":
            scores.append(_task_score(reader, prompts, index))
    progress(what, len(prompts.token_ids), len(prompts.token_ids))
    return ReaderOutputs(logits, greedy, scores)


def _task_score(reader: Reader, prompts: Prompts, index: int) -> float:
    """Score a model's answer to one example: the likeliest label, or what it generates."""
    task, example, ids = prompts.task, prompts.examples[index], prompts.token_ids[index]
    assert task is not None and prompts.encoder is not None
    if prompts.label_ids:
        losses = [_answer_nll(reader, ids, label_ids) for label_ids in prompts.label_ids[index]]
        answer = task.labels[losses.index(min(losses))]
    else:
        generated = reader.greedy(ids, prompts.room)
        end = prompts.encoder.eos
        stop = None if prompts.encoder.chat else "\n\n"
        answer = prompts.encoder.decode(generated[: generated.index(end)] if end in generated else generated, stop)
    if task.metric == "accuracy":
        return float(answer == example.answer)
    return metrics.find(task.metric)(answer, example.references or (example.answer,))


def _answer_nll(reader: Reader, ids: list[int], answer: list[int]) -> float:
    """Return the negative log-likelihood of the ids `answer` after `ids`, summed over its tokens."""
    logprobs = reader.logits(ids + answer[:-1])[len(ids) - 1 :].log_softmax(-1)  # (answer tokens, V)
    return -float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum())


def compare_outputs(
    reader: Reader,
    trained: ReaderOutputs,
    exported: ReaderOutputs,
    bare: ReaderOutputs,
    prompts: Prompts,
    share: float,
    slack: float,
) -> ParityFigures:
    """Compare the outputs of an export with those of the trained model.

    Args:
        reader: the export.
        trained: the trained model's outputs.
        exported: the export's outputs.
        bare: the outputs of the base without the adaptation.
        prompts: what all of them read.
        share: the share of the largest logit that logits may differ by.
        slack: the share of what training moved that they may differ by besides.
    """
    largest = max(float(logits.abs().max()) for logits in trained.logits)
    moved = max(_largest_gap(a, b) for a, b in zip(trained.logits, bare.logits, strict=True))
    tolerance = share * max(largest, 1.0) + slack * moved
    gaps = [_largest_gap(a, b) for a, b in zip(trained.logits, exported.logits, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    disagreeing = _disagreeing_prompts(reader, trained, exported, prompts, tolerance)
    same_continuations = [a == b for a, b in zip(trained.greedy, exported.greedy, strict=True)]
    figures: ParityFigures = {
        "same": gaps[worst] <= tolerance and not disagreeing,
        "prompts": len(gaps),
        "source": prompts.source,
        "max_logit_difference": gaps[worst],
        "tolerance": tolerance,
        "largest_logit": largest,
        "moved_by_training": moved,
        "greedy_agreement": sum(same_continuations) / len(same_continuations),
        "greedy_tokens": CONTINUED,
        # `not <=`, so that a difference that is not a number counts as one.
        "differ": sorted({index for index, gap in enumerate(gaps) if not gap <= tolerance} | set(disagreeing)),
        "worst_prompt": worst,
    }
    if trained.scores and prompts.task is not None:
        figures["score"] = {
            "metric": prompts.task.metric,
            "trained": sum(trained.scores) / len(trained.scores),
            "exported": sum(exported.scores) / len(exported.scores),
        }
    return figures


def _largest_gap(a: Tensor, b: Tensor) -> float:
    """Return max |a - b|; infinity where a value is not finite or the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    gap = float((a.double() - b.double()).abs().max())
    return gap if math.isfinite(gap) else math.inf


def _disagreeing_prompts(
    reader: Reader, trained: ReaderOutputs, exported: ReaderOutputs, prompts: Prompts, tolerance: float
) -> list[int]:
    """List the prompts whose continuations differ where the export prefers its own token by more than 2 * tolerance.

    Two models whose logits differ by less than the tolerance cannot disagree about more than that.
    """
    disagreeing = []
    for index, (expected, actual) in enumerate(zip(trained.greedy, exported.greedy, strict=True)):
        first = next((i for i, pair in enumerate(zip(expected, actual, strict=True)) if pair[0] != pair[1]), None)
        if first is not None:
            last = reader.logits(prompts.token_ids[index] + expected[:first])[-1]  # (V,)
            if not float(last[actual[first]] - last[expected[first]]) <= 2 * tolerance:
                disagreeing.append(index)
    return disagreeing


def tokenizer_problem(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, prompts: Prompts
) -> TokenizerDifference | None:
    """Compare the export's tokenizer with the model's on the prompts' text; None where they agree.

    A difference is the first prompt of whose text they make different ids, or the chat template.
    """
    if ours.chat_template != theirs.chat_template:
        return {"chat_template": "differs"}
    for index, ids in enumerate(prompts.token_ids):
        text = str(ours.decode(ids, skip_special_tokens=True))
        expected, actual = (list(tokenizer(text)["input_ids"]) for tokenizer in (ours, theirs))
        if expected != actual:
            return {"prompt": index, "trained": expected[:40], "exported": actual[:40]}
    return None
