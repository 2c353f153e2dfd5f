"""LoRA: a low-rank product is added to frozen weights (Hu et al. 2021, equation 3).

    h = W x + s B A dropout(x),   s = lora_alpha / r,   A in R^{r x in}, B in R^{out x r}, B = 0 at the start

A starts Kaiming-uniform as in the authors' code, so the adapted model equals the base until the first step.
Differs from the paper: every linear of every block is adapted, not only the query and value projections.
Its variants are settings:

    use_rslora          s = lora_alpha / sqrt(r)                             (Kalajdzievski 2023)
    use_dora            W' = m * (W + s B A) / ||W + s B A||, by output row, the norm without gradient (Liu et al. 2024)
    loraplus_lr_ratio   the learning rate of B over that of A                (LoRA+, Hayou et al. 2024)
    init_lora_weights   pissa: A, B from the largest singular vectors of W (Meng et al. 2024); olora: from its QR
                        factors (Büyükakyüz 2024). W x + s (B A - B_0 A_0) x equals their form, in which W loses
                        s B_0 A_0, and leaves the base as it is; stored with the start, so it reloads exactly.

The embeddings can be targeted too (embed_tokens, lm_head, by their module's name); of tied ones both sides are. The
default learning rate is ten times full fine-tuning's; Qwen models have another than Llamas
(`tunewise.contract.learning_rates`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment, ParamGroup, PeftConfig
from tunewise.contract.learning_rates import LLAMA_EXPONENT, REFERENCE_WIDTH, lora_rate
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import SettingError
from tunewise.core.text import show
from tunewise.engine.anatomy import features, oriented
from tunewise.techniques.building.lowrank import ALL_LINEAR, STARTED, LowRank, ends, named, start, targets
from tunewise.techniques.building.peft_lora import (
    PEFT_PREFIX,
    Factors,
    explicit_config,
    needs_pefts_layers,
    peft_names,
    portable,
)
from tunewise.techniques.building.peft_tensors import take_over

if TYPE_CHECKING:
    from tunewise.engine.model import Base


_MOST_RANK, _MOST_ALPHA = 4096, 1e6


@dataclass(frozen=True, kw_only=True)
class LoRA(Technique):
    """Low-rank updates of frozen linears."""

    name = "lora"
    family = "reparametrized"
    summary = "low-rank updates of frozen linears"
    citation = Citation(
        "LoRA: Low-Rank Adaptation of Large Language Models",
        "Hu et al.",
        2021,
        "https://arxiv.org/abs/2106.09685",
        "equation 3",
    )
    equation = "h = W x + (lora_alpha / r) B A dropout(x)"
    sides = frozenset({"weights"})
    mergeable = True
    needs_whole_rows = ""
    reference_rate = lora_rate("llama", REFERENCE_WIDTH)
    width_exponent = LLAMA_EXPONENT

    r: int = setting(
        16, "Rank of the update; memory and capacity grow with it.", low=1, high=_MOST_RANK, search=(4, 64)
    )
    lora_alpha: float = setting(32.0, "The update is multiplied by lora_alpha / r.", low=0.0, high=_MOST_ALPHA)
    lora_dropout: float = setting(0.0, "Dropout on the update's input, in training.", low=0.0, high=0.95)
    target_modules: tuple[str, ...] = setting(
        (ALL_LINEAR,), "What is adapted: all-linear, roles (q, k, v, o, gate, up, down), or ends of module names."
    )
    rank_pattern: tuple[str, ...] = setting((), "Other ranks, as target=rank.")
    alpha_pattern: tuple[str, ...] = setting((), "Other alphas, as target=alpha.")
    init_lora_weights: str = setting(
        "kaiming", "How A and B start.", choices=("kaiming", "gaussian", "orthogonal", "pissa", "olora")
    )
    use_rslora: bool = setting(False, "Multiply the update by lora_alpha / sqrt(r) instead.")
    use_dora: bool = setting(False, "Train the norm of each output row apart from its direction.")
    loraplus_lr_ratio: float = setting(1.0, "Learning rate of B over that of A.", low=0.001, high=1000.0)
    learning_rate: float | None = learning_rate()

    def default_rate(self, base: Base) -> float:
        """Return the rate by family and width."""
        return lora_rate(base.model.config.model_type, base.anatomy.width)

    @fact(default="all linears")
    def differs(self) -> str:
        """Name the targets, unless they are chosen."""
        return "all linears" if ALL_LINEAR in self.target_modules else ""

    @fact(default="")
    def needs_whole_weights(self) -> str:
        """Name the forms that compute with the weights themselves before or while they train."""
        if self.use_dora:
            return "use_dora takes the norms of rows of W at every step"
        if self.init_lora_weights in STARTED:
            return f"init_lora_weights={self.init_lora_weights} factorises W"
        return ""

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put updates on what is targeted.

        Raises:
            SettingError: a target that names nothing in this model, or a pattern that is no target=number.
        """
        return Updates(base, self, generator)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LoRA | None:
        """Return the recipe of a PEFT LoRA, or None for one that only PEFT's own layers compute.

        Raises:
            ArtifactError: the adapter has a field that nothing here computes; it is named.
        """
        if config.get("peft_type") != "LORA":
            return None
        config = explicit_config(config, tensors)
        if needs_pefts_layers(config, tensors):
            return None
        settings: dict[str, Any] = {
            name: tuple(f"{target}={value!r}" for target, value in (config.get(name) or {}).items())
            for name in ("rank_pattern", "alpha_pattern")
        }
        settings |= {name: bool(config.get(name)) for name in ("use_rslora", "use_dora")}
        paths = tuple(config["target_modules"])
        return cls(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=paths, **settings)


class Updates(LowRank):
    """Trains A and B for each target, and the row norms of DoRA."""

    def __init__(self, base: Base, recipe: LoRA, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: LoRA = recipe
        self.dropout_rate = recipe.lora_dropout
        self.scales: dict[str, float] = {}
        self.start: dict[str, Tensor] = {}
        embeddings = ends(base, recipe.target_modules)
        embedding_names = {end.rpartition(".")[2] for end in (base.anatomy.embedding_path, base.anatomy.head_path)}
        linear_names = tuple(name for name in recipe.target_modules if name.rpartition(".")[2] not in embedding_names)
        only_ends = embeddings and not linear_names
        linears = {} if only_ends else targets(base, linear_names, f"{recipe.name}.target_modules")
        for path, (role, module) in linears.items():
            size_in, size_out = features(module)
            self._add(path, role, size_in, size_out, generator)
            self.place(path, module)
        for path, modules in embeddings.items():
            self._add(path, "", base.anatomy.width, base.anatomy.vocabulary, generator)
            self.place_end(path, modules)

    def _add(self, path: str, role: str, size_in: int, size_out: int, generator: torch.Generator) -> None:
        recipe = self.recipe
        rank = int(_pattern_value(recipe.rank_pattern, "rank_pattern", path, role, recipe.r, _MOST_RANK))
        alpha = _pattern_value(recipe.alpha_pattern, "alpha_pattern", path, role, recipe.lora_alpha, _MOST_ALPHA)
        self.scales[path] = alpha / (math.sqrt(rank) if recipe.use_rslora else rank)
        a = self.add(f"{path}.lora_A", torch.zeros(rank, size_in))
        b = self.add(f"{path}.lora_B", torch.zeros(size_out, rank))
        weight = oriented(self.base.model.get_submodule(path)).detach()
        start(recipe.init_lora_weights, weight, Factors(a, b, self.scales[path]), generator)
        if recipe.init_lora_weights in STARTED:
            self.start |= {f"{path}.start_A": a.detach().clone(), f"{path}.start_B": b.detach().clone()}
        if recipe.use_dora:
            self.add(f"{path}.lora_magnitude_vector", weight.float().norm(dim=1))

    def factors(self, path: str) -> Factors:
        """B A, or B A - B_0 A_0 where B_0 is not zero, as one product of twice the rank."""
        a, b = self._params[f"{path}.lora_A"], self._params[f"{path}.lora_B"]
        if not self.start:
            return Factors(a, b, self.scales[path])
        first_a, first_b = self.start[f"{path}.start_A"], self.start[f"{path}.start_B"]
        # B_0 (A - A_0) + (B - B_0) A, which is exactly nothing at the start: (2r, in) and (out, 2r)
        joined = torch.cat([a - first_a, a]), torch.cat([first_b, b - first_b], dim=1)
        return Factors(*joined, self.scales[path])

    def forward(self, path: str, x: Tensor) -> Tensor:
        """Compute the updated linear, with DoRA's rows scaled to their norms."""
        bias: Any = self.layers[path].bias
        if not self.recipe.use_dora:
            return self.updated(path, x, bias)
        output = self.updated(path, x, None) * self._stretch(path).to(x.dtype)
        return output if bias is None else output + bias

    def _stretch(self, path: str) -> Tensor:
        """M / ||W + s B A||, by output row; the norm is a constant to the gradient (DoRA, section 4.3)."""
        norm = (self.matrix(path).detach().float() + self.factors(path).delta).norm(dim=1)  # (out,) of (out, in)
        return self._params[f"{path}.lora_magnitude_vector"] / norm

    def delta(self, path: str) -> Tensor:
        """Return what merging adds to the weight, (out, in)."""
        delta = self.factors(path).delta
        if not self.recipe.use_dora:
            return delta
        weight = self.matrix(path).detach().to(delta.dtype)
        return self._stretch(path).detach()[:, None] * (weight + delta) - weight

    def param_groups(self) -> list[ParamGroup]:
        """Return one group, or LoRA+'s two with their learning rates."""
        ratio, rate = self.recipe.loraplus_lr_ratio, self.recipe.learning_rate or 0.0
        fast = [p for name, p in self._params.items() if name.endswith("lora_B")]
        slow = [p for name, p in self._params.items() if not name.endswith("lora_B")]
        if ratio == 1:
            return super().param_groups()
        return [{"params": slow, "lr": rate}, {"params": fast, "lr": rate * ratio}]

    def state(self) -> dict[str, Tensor]:
        """Return the factors, and their initial values where the update is the difference from them."""
        return super().state() | self.start

    def peft(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Return the adapter in PEFT's format: a plain LoRA, with DoRA's norms where it has them."""
        config, tensors = portable({path: self.factors(path) for path in self.layers}, self.base, self.layers)
        config |= {"lora_dropout": self.recipe.lora_dropout, "use_dora": self.recipe.use_dora}
        for name, parameter in self._params.items():
            if name.endswith("vector"):
                tensors[PEFT_PREFIX + name] = parameter.detach()
        return config, tensors

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state from PEFT's tensors."""
        current: dict[str, Tensor] = {}
        for path, module in self.layers.items():
            a, b = (self._params[f"{path}.lora_{letter}"].detach() for letter in "AB")
            current |= peft_names(self.base, path, module, a, b)
        current |= {PEFT_PREFIX + name: p.detach() for name, p in self._params.items() if name.endswith("vector")}
        take_over(current, tensors)


def _pattern_value(patterns: tuple[str, ...], setting: str, path: str, role: str, default: float, most: float) -> float:
    """Return the number that the last matching target=number gives, or the default."""
    for pattern in patterns:
        name, _, text = pattern.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not name or not 0 < number <= most or (setting == "rank_pattern" and number != int(number)):
            kind = "rank" if setting == "rank_pattern" else "alpha"
            raise SettingError(f'lora.{setting} holds "{show(pattern)}" but must hold target={kind}, up to {most:,.0f}')
        if named(name, path, role):
            default = number
    return default
