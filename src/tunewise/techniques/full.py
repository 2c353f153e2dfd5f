"""Full fine-tuning: every parameter of the model follows the gradient.

    theta <- theta - lr * AdamW(d loss / d theta)

Forms that need less memory are settings: `optimizer` (see `tunewise.engine.optimizers`), and LISA (Pan et al. 2024,
algorithm 1), which every `lisa_interval` steps draws `lisa_layers` blocks to train besides embeddings and head, and
drops the moments of the others. Bytes per parameter in fp32 and without activations: adamw 16, adamw8bit 10,
adafactor 8, lomo 4. Each optimizer has a default learning rate of its own, and Qwen models another than Llamas
(`tunewise.contract.learning_rates`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, ParamGroup
from tunewise.contract.learning_rates import LLAMA_EXPONENT, REFERENCE_WIDTH, full_rate
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import SettingError, TechniqueError
from tunewise.engine.optimizers import IN_BACKWARD, build

if TYPE_CHECKING:
    from tunewise.engine.model import Base

OPTIMIZERS = ("adamw", "adamw8bit", "paged_adamw8bit", "adamw_bf16", "adafactor", "galore", *IN_BACKWARD)


@dataclass(frozen=True, kw_only=True)
class Full(Technique):
    """All parameters trained."""

    name = "full"
    family = "full"
    summary = "every parameter trained"
    citation = Citation(
        "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        "Devlin et al.",
        2018,
        "https://arxiv.org/abs/1810.04805",
        "section 3.2",
    )
    equation = "theta <- theta - lr * AdamW(d loss / d theta)"
    sides = frozenset({"weights", "biases", "norms", "embeddings"})
    mergeable = True
    needs_whole_rows = ""
    reference_rate = full_rate("llama", REFERENCE_WIDTH)
    width_exponent = LLAMA_EXPONENT

    optimizer: str = setting("adamw", "What moves the parameters.", choices=OPTIMIZERS)
    galore_rank: int = setting(128, "GaLore: rank of the projected gradients.", low=1, high=1 << 16)
    galore_update_proj_gap: int = setting(200, "GaLore: steps between projections.", low=1, high=1 << 20)
    galore_scale: float = setting(0.25, "GaLore: multiplies the projected update.", low=0.0, high=1000.0)
    lisa_layers: int = setting(0, "LISA: blocks trained at a time; 0: all.", low=0, high=1000)
    lisa_interval: int = setting(20, "LISA: steps until other blocks are drawn.", low=1, high=1 << 20)
    learning_rate: float | None = learning_rate()

    @fact(default="")
    def needs_whole_weights(self) -> str:
        """Name an optimizer that computes with more than one entry at a time, or bits of entries."""
        return "" if self.optimizer == "adamw" else f"optimizer={self.optimizer} does; optimizer=adamw does not"

    def default_rate(self, base: Base) -> float:
        """Return the rate of the optimizer, by family and width."""
        return full_rate(base.model.config.model_type, base.anatomy.width, self.optimizer)

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Unfreeze everything; tied tensors are one parameter.

        Raises:
            SettingError: more LISA layers than blocks, or LISA with an optimizer inside the backward pass.
            TechniqueError: half-precision weights with an optimizer that moves them in the backward pass.
        """
        blocks = len(base.anatomy.blocks)
        if self.lisa_layers > blocks:
            raise SettingError(f"full.lisa_layers is {self.lisa_layers}, but the model has {blocks} blocks")
        if self.lisa_layers and self.optimizer in IN_BACKWARD:
            raise SettingError(f"full.lisa_layers and optimizer={self.optimizer} exclude each other")
        if self.optimizer in IN_BACKWARD and base.model.dtype in (torch.bfloat16, torch.float16):
            raise TechniqueError(
                f"{self.optimizer} keeps no float32 copy of the weights, and small updates of {base.model.dtype} are "
                "lost; load the base in float32 (--dtype float32), or choose adamw_bf16"
            )
        return _Everything(base, self)


class _Everything(Attachment):
    def __init__(self, base: Base, recipe: Full) -> None:
        super().__init__(base, recipe)
        self.recipe: Full = recipe
        for name, parameter in base.model.named_parameters():
            self.train_existing(name, parameter, rounds=recipe.optimizer == "adamw_bf16")
        anatomy = base.anatomy
        self.blocks = [list(block.parameters()) for block in anatomy.blocks]
        self.matrices = {id(self.trained(cast(nn.Parameter, module.weight))) for _, _, module in anatomy.linears()}
        self.mover: torch.optim.Optimizer | None = None
        self.active = torch.ones(len(self.blocks), dtype=torch.bool)
        forms = [] if recipe.optimizer == "adamw" else [recipe.optimizer]
        forms += ["lisa"] if recipe.lisa_layers else []
        self.label = f"full ({', '.join(forms)})" if forms else ""

    def param_groups(self) -> list[ParamGroup]:
        if self.recipe.optimizer != "galore":
            return super().param_groups()
        rate, parameters = self.recipe.learning_rate or 0.0, list(self.params().values())
        projected = [p for p in parameters if id(p) in self.matrices]
        galore = {
            "rank": self.recipe.galore_rank,
            "update_proj_gap": self.recipe.galore_update_proj_gap,
            "scale": self.recipe.galore_scale,
        }
        return [
            {"params": projected, "lr": rate, **galore},
            {"params": [p for p in parameters if id(p) not in self.matrices], "lr": rate},
        ]

    def optimizer(self, groups: list[ParamGroup], betas: tuple[float, float]) -> torch.optim.Optimizer:
        for handle in getattr(self.mover, "handles", ()):  # an earlier phase's must not move anything any more
            handle.remove()
        self.mover = build(self.recipe.optimizer, groups, betas)
        for handle in getattr(self.mover, "handles", ()):
            self.hook(handle)
        return self.mover

    @property
    def accumulates(self) -> bool:
        return self.recipe.optimizer not in IN_BACKWARD

    def before_step(self, step: int, total: int) -> None:
        if not self.recipe.lisa_layers:
            return
        if step % self.recipe.lisa_interval == 0:  # the loop has seeded the generator with this step
            self.active[:] = False
            self.active[torch.randperm(len(self.blocks))[: self.recipe.lisa_layers]] = True
        for on, block in zip(self.active.tolist(), self.blocks, strict=True):
            for parameter in block:
                parameter.requires_grad_(on)
                if not on and self.mover is not None:
                    self.mover.state.pop(self.trained(parameter), None)

    def training_state(self) -> dict[str, Tensor]:
        return {"active": self.active} if self.recipe.lisa_layers else {}
