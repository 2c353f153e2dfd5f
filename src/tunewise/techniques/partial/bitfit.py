"""BitFit: only bias vectors are trained (Ben Zaken, Ravfogel, Goldberg 2021).

    y = W x + b,   b trained, W frozen

`source="auto"` takes what the model allows, and the label says which. Without rotary positions a key bias shifts all
scores of a softmax alike and has no effect, so `add` leaves keys out there.
Differs from the paper by model: Llama, Mistral and Qwen3 have no biases, and the published method has nothing to train
there. `source="add"` puts zero biases on the blocks' linears instead and is labelled bitfit-add, an adaptation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import TechniqueError
from tunewise.engine.anatomy import features

if TYPE_CHECKING:
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class BitFit(Technique):
    """Bias vectors trained."""

    name = "bitfit"
    family = "partial"
    summary = "bias vectors trained"
    citation = Citation(
        "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        "Ben Zaken, Ravfogel, Goldberg",
        2021,
        "https://arxiv.org/abs/2106.10199",
        "section 3",
    )
    equation = "y = W x + b, b trained"
    sides = frozenset({"biases"})
    needs = "biases in the model (source=existing), or none (source=add)"
    mergeable = True
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 5e-4
    width_exponent = 0.5

    source: str = setting(
        "auto",
        "Biases trained: existing ones as published, added ones, or existing where there are any.",
        choices=("auto", "existing", "add"),
    )
    target_modules: tuple[str, ...] = setting(
        (),
        "Roles of the linears that get an added bias (q, k, v, o, gate, up, down); default: all that matter.",
    )
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Unfreeze or add biases.

        Raises:
            TechniqueError: `existing` on a model without biases.
            SettingError: a role that the model's linears do not have.
        """
        return _Biases(base, self)


class _Biases(Attachment):
    def __init__(self, base: Base, recipe: BitFit) -> None:
        super().__init__(base, recipe)
        self.added: list[tuple[nn.Module, nn.Parameter]] = []
        existing = base.anatomy.biases()
        if recipe.source == "existing" and not existing:
            raise TechniqueError(
                f"bitfit trains bias vectors and {type(base.model).__name__} has none; add zero biases with "
                "bitfit.source=add, or use lora or last_layers"
            )
        if recipe.source == "add" or not existing:
            self._add_biases(base, recipe.target_modules)
            self.label = "bitfit-add (adaptation: zero biases added)"
            return
        for name, parameter in existing.items():
            self.train_existing(name, parameter)
        linears = list(base.anatomy.linears())
        biased = sum(module.bias is not None for _, _, module in linears)
        if biased < len(linears):
            self.label = f"bitfit ({biased} of {len(linears)} linears have a bias)"
        elif not base.anatomy.rotary:
            self.label = "bitfit (key biases have no effect without rotary positions)"

    def _add_biases(self, base: Base, roles: tuple[str, ...]) -> None:
        base.anatomy.require_roles("bitfit.target_modules", roles)
        selected = roles or tuple(role for role in base.anatomy.roles if role != "k" or base.anatomy.rotary)
        without_bias = [item for item in base.anatomy.linears(selected) if item[2].bias is None]
        if not without_bias:
            raise TechniqueError("bitfit.source=add finds a bias on every such linear already; use source=existing")
        for path, _, module in without_bias:
            bias = self.add(f"{path}.bias", torch.zeros(features(module)[1]))
            self.added.append((module, bias))
            self.hook(module.register_forward_hook(_adder(bias)))

    def fold(self) -> None:
        """Put the biases into the linears, and into the configuration where it has a field: a standard checkpoint."""
        model = self.base.model
        for module, bias in self.added:
            self.replace(module, "bias", nn.Parameter(bias.detach().to(model.dtype), requires_grad=False))
        for name, linears in self.base.anatomy.bias_settings():
            if any(module.bias is not None for module in linears):
                for module in linears:
                    if module.bias is None:
                        self.replace(module, "bias", nn.Parameter(module.weight.new_zeros(features(module)[1]), False))
                self.replace(model.config, name, True)


def _adder(bias: nn.Parameter):  # type: ignore[no-untyped-def]
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + bias.to(output.dtype)

    return add
