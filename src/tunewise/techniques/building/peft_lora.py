"""Reads any LoRA of PEFT's, and writes the form that most programs read: a plain one, with one rank and one alpha.

A configuration is a file from elsewhere. `explicit_config` refuses what it holds and nothing here computes. Targets and
ranks are those of the tensors, whatever expressions they were chosen by; no regular expression is run or reaches PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import PeftConfig
from tunewise.core.errors import ArtifactError
from tunewise.core.text import show
from tunewise.engine.anatomy import is_transposed
from tunewise.techniques.building.peft_config import check_names, value_of

if TYPE_CHECKING:
    from tunewise.engine.model import Base

PEFT_PREFIX = "base_model.model."

# Fields of an adapter's configuration that are read here, or that say nothing about what it computes.
_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"}
_READ |= {
    "lora_dropout",
    "fan_in_fan_out",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
}
_READ |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size"}
_READ |= {"task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"}
_READ |= {"megatron_config", "megatron_core", "runtime_config"}
# Fields that PEFT's own layers compute, with the values that leave a plain LoRA.
_BY_PEFT: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
}
# Starts after which the base is as it was, and starts that PEFT repeats when it loads the adapter, to the same values.
# The others (pissa_niter_N, corda, lora_ga) take from the base what only the training had: random numbers or data.
_BASE_KEPT = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_BASE_CHANGED = ("pissa", "olora", "loftq")


def head(base: Base, kind: str) -> PeftConfig:
    """Return the fields of every PEFT configuration: type, task, base, and that it is for inference."""
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
    }


def explicit_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PeftConfig:
    """Return a LoRA's configuration with the paths of its tensors in place of names, layers and regular expressions.

    Raises:
        ArtifactError: a field that changes what the adapter computes, and that nothing here computes; it is named.
        SettingError: a regular expression that says which alphas differ.
    """
    for name, value in config.items():
        if name not in _READ and name not in _BY_PEFT and value not in (None, False, "", [], {}):
            raise ArtifactError(f"the adapter is a LoRA with {name}={value!r}, which is not supported here")
    start = _start(config)
    if start not in _BASE_KEPT + _BASE_CHANGED:
        raise ArtifactError(
            f"the adapter has init_lora_weights={start!r}, so its base was changed before training in a way that "
            f"cannot be repeated; {CONVERSION}"
        )
    ranks = _ranks(tensors)
    alphas = config.get("alpha_pattern") or {}
    check_names("the adapter", {"alpha_pattern": list(alphas)})
    found = {
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != config.get("r")},
        "alpha_pattern": {path: alpha for path in ranks if (alpha := value_of(path, alphas)) is not None},
    }
    unlisted = dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    return {**config, **unlisted, **found, "target_modules": sorted(ranks)}


CONVERSION = (
    "make it a plain LoRA with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), and load that"
)


def needs_pefts_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a LoRA does more than add a product to weights that it leaves as they are."""
    more = any(config.get(name) not in plain for name, plain in _BY_PEFT.items())
    return more or changes_base(config) or any(".lora_" not in name for name in tensors)


def changes_base(config: Mapping[str, Any]) -> bool:
    """Return whether PEFT takes something out of the base's weights when it loads this LoRA."""
    return _start(config) in _BASE_CHANGED


def _start(config: Mapping[str, Any]) -> Any:
    """Return `init_lora_weights`, in lower case where PEFT does not mind the case."""
    value = config.get("init_lora_weights")
    lower = value.lower() if isinstance(value, str) else value
    return lower if lower in ("olora", "mica", "gaussian") else value


def adapted_paths(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the paths of the modules that a LoRA adds to."""
    return {name.removeprefix(PEFT_PREFIX).rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}


def _ranks(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of each module that a LoRA adds to: the length of its A."""
    ranks = dict.fromkeys(adapted_paths(tensors), 0)
    for name, tensor in tensors.items():
        path, _, kind = name.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if kind in ("A.weight", "embedding_A") and tensor.dim():
            ranks[path] = len(tensor)
    if unranked := sorted(path for path, rank in ranks.items() if not rank):
        raise ArtifactError(f'the adapter lacks lora_A of "{show(unranked[0], 200)}"')
    return ranks


def resized_embeddings(base: Base, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return both ends of a base whose embeddings were resized, under PEFT's names; nothing of any other base.

    PEFT saves them with a LoRA whose base has other rows than the one on disk. `tensors` are the adapter's own.
    """
    if base.embedding_rows is None or not adapted_paths(tensors):
        return {}
    added = {}
    for path, module in (
        (base.anatomy.embedding_path, base.anatomy.embedding),
        (base.anatomy.head_path, base.anatomy.head),
    ):
        inside = any(name.startswith(f"{PEFT_PREFIX}{path}.lora_") for name in tensors)
        name = f"{PEFT_PREFIX}{path}{'.base_layer' if inside else ''}.weight"
        if name not in tensors:
            added[name] = module.weight.detach().clone()
    return added


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


class Factors(NamedTuple):
    """scale * b @ a: the update that is added to a weight."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float

    @property
    def delta(self) -> Tensor:
        """The update of the weight, (out, in)."""
        return self.scale * (self.b.detach() @ self.a.detach())
