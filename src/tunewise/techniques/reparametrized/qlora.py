"""QLoRA: LoRA over a base in four bits (Dettmers et al. 2023, equation 5).

    h = dequant(c_FP32, c_8bit, W_NF4) x + (lora_alpha / r) B A x

Every linear of every block is quantised to NF4 with double quantisation (4.13 bits per weight,
`tunewise.techniques.building.nf4`), whatever is targeted, as bitsandbytes and transformers do when they load a model in
four bits; embeddings and head are not. Each pass dequantises the weight again, the backward pass too, and no gradient
of it is formed. A base whose weights are still on the CPU (`Base.place`) is packed while it is moved, one weight at a
time, so that the device never holds all of them in full precision. The full-precision weights wait in a temporary file
until the base is given back. Merging adds the updates to the dequantised weights in the base's type; quantised again
they would be mostly lost, which the report states. The adapter loads as a LoRA anywhere.

`optimizer` takes the paper's paged one from bitsandbytes where that is installed; off a GPU it is an 8-bit one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, Findings, ParamGroup
from tunewise.contract.settings import setting
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import TechniqueError
from tunewise.engine.anatomy import features, is_transposed, oriented
from tunewise.engine.device import is_fake, moved, on_gpu
from tunewise.engine.memory import spill_to_disk
from tunewise.engine.optimizers import build
from tunewise.techniques.building.lowrank import frozen_linear
from tunewise.techniques.building.nf4 import Foreign, Packed, dequantise, quantise, quantise_by_bitsandbytes
from tunewise.techniques.reparametrized.lora import LoRA, Updates

if TYPE_CHECKING:
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """Low-rank updates of linears kept in four bits."""

    name = "qlora"
    summary = "low-rank updates of linears kept in four bits"
    citation = Citation(
        "QLoRA: Efficient Finetuning of Quantized LLMs",
        "Dettmers, Pagnoni, Holtzman, Zettlemoyer",
        2023,
        "https://arxiv.org/abs/2305.14314",
        "equation 5",
    )
    equation = "h = dequant(W_NF4) x + (lora_alpha / r) B A dropout(x)"
    identity_at_start = False
    packs_weights = True
    reference_rate = 2e-4
    width_exponent = 0.5
    differs = ""
    needs_whole_weights = "it packs them into four bits, so that one device often has room for all of them"
    needs_whole_rows = ""

    r: int = setting(64, "Rank of the update; memory and capacity grow with it.", low=1, high=4096, search=(16,))
    lora_alpha: float = setting(16.0, "The update is multiplied by lora_alpha / r.", low=0.0, high=1e6)
    lora_dropout: float = setting(0.1, "Dropout on the update's input, in training.", low=0.0, high=0.95, search=(0.0,))
    bnb_4bit_use_double_quant: bool = setting(True, "Keep the blocks' scales in eight bits.")
    backend: str = setting(
        "auto",
        "What packs the weights; auto: bitsandbytes on a GPU where it is installed, else torch.",
        choices=("auto", "torch", "bitsandbytes"),
    )
    optimizer: str = setting(
        "adamw", "What moves the adapter.", choices=("adamw", "adamw8bit", "paged_adamw8bit", "paged_adamw")
    )

    def default_rate(self, base: Base) -> float:
        """Return the paper's rate, as its update is scaled by an eighth of LoRA's."""
        return Technique.default_rate(self, base)

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Quantise the blocks' linears and put updates on the targeted ones.

        Raises:
            SettingError: a target that names nothing in this model.
            TechniqueError: backend=bitsandbytes where that is not installed.
        """
        return _Quantised(base, self, generator)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        """Return None: an adapter does not say in how many bits its base was."""
        return None


class _Quantised(Updates):
    def __init__(self, base: Base, recipe: QLoRA, generator: torch.Generator) -> None:
        self.moves = base.waiting is not None  # each weight to the device, as it is packed
        weights = [cast(nn.Parameter, module.weight) for _, _, module in base.anatomy.linears()]
        self.take_back = base.place(later=weights)
        self.packed: dict[str, Packed | Foreign] = {}
        self.linears: dict[str, nn.Module] = {}  # all that are quantised; `layers` are those with an update
        self.quantised = recipe
        super().__init__(base, recipe, generator)
        for path, _, module in base.anatomy.linears():
            if path not in self.packed:
                self._pack(path, module)
                self._replace_forward(path, module)

    def place(self, path: str, module: nn.Module) -> None:
        """Quantise the weight, move it to disk, and put an update on the linear."""
        self._pack(path, module)
        super().place(path, module)

    def _pack(self, path: str, module: nn.Module) -> None:
        """Quantise the weight of a linear and move the original to disk."""
        self.linears[path] = module
        weight = oriented(module)
        self.packed[path] = self._quantise(moved(weight, self.base.device) if self.moves else weight)
        self._move_to_disk(module)

    def _replace_forward(self, path: str, module: nn.Module) -> None:
        """Compute a linear without an update from its four bits."""
        size_out = features(module)[1]
        matrix = lambda: self.matrix(path)  # noqa: E731
        module.forward = lambda x: frozen_linear(x, matrix, cast("Tensor | None", module.bias), size_out)
        self._undo.append(lambda: vars(module).pop("forward", None))

    def _quantise(self, weight: Tensor) -> Packed | Foreign:
        double, backend = self.quantised.bnb_4bit_use_double_quant, self.quantised.backend
        if backend == "torch" or (backend == "auto" and not (on_gpu(weight) and find_spec("bitsandbytes"))):
            return quantise(weight, double)
        if find_spec("bitsandbytes") is None:
            raise TechniqueError("qlora.backend=bitsandbytes needs it installed (tunewise[bitsandbytes]); or use torch")
        return quantise_by_bitsandbytes(weight, double)

    def matrix(self, path: str) -> Tensor:
        """Return the weight that the four bits encode, (out, in)."""
        return dequantise(self.packed[path])

    def _move_to_disk(self, module: nn.Module) -> None:
        """Move a module's weight to a temporary file, from which `detach` restores it, and leave one without values."""
        parameter = cast(nn.Parameter, module.weight)
        shape, dtype, device = parameter.shape, parameter.dtype, parameter.device
        without_values = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
        if is_fake(parameter):  # nothing keeps it, so that its memory is free; another one like it takes its place
            module.weight = without_values
            self._undo.append(
                lambda: setattr(module, "weight", nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False))
            )
            return
        spilled = spill_to_disk(parameter.cpu())

        def restore() -> None:
            parameter.data = spilled.clone().to(device)
            module.weight = parameter

        parameter.data = torch.empty(0, dtype=dtype, device=device)
        module.weight = without_values
        self._undo.append(restore)

    def detach(self) -> None:
        """Give the base back, bit for bit, and where it was."""
        super().detach()
        self.take_back()
        self.take_back = lambda: None

    def replaced_weights(self) -> dict[str, Tensor]:
        """Return the weights that the four bits encode, in the modules' own orientation."""
        transposed = {path: is_transposed(module) for path, module in self.linears.items()}
        return {
            f"{path}.weight": self.matrix(path).T if transposed[path] else self.matrix(path) for path in self.packed
        }

    def changed_entries(self) -> dict[str, Tensor | None]:
        return {f"{path}.weight": None for path in self.packed}

    def optimizer(self, groups: list[ParamGroup], betas: tuple[float, float]) -> torch.optim.Optimizer:
        return build(self.quantised.optimizer, groups, betas)

    def fold(self) -> None:
        """Add the updates to the dequantised weights, and dequantise the linears that have none."""
        super().fold()
        for path, module in self.linears.items():
            if path not in self.layers:
                vars(module).pop("forward", None)
                self._write_weight(path, self.matrix(path))

    def add_delta(self, path: str, delta: Tensor) -> None:
        """Replace the weight by the dequantised one with its update; embeddings are not quantised."""
        if path in self.packed:
            self._write_weight(path, self.matrix(path).float() + delta)
        else:
            super().add_delta(path, delta)

    def _write_weight(self, path: str, weight: Tensor) -> None:
        """Give a quantised linear a weight (out, in) in the base's type."""
        module: Any = self.linears[path]
        weight = (weight.T if is_transposed(module) else weight).to(module.weight.dtype).contiguous()
        module.weight = nn.Parameter(weight, requires_grad=False)

    def findings(self, validation_loss: Callable[[], float]) -> Findings:
        """Return the share of the updates that quantising the merged weights would keep (its projection on them)."""
        kept_product, squared_norm = 0.0, 0.0
        for path in self.packed.keys() & self.layers.keys():
            delta, weight = self.delta(path), self.matrix(path)
            requantised = dequantise(self._quantise(weight.float() + delta))
            kept_product += float(((requantised - weight.float()) * delta).sum())
            squared_norm += float(delta.square().sum())
        share = kept_product / squared_norm if squared_norm else 1.0
        return {"share of the update kept by 4-bit quantisation after merging": share}
