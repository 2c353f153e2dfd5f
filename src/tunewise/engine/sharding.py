"""Shares the weights of a model out over devices (FSDP2): each holds a part, and gathers a block when it runs.

transformers' loader reads on every device only its part of the files. A block is gathered when it runs, and everything
else, embeddings and head above all, for as long as a pass lasts. FSDP2 does so when the whole model's `forward` is
called. We call the parts of a model, read the weight of its head, and make the gradient of the head in the forward
pass; so everything that reads weights runs inside of `ShardedModel.run`, which is a forward pass of the whole model to
FSDP2.

Losses are sums divided by the labelled tokens of all devices, and so the gradients are summed here, not averaged.

All devices must run equally many forward and backward passes, as each of them gathers weights from all others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from tunewise.core.errors import ModelError
from tunewise.engine.anatomy import Anatomy
from tunewise.engine.optimizers import Groups
from tunewise.engine.ranks import Ranks
from tunewise.engine.shards import is_shard, local

if TYPE_CHECKING:
    from transformers.distributed.configuration_utils import DistributedConfig

T = TypeVar("T")
INSTEAD = "use --devices without --shard, where every device holds all weights"
_TORCH, _TRANSFORMERS = "2.13", "5.23"  # the first versions that this is known to work with


@contextmanager
def distribution(config: Any, ranks: Ranks) -> Iterator[DistributedConfig | None]:
    """Yield how `from_pretrained` is to load this device's part of a model, None for all of it; call it inside.

    Raises:
        ModelError: torch or transformers is too old.
    """
    if not ranks.sharded:
        yield None
        return
    import transformers
    from packaging.version import Version

    if Version(torch.__version__) < Version(_TORCH) or Version(transformers.__version__) < Version(_TRANSFORMERS):
        raise ModelError(f"--shard needs torch {_TORCH} and transformers {_TRANSFORMERS}; install them, or {INSTEAD}")
    from transformers.distributed.configuration_utils import DistributedConfig

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
    plan = {f"{Anatomy(model).layout.blocks}.*": "free_full_weight"}
    # A plan that is given is added to the model's own, in which the head would be gathered by each call of it: once for
    # each part of the logits, of which devices have different numbers.
    with _without(type(model), "_fsdp_plan"), _without(type(config), "base_model_fsdp_plan"):
        yield DistributedConfig(fsdp_size=ranks.size, fsdp_plan=plan)


@contextmanager
def _without(kind: type, attribute: str) -> Iterator[None]:
    """Let a class attribute be None for as long as the block runs."""
    own, before = attribute in vars(kind), getattr(kind, attribute, None)
    setattr(kind, attribute, None)
    try:
        yield
    finally:
        if own:
            setattr(kind, attribute, before)
        else:
            delattr(kind, attribute)


class ShardedModel:
    """A loaded model whose weights are shared out; `architecture` is the name of its class before FSDP2 changed it."""

    def __init__(self, model: Any) -> None:
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        self._model, self._inside = model, False
        self.architecture: str = type(model).__bases__[-1].__name__
        self._parts: list[Any] = [part for part in model.modules() if isinstance(part, FSDPModule)]
        for part in self._parts:
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo refuses the other kind
        model.run_gathered = lambda work: work()
        register_fsdp_forward_method(model, "run_gathered")
        vars(model.config).pop("distributed_config", None)  # a copy of the configuration is for models of one device
        with torch.no_grad():
            self.run(lambda: torch.zeros(()))  # from now on the shards stay where they are

    def run(self, work: Callable[[], T]) -> T:
        """Run work that reads weights, and return the tensors that it makes; all devices must do so together."""
        if self._inside:
            return work()
        self._inside = True
        try:
            result: T = self._model.run_gathered(work)
        finally:
            self._inside = False
        if not torch.is_grad_enabled():  # else the backward pass does
            self.release()
        return result

    def release(self) -> None:
        """Free gathered weights, which would not see what is written into the shards."""
        for part in self._parts:
            part.reshard()


def by_kind(groups: Groups) -> Groups:
    """Divide each of an optimiser's groups into ordinary tensors and shards; fused AdamW takes one kind at a time."""
    divided = Groups()
    for group in groups:
        kinds = [[p for p in group["params"] if is_shard(p) is kind] for kind in (False, True)]
        divided += [{**group, "params": kind} for kind in kinds if kind] if all(kinds) else [group]
    return divided


def clip_gradients(parameters: Iterable[Tensor], limit: float, ranks: Ranks) -> float:
    """Scale gradients to a norm of at most `limit`, and return their norm before that; shards count with all parts."""
    with_gradient = [p for p in parameters if p.grad is not None]
    if not any(map(is_shard, with_gradient)):
        return float(torch.nn.utils.clip_grad_norm_(with_gradient, limit)) if with_gradient else 0.0
    gradients = [(is_shard(p), local(p.grad)) for p in with_gradient if p.grad is not None]
    ordinary, of_shards = (_squared([each for kind, each in gradients if kind is wanted]) for wanted in (False, True))
    norm = math.sqrt(ordinary + ranks.total(of_shards)[0])
    factor = min(1.0, limit / (norm + 1e-6))
    if factor < 1.0:
        for _, gradient in gradients:
            gradient.mul_(factor)
    return norm


def _squared(gradients: list[Tensor]) -> float:
    """Return the squared norm of all together."""
    norms = [torch.linalg.vector_norm(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in gradients]
    return float(torch.stack(norms).double().square().sum()) if norms else 0.0
