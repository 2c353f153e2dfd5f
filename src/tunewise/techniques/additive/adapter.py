"""Bottleneck adapters: small two-layer networks inside every block (Houlsby et al. 2019).

    A(s) = U phi(D s + b_D) + b_U,   D in R^{r x d}, U in R^{d x r}

    houlsby    y = x + s + A(s)            after attention and after the feed-forward; norms trained too
    pfeiffer   y = x + s + A(x + s)        once per block, on its output (Pfeiffer et al. 2021)
    parallel   y = x + s + scale * A(x')   beside the feed-forward, x' its normed input (He et al. 2022)

s is what a sublayer adds to its residual x: its last linear's output, or that of the norm which Gemma 2 and 3 put
after it. These are the placements of the papers in pre-norm decoders. In a block with parallel residuals each branch
gets its own adapter.
Differs from the paper: U starts at zero, so the start is the base itself (the papers start near it).

In shapes: B rows, T tokens a row, d the width of what is adapted, r the adapter's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_PHI = {"relu": torch.relu, "gelu": nn.functional.gelu, "swish": nn.functional.silu}


@dataclass(frozen=True, kw_only=True)
class Adapter(Technique):
    """Small networks inside every block."""

    name = "adapter"
    family = "additive"
    summary = "small bottleneck networks inside every block"
    citation = Citation(
        "Parameter-Efficient Transfer Learning for NLP",
        "Houlsby et al.",
        2019,
        "https://arxiv.org/abs/1902.00751",
        "section 2",
    )
    equation = "y = x + s + U phi(D s + b_D) + b_U"
    sides = frozenset({"adapters", "norms"})
    differs = "starts as the base"
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 3e-4
    width_exponent = 0.5

    variant: str = setting("houlsby", "Where the adapters are.", choices=("houlsby", "pfeiffer", "parallel"))
    reduction_factor: float = setting(
        16.0, "Width of the model over width of an adapter.", low=1.0, high=4096.0, search=(4.0, 64.0)
    )
    non_linearity: str = setting("swish", "phi.", choices=tuple(_PHI))
    scaling: float = setting(4.0, "Scale of the parallel variant.", low=0.0, high=100.0)
    norms: str = setting(
        "auto",
        "Whether norms are trained too; auto: in the houlsby variant alone.",
        choices=("auto", "train", "frozen"),
    )
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Hook the adapters into the blocks."""
        return _Adapters(base, self, generator)


class _Adapters(Attachment):
    def __init__(self, base: Base, recipe: Adapter, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: Adapter = recipe
        self.generator = generator
        anatomy = base.anatomy
        for index, block in enumerate(anatomy.blocks):
            if recipe.variant == "houlsby":
                for role in ("o", "down"):
                    self._serial(*anatomy.sublayer(index, role))
            elif recipe.variant == "pfeiffer":
                self._serial(anatomy.block_path(index), block)
            else:
                entry = anatomy.linear(index, "up" if "up" in anatomy.roles else "gate_up")
                self._parallel(entry, *anatomy.sublayer(index, "down"))
        if recipe.norms == "train" or (recipe.norms == "auto" and recipe.variant == "houlsby"):
            for name, parameter in anatomy.norms().items():
                self.train_existing(name, parameter)

    def _network(self, name: str) -> Any:
        """Add a new adapter's parameters and return its function."""
        width = self.base.anatomy.width
        r = max(1, round(width / self.recipe.reduction_factor))
        bound = width**-0.5
        down = self.add(f"{name}.down.weight", (torch.rand(r, width, generator=self.generator) * 2 - 1) * bound)
        down_bias = self.add(f"{name}.down.bias", torch.zeros(r))
        up = self.add(f"{name}.up.weight", torch.zeros(width, r))
        up_bias = self.add(f"{name}.up.bias", torch.zeros(width))
        phi = _PHI[self.recipe.non_linearity]

        def network(x: Tensor) -> Tensor:
            inner = phi(nn.functional.linear(x.to(down.dtype), down, down_bias))  # (B, T, d) to (B, T, r)
            return nn.functional.linear(inner, up, up_bias).to(x.dtype)  # (B, T, d)

        return network

    def _serial(self, name: str, module: nn.Module) -> None:
        """Add the adapter to a module's output: s becomes s + A(s)."""
        network = self._network(name)

        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + network(output[0]), *output[1:])
            return output + network(output)

        self.hook(module.register_forward_hook(add))

    def _parallel(self, entry: nn.Module, name: str, exit: nn.Module) -> None:
        """Add the adapter beside a feed-forward: its output s becomes s + scale * A(x'), x' its input."""
        network, inputs = self._network(name), list[Tensor]()

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[:] = [args[0]]

        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + self.recipe.scaling * network(inputs.pop()).view_as(output)

        self.hook(entry.register_forward_pre_hook(keep))
        self.hook(exit.register_forward_hook(add))
