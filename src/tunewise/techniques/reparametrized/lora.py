"""LoRA: a low-rank product is added to frozen weights (Hu et al. 2021, equation 3).

    h = W x + (lora_alpha / r) B A dropout(x),   A in R^{r x in}, B in R^{out x r}, B = 0 at the start

A starts Kaiming-uniform as in the authors' code, so the adapted model equals the base until the first step.
Differs from the paper: every linear of every block is adapted, not only the query and value projections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from tunewise.anatomy import add_to_weight, features, is_transposed
from tunewise.errors import ArtifactError, SettingError
from tunewise.technique import Attachment, Citation, Technique, learning_rate, setting, strict

if TYPE_CHECKING:
    from tunewise.model import Base

_PREFIX = "base_model.model."
_ALL = "all-linear"
# Settings of a PEFT adapter that change its maths; anything but these values is another method than this one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
}


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
    reference_rate = 2e-4
    width_exponent = 0.5

    r: int = setting(16, "Rank of the update; memory and capacity grow with it.", low=1, high=4096)
    lora_alpha: float = setting(32.0, "The update is multiplied by lora_alpha / r.", low=0.0, high=1e6)
    lora_dropout: float = setting(0.0, "Dropout on the update's input, in training.", low=0.0, high=0.95)
    target_modules: tuple[str, ...] = setting(
        (_ALL,), "Linears adapted: all-linear, roles (q, k, v, o, gate, up, down), or ends of module names."
    )
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Hook the targeted linears.

        Raises:
            SettingError: a target that names no linear of this model.
        """
        return _LowRank(base, self, generator)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LoRA | None:
        """The recipe of a plain PEFT LoRA; one with other maths than this file's is refused.

        Raises:
            ArtifactError: the adapter uses a variant (rsLoRA, DoRA, patterns, saved modules).
        """
        if config.get("peft_type") != "LORA":
            return None
        for name, plain in _PLAIN.items():
            if config.get(name) not in plain:
                raise ArtifactError(f"the adapter is a LoRA with {name}={config[name]!r}, which is not supported here")
        paths = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors})
        return cls(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=tuple(paths))


class _LowRank(Attachment):
    def __init__(self, base: Base, recipe: LoRA, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: LoRA = recipe
        self.scale = recipe.lora_alpha / recipe.r
        self.handles = []
        self.layers: dict[str, tuple[nn.Module, nn.Parameter, nn.Parameter]] = {}
        for path, module in _targets(base, recipe.target_modules):
            size_in, size_out = features(module)
            bound = 1 / math.sqrt(size_in)  # Kaiming-uniform with a = sqrt(5)
            uniform = torch.rand(recipe.r, size_in, generator=generator)
            a = self.add(f"{path}.lora_A", uniform * 2 * bound - bound)
            b = self.add(f"{path}.lora_B", torch.zeros(size_out, recipe.r))
            self.layers[path] = module, a, b
            handle = module.register_forward_hook(self._update(a, b))
            self.handles.append(handle)
            self.hook(handle)

    def _update(self, a: nn.Parameter, b: nn.Parameter):  # type: ignore[no-untyped-def]
        rate = self.recipe.lora_dropout

        def update(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0]
            if rate and torch.is_grad_enabled():  # the base is in evaluation mode while it is trained
                x = dropout(x, rate)
            low = linear(x.to(a.dtype), a)
            if output.dtype != b.dtype:  # a base in half precision, or autocast
                return output + linear(low, b * self.scale).to(output.dtype)
            # In place: a linear does not need its own output for its gradient, and this saves a copy of it.
            output.view(-1, output.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.T, alpha=self.scale)
            return output

        return update

    def merge(self) -> nn.Module:
        for handle in self.handles:
            handle.remove()
        for module, a, b in self.layers.values():
            self.keep(cast(nn.Parameter, module.weight))
            add_to_weight(module, self.scale * (b.detach() @ a.detach()))
        return self.base.model

    def peft(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base.name,
            "revision": self.base.revision,
            "r": self.recipe.r,
            "lora_alpha": self.recipe.lora_alpha,
            "lora_dropout": self.recipe.lora_dropout,
            "target_modules": sorted({path.rsplit(".", 1)[-1] for path in self.layers})
            if self.recipe.target_modules == (_ALL,)
            else sorted(self.layers),
            "bias": "none",
            "fan_in_fan_out": any(is_transposed(module) for module, _, _ in self.layers.values()),
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "inference_mode": True,
        }
        tensors = {}
        for path, (_, a, b) in self.layers.items():
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = a.detach()
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = b.detach()
        return config, tensors

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.peft()[1]
        strict(own, {key: tensor.float() for key, tensor in tensors.items()})
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(tensors[key])


def _targets(base: Base, wanted: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """(path, linear) of every target; each name must find something, so that a typo is never a silent no-op."""
    found: dict[str, nn.Module] = {}
    linears = list(base.anatomy.linears())
    for name in wanted:
        hits = [
            (path, module) for path, role, module in linears if name in (_ALL, role, path) or path.endswith("." + name)
        ]
        if not hits:
            ends = sorted({path.rsplit(".", 1)[-1] for path, _, _ in linears})
            raise SettingError(f'lora.target_modules names "{name}", but the linears here are {", ".join(ends)}')
        found |= dict(hits)
    return list(found.items())
