"""Initialises a narrow network from a wide one's weights: structured pruning, as ladder side-tuning does it.

Kept are the residual columns, the dimensions of the heads (in rotary pairs, the same in all heads of a block) and the
feed-forward's rows that matter most. What matters is the size of the weights or their Fisher information
(Sung, Cho, Bansal 2022, section 3.3). The reference chooses residual columns anew for every layer; here they are one
set, so that the residual stream of the narrow network means what the wide one's does. It ranks rows by the columns that
are left, and those of queries, keys and values by the product of their importances; here rows are ranked by sums over
all columns, queries with keys, and values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tunewise.engine.anatomy import features, is_transposed
from tunewise.engine.forward import batch_of, layout, loss_sum
from tunewise.engine.shards import whole

if TYPE_CHECKING:
    from tunewise.engine.encoding import TokenSequence
    from tunewise.engine.model import Base


def importance(base: Base, rows: Iterable[TokenSequence] | None = None) -> dict[str, Tensor]:
    """Sum the importance of weights over what is kept or dropped as a whole: output rows, columns of embeddings.

    The importance of a weight is its Fisher information on the rows; without rows it is its size. Beside these sums
    there is one gradient at a time: the gradients of all weights would take as much memory as the model.

    Returns:
        By full name, a vector for the weight of each of the blocks' linears, (out,), and for the embeddings, (d,).
    """
    anatomy = base.anatomy
    axes = {id(linear.weight): 0 if is_transposed(linear) else 1 for _, _, linear in anatomy.linears()}
    axes[id(anatomy.embedding.weight)] = 0
    summed = {name: (weight, axes[id(weight)]) for name, weight in base.model.named_parameters() if id(weight) in axes}
    if rows is None:
        return {
            name: torch.linalg.vector_norm(whole(weight), 1, axis, dtype=_summed_in(weight))
            for name, (weight, axis) in summed.items()
        }
    return _fisher_sums(base, summed, rows)


def _summed_in(values: Tensor) -> torch.dtype:
    """Return the dtype for sums over many values: at least float32."""
    return torch.promote_types(values.dtype, torch.float32)


def _fisher_sums(
    base: Base, summed: Mapping[str, tuple[Tensor, int]], rows: Iterable[TokenSequence]
) -> dict[str, Tensor]:
    """Sum the Fisher information of each weight on the rows, one row at a time, over the axis that stands with it."""
    sums = {
        name: weight.new_zeros(weight.shape[1 - axis], dtype=_summed_in(weight))
        for name, (weight, axis) in summed.items()
    }

    def take(name: str, axis: int) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            gradient, weight.grad = cast(Tensor, weight.grad), None  # it has just been accumulated
            sums[name] += torch.linalg.vector_norm(gradient, dim=axis, dtype=_summed_in(gradient)).square()

        return add

    handles = []
    required_grad = {name: weight.requires_grad for name, (weight, _) in summed.items()}
    try:
        for name, (weight, axis) in summed.items():
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(take(name, axis)))
        for row in rows:
            batch = batch_of(base, [row])
            with layout(base, batch):
                loss_sum(base, batch).backward()
    finally:
        for handle in handles:
            handle.remove()
        for name, (weight, _) in summed.items():
            weight.requires_grad_(required_grad[name])
    return sums


def best(scores: Tensor, count: int) -> Tensor:
    """Return the ascending places of the `count` largest scores; of equal ones the first."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


@torch.no_grad()
def prune(base: Base, side: Any, block_indices: Sequence[int], scores: dict[str, Tensor]) -> None:
    """Fill `side` (of `Anatomy.shrunk`), one block of it from each of the base's blocks `block_indices`."""
    anatomy = base.anatomy
    scores = {name: score.cpu() for name, score in scores.items()}  # only indices are taken from them
    names = {id(parameter): name for name, parameter in base.model.named_parameters()}
    residual = best(scores[names[id(anatomy.embedding.weight)]], side.config.hidden_size)
    prefix = anatomy.layout.blocks.split(".")[-1]
    small = dict(side.named_modules())
    for step, index in enumerate(block_indices):
        block = next(module for name, module in small.items() if name.endswith(f"{prefix}.{step}"))
        _Block(base, index, block, residual, scores, names).fill()
    inner = dict(anatomy.inner.named_parameters())
    for name, parameter in side.named_parameters():
        wide = inner.get(name)
        fits = wide is not None and (*wide.shape[:-1], len(residual)) == tuple(parameter.shape)
        if wide is not None and fits and f"{prefix}." not in name:  # the final norm, learned positions
            parameter.copy_(whole(wide)[..., residual])


class _Block:
    """Copies one block of the base into a narrow block."""

    def __init__(
        self,
        base: Base,
        index: int,
        small: nn.Module,
        residual: Tensor,
        scores: dict[str, Tensor],
        names: dict[int, str],
    ) -> None:
        self.anatomy, self.index, self.small, self.residual = base.anatomy, index, small, residual
        self.scores, self.names = scores, names
        self.paths = dict(self.anatomy.layout.roles)

    def _small(self, role: str) -> Any:
        return self.small.get_submodule(self.paths[role])

    def _score(self, role: str) -> Tensor:
        """Return the importance of a linear's output rows."""
        return self.scores[self.names[id(self.anatomy.linear(self.index, role).weight)]]

    def _copy(self, role: str, rows: Tensor, columns: Tensor, into: Tensor | None = None) -> None:
        """Copy the chosen rows and columns of a linear (out, in) into those of the narrow one."""
        wide, narrow = self.anatomy.linear(self.index, role), self._small(role)
        weight = whole(wide.weight)
        weight = weight.T if is_transposed(wide) else weight
        target = narrow.weight.T if is_transposed(narrow) else narrow.weight
        place = torch.arange(len(rows)) if into is None else into
        target[place] = weight[rows][:, columns].to(target.dtype)
        if wide.bias is not None and narrow.bias is not None:
            narrow.bias[place] = whole(wide.bias)[rows].to(narrow.bias.dtype)

    def fill(self) -> None:
        """Copy attention, feed-forward and norms."""
        anatomy, residual = self.anatomy, self.residual
        heads, _, size = anatomy.heads
        narrow_size = features(self._small("o"))[0] // heads
        wide, narrow = anatomy.columns(), anatomy.columns(narrow_size)
        dimensions = {}
        for shared in (("q", "k"), ("v",)):
            score = torch.stack([self._score(wide[name][0])[wide[name][1]].sum(0) for name in shared]).sum(0)
            pairs = best(score.view(2, size // 2).sum(0), narrow_size // 2)
            for name in shared:
                dimensions[name] = torch.cat([pairs, pairs + size // 2])
        for name, (role, columns) in wide.items():
            self._copy(role, columns[:, dimensions[name]].flatten(), residual, narrow[name][1].flatten())
        values = (torch.arange(heads)[:, None] * size + dimensions["v"]).flatten()
        self._copy("o", residual, values)
        self._feed_forward()
        norms, wide_parameters = anatomy.norms(), dict(anatomy.blocks[self.index].named_parameters())
        for name, parameter in self.small.named_parameters():
            base_values = wide_parameters[name]
            if parameter.dim() == 1 and f"{anatomy.block_path(self.index)}.{name}" in norms:
                places = residual if len(base_values) == anatomy.width else dimensions["q"]
                if len(places) == len(parameter):
                    parameter.copy_(whole(base_values)[places])

    def _feed_forward(self) -> None:
        width = features(self._small("down"))[0]
        if "gate_up" in self.paths:
            score = self._score("gate_up").view(2, -1)
            rows = best(score.sum(0), width)
            self._copy("gate_up", torch.cat([rows, rows + score.shape[1]]), self.residual)
        else:
            entries = [role for role in ("gate", "up") if role in self.paths]
            rows = best(torch.stack([self._score(role) for role in entries]).sum(0), width)
            for role in entries:
                self._copy(role, rows, self.residual)
        self._copy("down", self.residual, rows)
