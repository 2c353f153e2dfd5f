"""Refuses an adaptation that cannot run, or whose outputs are not finite, as values can be one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunewise.core.errors import ArtifactError
from tunewise.core.text import one_line, show

if TYPE_CHECKING:
    from torch import Tensor

    from tunewise.contract.attachment import Attachment

_TOKENS = 8  # of the pass, spread over the vocabulary
_LARGEST = 1e8  # of a value: the square of a product of two is far below the largest float32


@torch.no_grad()
def require_finite_outputs(file: Path, tensors: Mapping[str, Tensor], attachment: Attachment) -> None:
    """Let an adaptation that was just loaded read a few tokens; this takes as long as the first token of an answer.

    Args:
        file: the file that its tensors come from, for errors.
        tensors: the tensors in it, by name.
        attachment: the adaptation on its base.

    Raises:
        ArtifactError: a value is huge, the pass fails, or an output is not finite.
    """
    base = attachment.base
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)
            if max(-float(low), float(high)) > _LARGEST:
                raise ArtifactError(
                    f'{file}: "{show(name, 200)}" holds values above {_LARGEST:g}, which no training gives; use an '
                    "undamaged copy"
                )
    if attachment.recipe.sides <= {"prompt"}:  # it changes the prompt alone
        return
    before, after = attachment.virtual_tokens, attachment.virtual_suffix
    virtual = list(range(base.vocabulary, base.vocabulary + before + after))
    count = max(1, min(_TOKENS, base.anatomy.context - len(virtual) - 1))
    words = torch.linspace(0, base.vocabulary - 1, count).long().tolist()
    ids = torch.tensor([[*virtual[:before], *words, *virtual[before:], words[0]]], device=base.device)
    try:
        logits = base.model(input_ids=ids, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # shapes that fit each tensor, and not one another
        raise ArtifactError(f"{file}: cannot be run on {base.name} ({one_line(error)})") from error
    if not bool(logits.isfinite().all()):
        raise ArtifactError(
            f"{file}: gives outputs on {base.name} that are not finite, as its values are too large for "
            f"{str(base.model.dtype).removeprefix('torch.')}; load the base in float32, or use an undamaged copy"
        )
