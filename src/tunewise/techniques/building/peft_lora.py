"""Writes adapters in the form that most programs read: PEFT's plain LoRA, with one rank and one alpha."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import PeftConfig, strict
from tunewise.engine.anatomy import is_transposed

if TYPE_CHECKING:
    from tunewise.engine.model import Base

PEFT_PREFIX = "base_model.model."


def head(base: Base, kind: str) -> PeftConfig:
    """Return the fields of every PEFT configuration: type, task, base, and that it is for inference."""
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
    }


def portable(
    updates: Mapping[str, Factors], base: Base, modules: Mapping[str, nn.Module]
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return a plain LoRA with one rank and one alpha (config, tensors), which PEFT, vLLM and llama.cpp can read.

    Smaller ranks are padded with zeros; where scales differ they are folded into B.
    """
    rank = max((len(update.a) for update in updates.values()), default=0) or 1
    scales = {update.scale for update in updates.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    tensors: dict[str, Tensor] = {}
    for path, (a, b, own_scale) in updates.items():
        a, b = a.detach(), b.detach() * (own_scale / scale) if own_scale != scale else b.detach()
        missing = rank - len(a)
        if missing:
            a = torch.cat([a, a.new_zeros(missing, a.shape[1])])
            b = torch.cat([b, b.new_zeros(len(b), missing)], dim=1)
        tensors |= peft_names(base, path, modules[path], a, b)
    paths = sorted({key.removeprefix(PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors})
    all_linears = {path for path, _, _ in base.anatomy.linears()} == set(paths)
    config = head(base, "LORA") | {
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in paths}) if all_linears else paths,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(modules[path]) for path in updates),
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    return config, tensors


def peft_names(base: Base, path: str, module: nn.Module, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Return a linear's A and B under PEFT's names; those of embeddings differ, and tied ones include the head."""
    if not isinstance(module, nn.Embedding):
        name = f"{PEFT_PREFIX}{path}.lora_"
        return {f"{name}A.weight": a.contiguous(), f"{name}B.weight": b.contiguous()}
    name = f"{PEFT_PREFIX}{path}.lora_embedding_"
    named = {f"{name}A": b.T.contiguous(), f"{name}B": a.T.contiguous()}
    if base.anatomy.tied:
        named |= peft_names(base, base.anatomy.head_path, base.anatomy.head, a.clone(), b.clone())
    return named


def load_portable(current: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a PEFT adapter into the current ones of the same names.

    Raises:
        ArtifactError: a missing, extra, mis-shaped or non-finite tensor.
    """
    strict(current, {key: tensor.float() for key, tensor in tensors.items()})
    with torch.no_grad():
        for key, tensor in current.items():
            tensor.copy_(tensors[key])


class Factors(NamedTuple):
    """scale * b @ a: the update that is added to a weight."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float

    @property
    def delta(self) -> Tensor:
        """The update of the weight, (out, in)."""
        return self.scale * (self.b.detach() @ self.a.detach())
