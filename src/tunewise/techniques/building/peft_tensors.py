"""Takes over the tensors of a PEFT adapter: names and shapes exactly, finite values, and any type of floats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tunewise.contract.attachment import strict
from tunewise.core.errors import ArtifactError
from tunewise.core.text import show

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def fitted(current: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's tensors in the types of the current ones of the same names.

    Raises:
        ArtifactError: a missing, extra, mis-shaped or non-finite tensor, or one that holds no floats where floats are
            expected; it is named.
    """
    cast = {}
    for name, tensor in tensors.items():
        dtype = current[name].dtype if name in current else tensor.dtype
        if dtype != tensor.dtype and not (dtype in _FLOATS and tensor.dtype in _FLOATS):
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _FLOATS)
            raise ArtifactError(
                f'"{show(name, 200)}" is of type {str(tensor.dtype).removeprefix("torch.")}, which is not rounded or '
                f"scaled here; save it as one of {kinds}"
            )
        cast[name] = tensor.to(dtype)
    strict(current, cast)
    return cast


@torch.no_grad()
def take_over(current: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter's tensors into the current ones of the same names; raises `ArtifactError` as `fitted` does."""
    cast = fitted(current, tensors)
    for name, tensor in current.items():
        tensor.copy_(cast[name])


def prompt_length(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of virtual tokens of an adapter that holds the embeddings of a prompt.

    Raises:
        ArtifactError: it holds something else.
    """
    if set(tensors) != {"prompt_embeddings"} or tensors["prompt_embeddings"].dim() != 2:
        names = ", ".join(f'"{show(name)}" {tuple(tensor.shape)}' for name, tensor in list(tensors.items())[:3])
        raise ArtifactError(f"a prompt of PEFT's holds prompt_embeddings alone, with two dimensions, and not {names}")
    return len(tensors["prompt_embeddings"])
