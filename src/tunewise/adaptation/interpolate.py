"""Interpolation back to the base (WiSE-FT, Wortsman et al. 2022): W(alpha) = (1 - alpha) W_0 + alpha W_tuned.

Of what was learnt and what was forgotten, some alpha often keeps most of the one for little of the other. It applies to
every technique that merges into the base's weights; for LoRA it is the same as scaling the update by alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from tunewise.contract.attachment import Attachment
from tunewise.core.errors import TechniqueError
from tunewise.core.progress import RowProgress, for_row, silent_row
from tunewise.data.task import Task, sample
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.scoring import score
from tunewise.techniques.registry import make

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
Found = TypeVar("Found")


def curve(
    attachment: Attachment, measure: Callable[[Attachment], Found], alphas: Sequence[float] = ALPHAS
) -> list[tuple[float, Found]]:
    """Each alpha with `measure(model)` there; the attachment is used up, and its base bare again after it.

    Raises:
        TechniqueError: the technique cannot be merged, or merging makes other tensors than the base has.
    """
    base = attachment.base
    attachment.merge()
    tuned = {name: parameter.detach().clone() for name, parameter in base.model.named_parameters()}
    attachment.detach()
    own = dict(base.model.named_parameters())
    if own.keys() != tuned.keys():
        raise TechniqueError(f"{attachment.recipe.name} adds tensors to the model, which its base has no match for")
    bare = {name: parameter.detach().clone() for name, parameter in own.items()}
    plain = make("base").attach(base, torch.Generator())
    found: list[tuple[float, Found]] = []
    try:
        for alpha in alphas:
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(torch.lerp(bare[name].double(), tuned[name].double(), alpha))
            found.append((alpha, measure(plain)))
    finally:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(bare[name])
        plain.detach()
    return found


def measured(
    attachment: Attachment,
    task: Task,
    alphas: Sequence[float],
    texts: Sequence[str] | None = None,
    examples: int = 200,
    progress: RowProgress = silent_row,
) -> list[dict[str, float]]:
    """Score on the test split and forgetting at each alpha; `texts` are those of `Retention`.

    Raises:
        TechniqueError: as `curve`.
    """
    base, chosen, name = attachment.base, sample(task.test, examples), attachment.recipe.name
    held: list[Retention] = []

    def measure(plain: Attachment) -> dict[str, Any]:
        if not held:  # the first point is the base itself
            held.append(Retention.measure(base, texts))
            return {}
        found = score(plain, task, chosen, progress=for_row(progress, name))
        return {"score": found.mean, "nll": found.nll, **held[0].compare(plain)}

    points = curve(attachment, measure, [0.0, *alphas])
    return [{"alpha": alpha, **point} for alpha, point in points[1:]]
