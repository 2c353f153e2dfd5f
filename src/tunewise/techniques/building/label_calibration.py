"""Repairs a model's bias towards some labels: subtracts the scores that it gives without the input.

contextual      nll(y | x) - nll(y | "N/A"), over content-free inputs          (Zhao et al. 2021)
domain_context  the same over random words of the task's own inputs            (Fei et al. 2023)
batch           the same over the mean of many real inputs, without labels     (Zhou et al. 2024)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunewise.contract.study import AllowanceUsedUpError
from tunewise.core.seeds import generator
from tunewise.data.task import Example, Message, Task

METHODS = ("contextual", "domain_context", "batch")
_CONTENT_FREE = ("N/A", "", "[MASK]")  # content-free inputs, of Zhao et al. 2021
_RANDOM_TEXTS = 20  # random texts, of Fei et al. 2023

Scorer = Callable[[Sequence[Example]], Tensor]  # label nll (n, labels)


def bias(method: str, task: Task, score: Scorer, seed: int) -> Tensor:
    """Return what is to be subtracted from the nll of each label, (labels,)."""
    return _mean_shift(method, score(_inputs(method, task, seed)))


def _mean_shift(method: str, nll: Tensor) -> Tensor:
    log_p = (-nll).log_softmax(1)
    # Zhao and Fei average probabilities; batch calibration averages log-probabilities.
    mean = log_p.mean(0) if method == "batch" else log_p.exp().mean(0).log()
    return -mean


def _inputs(method: str, task: Task, seed: int) -> list[Example]:
    if method == "batch":
        return list(task.validation)
    pattern = task.validation[0]
    if method == "contextual":
        return [_question(pattern, text) for text in _CONTENT_FREE]
    words = [word for example in task.validation for word in example.prompt.split()]
    length = max(1, len(words) // len(task.validation))
    source = generator(seed, "calibration")
    drawn = torch.randint(len(words), (_RANDOM_TEXTS, length), generator=source).tolist()
    return [_question(pattern, " ".join(words[place] for place in row)) for row in drawn]


def _question(pattern: Example, text: str) -> Example:
    messages = [m for m in pattern.messages if m.role == "system"]
    return replace(pattern, messages=(*messages, Message("user", text)))


@dataclass(frozen=True)
class Calibration:
    """Holds the method that was chosen, or "none", with its bias, and the methods that were left untried."""

    method: str
    bias: Tensor | None
    untried: tuple[str, ...] = ()


def choose(task: Task, score: Scorer, seed: int) -> Calibration:
    """Choose the method whose normalised label loss on validation is lowest, or none.

    Cheap methods are tried first. Where `score` raises `AllowanceUsedUpError`, the method is left untried.
    """
    try:
        nll = score(task.validation)
    except AllowanceUsedUpError:
        return Calibration("none", None, METHODS)
    gold = torch.tensor([task.labels.index(example.answer) for example in task.validation])

    def loss(shift: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(shift - nll, gold))

    shifts: dict[str, Tensor | None] = {"none": None}
    losses = {"none": loss(torch.zeros(len(task.labels), dtype=nll.dtype))}
    for method in METHODS:
        try:
            shift = _mean_shift(method, nll) if method == "batch" else bias(method, task, score, seed)
        except AllowanceUsedUpError:
            continue
        shifts[method], losses[method] = shift, loss(shift)
    best = min(losses, key=lambda method: losses[method])
    return Calibration(best, shifts[best], tuple(method for method in METHODS if method not in losses))
