"""Interpolation back to the base (WiSE-FT, Wortsman et al. 2022): W(alpha) = (1 - alpha) W_0 + alpha W_tuned.

Some alpha often keeps most of what was learnt and forgets little. It applies to every technique that merges into the
base's weights; for LoRA it is the same as scaling the update by alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from tunewise.contract.attachment import Attachment
from tunewise.core.errors import TechniqueError
from tunewise.core.progress import RowProgress, for_row, silent_row
from tunewise.data.task import Task, sample
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.scoring import score
from tunewise.techniques.registry import make

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
Measurement = TypeVar("Measurement")


def curve(
    attachment: Attachment, measure: Callable[[Attachment], Measurement], alphas: Sequence[float] = ALPHAS
) -> list[tuple[float, Measurement]]:
    """Call `measure` at each alpha and return the pairs (alpha, measurement).

    The attachment is merged and cannot be used afterwards; its base is bare again.

    Args:
        attachment: what was tuned.
        measure: called with the interpolated model, as an attachment of the technique "base".
        alphas: points between the base (0) and the tuned model (1).

    Raises:
        TechniqueError: the technique cannot be merged, or merging adds tensors that the base does not have.
    """
    base = attachment.base
    attachment.merge()
    tuned = {name: parameter.detach().clone() for name, parameter in base.model.named_parameters()}
    attachment.detach()
    parameters = dict(base.model.named_parameters())
    if parameters.keys() != tuned.keys():
        raise TechniqueError(
            f"{attachment.recipe.name} adds tensors that the base does not have, so it cannot be interpolated with it"
        )
    bare = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    plain = make("base").attach(base, torch.Generator())
    points: list[tuple[float, Measurement]] = []
    try:
        for alpha in alphas:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(torch.lerp(bare[name].double(), tuned[name].double(), alpha))
            points.append((alpha, measure(plain)))
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(bare[name])
        plain.detach()
    return points


def measured(
    attachment: Attachment,
    task: Task,
    alphas: Sequence[float],
    texts: Sequence[str] | None = None,
    examples: int = 200,
    progress: RowProgress = silent_row,
) -> list[dict[str, float]]:
    """Measure the score on the test split and forgetting at each alpha.

    Args:
        attachment: what was tuned; it cannot be used afterwards.
        task: the data.
        alphas: points between the base (0) and the tuned model (1).
        texts: texts that forgetting is measured on; default: text that is sampled from the base.
        examples: how many test examples are scored.
        progress: called as progress(technique, what, done, total).

    Returns:
        Per alpha: `alpha`, `score`, `nll`, and what `Retention.compare` returns.

    Raises:
        TechniqueError: the attachment cannot be interpolated; see `curve`.
    """
    base, chosen, name = attachment.base, sample(task.test, examples), attachment.recipe.name
    retention: list[Retention] = []
    report = for_row(progress, name)

    def measure(plain: Attachment) -> dict[str, float]:
        if not retention:  # the first point is the base itself
            retention.append(Retention.measure(base, texts, progress=report))
            return {}
        scores = score(plain, task, chosen, progress=report)
        return {"score": scores.mean, "nll": scores.nll, **retention[0].compare(plain, report)}

    points = curve(attachment, measure, [0.0, *alphas])
    return [{"alpha": alpha, **point} for alpha, point in points[1:]]
