"""The empirical Fisher information of a model's parameters, by which sparse and pruned techniques choose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.engine.forward import batch_of, layout, loss_sum

if TYPE_CHECKING:
    from tunewise.engine.encoding import TokenSequence
    from tunewise.engine.model import Base


def fisher(base: Base, parameters: Mapping[str, Tensor], rows: Iterable[TokenSequence]) -> dict[str, Tensor]:
    """Sum over rows (d log p(labelled tokens) / d parameter)^2, one row at a time: fp32, like the parameters.

    Squaring a batch's mean gradient would be another quantity (Sung, Nair, Raffel 2021, section 3.1). Nothing is left
    in any `.grad`.
    """
    information = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    required_grad = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for row in rows:
            batch = batch_of(base, [row])
            with layout(base, batch):
                loss = loss_sum(base, batch)
                grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    information[name] += grad.float() ** 2  # of the parameter's own shape
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(required_grad[name])
    return information
