"""KronA: a Kronecker product is added to frozen weights, or stands beside the feed-forward (Edalati et al. 2022).

    plain      h = W x + s (A (x) B) x                   A (a1, a2), B (b1, b2), a1 b1 = out, a2 b2 = in
    block      FFN(x) + s (A (x) B) x                    x the normalised input of the feed-forward
    residual   FFN(x) + s (A (x) B) x + s_res x

The product is never formed: with x as an (a2, b2) matrix X, row by row, (A (x) B) x = A X B^T. A starts
Kaiming-uniform, B and s_res at zero, so that training starts from the base; the paper does not give its start. `a1` and
`a2` are chosen so that A and B are as close to equal in size as the weight's sides allow. Differs from the paper: plain
adapts every linear of every block, not only queries and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, Findings, PeftConfig
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import SettingError
from tunewise.engine.anatomy import add_to_weight, features
from tunewise.techniques.building.lowrank import ALL_LINEAR, targets
from tunewise.techniques.building.peft_lora import Factors, portable

if TYPE_CHECKING:
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class KronA(Technique):
    """Kronecker products added to frozen weights."""

    name = "krona"
    family = "reparametrized"
    summary = "Kronecker products added to frozen linears, or beside the feed-forward"
    citation = Citation(
        "KronA: Parameter Efficient Tuning with Kronecker Adapter",
        "Edalati, Tahaei, Kobyzev, Nia, Clark, Rezagholizadeh",
        2022,
        "https://arxiv.org/abs/2212.10650",
        "section 4",
    )
    equation = "h = W x + s (A (x) B) x"
    sides = frozenset({"weights"})
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 1e-3
    width_exponent = 0.5

    form: str = setting("plain", "Where the product goes.", choices=("plain", "block", "residual"))
    scale: float = setting(1.0, "s, which multiplies the product.", low=0.0, high=1e6, search=(4.0, 16.0))
    a1: int = setting(0, "Rows of A, a divisor of the output's size; 0: balanced.", low=0, high=1 << 20)
    a2: int = setting(0, "Columns of A, a divisor of the input's size; 0: balanced.", low=0, high=1 << 20)
    target_modules: tuple[str, ...] = setting((ALL_LINEAR,), "Linears that the plain form adapts.")
    export_rank: int = setting(0, "Rank of a LoRA for PEFT, by SVD, written beside; 0: none.", low=0, high=4096)
    learning_rate: float | None = learning_rate()

    @fact(default="all linears")
    def differs(self) -> str:
        """Name the targets of the plain form, unless they are chosen."""
        return "all linears" if self.form == "plain" and ALL_LINEAR in self.target_modules else ""

    @fact(default=True)
    def mergeable(self) -> bool:
        """Say whether the product is added to a weight; in the other forms it spans a feed-forward."""
        return self.form == "plain"

    def why_not_mergeable(self) -> str:
        """Say which form spans a feed-forward."""
        return (
            f"krona.form={self.form} cannot be merged: its product spans a feed-forward that is not linear; "
            "ship the adaptation, or use form=plain"
        )

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put products on the targeted linears, or beside every feed-forward.

        Raises:
            SettingError: a target that names no linear, or a factor's side that does not divide the weight's.
        """
        return _Kronecker(base, self, generator)


class _Kronecker(Attachment):
    def __init__(self, base: Base, recipe: KronA, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: KronA = recipe
        self.layers: dict[str, nn.Module] = {}
        if recipe.form == "plain":
            for path, (_, module) in targets(base, recipe.target_modules, "krona.target_modules").items():
                product = self._product(path, *features(module), generator)
                self.layers[path] = module
                self.hook(module.register_forward_hook(lambda m, args, out, f=product: out + f(args[0])))
            return
        for index in range(len(base.anatomy.blocks)):
            self._add_beside_feed_forward(index, generator)

    def _product(
        self, path: str, size_in: int, size_out: int, generator: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        """Add A and B under this path and return the function x -> s (A (x) B) x."""
        a1, a2 = _sides(self.recipe, size_in, size_out)
        bound = 1 / math.sqrt(a2)
        a = self.add(f"{path}.krona_A", torch.rand(a1, a2, generator=generator) * 2 * bound - bound)
        b = self.add(f"{path}.krona_B", torch.zeros(size_out // a1, size_in // a2))
        return lambda x: (self.recipe.scale * kronecker(x.to(a.dtype), a, b)).to(x.dtype)

    def _add_beside_feed_forward(self, index: int, generator: torch.Generator) -> None:
        """Put a product from the input of the feed-forward's first linear to the output of its last."""
        anatomy = self.base.anatomy
        roles = [role for role in ("gate_up", "gate", "up") if role in anatomy.roles]
        path, width = f"{anatomy.block_path(index)}.ffn", anatomy.width
        product = self._product(path, width, width, generator)
        residual_scale = self.add(f"{path}.s_res", torch.zeros(())) if self.recipe.form == "residual" else None
        inputs: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[:] = [args[0]]

        def leave(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs.pop()
            changed = output + product(x)
            return changed if residual_scale is None else changed + residual_scale.to(x.dtype) * x

        self.hook(anatomy.linear(index, roles[0]).register_forward_pre_hook(enter))
        self.hook(anatomy.linear(index, "down").register_forward_hook(leave))

    def _factors(self, path: str) -> tuple[Tensor, Tensor]:
        return self._params[f"{path}.krona_A"].detach(), self._params[f"{path}.krona_B"].detach()

    def fold(self) -> None:
        for path, module in self.layers.items():
            self.keep(module.weight)  # type: ignore[arg-type]
            add_to_weight(module, self.recipe.scale * torch.kron(*self._factors(path)))

    def peft(self) -> tuple[PeftConfig, dict[str, Tensor]] | None:
        if not self.recipe.export_rank or self.recipe.form != "plain":
            return None
        updates = {path: truncated(*self._factors(path), self.recipe.export_rank)[0] for path in self.layers}
        scaled = {path: Factors(a, b, self.recipe.scale) for path, (a, b) in updates.items()}
        return portable(scaled, self.base, self.layers)

    def findings(self, validation_loss: Callable[[], float]) -> Findings:
        """Return the largest relative error of a matrix in the LoRA that is exported."""
        if not self.recipe.export_rank:
            return {}
        errors = [truncated(*self._factors(path), self.recipe.export_rank)[1] for path in self.layers]
        return {f"relative error as a LoRA of rank {self.recipe.export_rank}": max(errors, default=0.0)}


def kronecker(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(A (x) B) x: multiply x (..., a2 b2) to (..., a1 b1), in the cheaper of the two orders."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    rows = x.reshape(*x.shape[:-1], a2, b2)  # X of each token
    right_first = a2 * b2 * b1 + a1 * a2 * b1 <= a1 * a2 * b2 + a1 * b1 * b2
    product = a @ (rows @ b.T) if right_first else (a @ rows) @ b.T  # (a1, a2) (..., a2, b2) (b2, b1)
    return product.reshape(*x.shape[:-1], a1 * b1)


def truncated(a: Tensor, b: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """Return A (x) B as (r, in) and (out, r) factors, by SVD, and the relative error in Frobenius norm.

    The singular values of a Kronecker product are all products of the factors' (Van Loan 2000).
    """
    ua, sa, va = torch.linalg.svd(a, full_matrices=False)
    ub, sb, vb = torch.linalg.svd(b, full_matrices=False)
    values = torch.outer(sa, sb).flatten()
    order = values.sort(descending=True, stable=True).indices[:rank]
    i, j = order // len(sb), order % len(sb)
    columns = [torch.kron(ua[:, m], ub[:, n]) for m, n in zip(i.tolist(), j.tolist(), strict=True)]
    rows = [torch.kron(va[m], vb[n]) for m, n in zip(i.tolist(), j.tolist(), strict=True)]
    root = values[order].sqrt()
    lost = (values.square().sum() - values[order].square().sum()).clamp(min=0)
    error = float((lost / values.square().sum().clamp(min=1e-30)).sqrt())
    return (root[:, None] * torch.stack(rows), torch.stack(columns, dim=1) * root), error


def _sides(recipe: KronA, size_in: int, size_out: int) -> tuple[int, int]:
    """Return a1 and a2: as set, or the divisors nearest the roots of the weight's sides."""
    sides = []
    for name, chosen, size in (("a1", recipe.a1, size_out), ("a2", recipe.a2, size_in)):
        if chosen and size % chosen:
            raise SettingError(f"krona.{name} is {chosen}, which does not divide {size}, a side of a targeted weight")
        divisors = [number for number in range(1, size + 1) if size % number == 0]
        sides.append(chosen or min(divisors, key=lambda number: abs(math.log(number * number / size))))
    # Of two divisors around the root, A takes the larger side one way and the smaller the other: a1 a2 = b1 b2.
    a1, a2 = sides
    if not recipe.a2 and a1 * a2 != math.isqrt(size_in * size_out):
        a2 = min((size_in // a2, a2), key=lambda number: abs(math.log((a1 * number) ** 2 / (size_in * size_out))))
    return a1, a2
