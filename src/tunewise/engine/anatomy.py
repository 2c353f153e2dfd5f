"""Finds the parts of a Hugging Face causal language model; with `layouts.py` alone it knows how these are built.

Techniques ask an `Anatomy` for blocks, linears by role, norms, embeddings and head. A model is recognised by its
structure: the first layout all of whose paths exist in it. `gate`, `up` and `down` are the feed-forward's
linears, `q`, `k`, `v`, `o` the attention's; `qkv` and `gate_up` are fused ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tunewise.core.errors import ModelError, SettingError, TechniqueError
from tunewise.engine.configuration import context_of
from tunewise.engine.layouts import LAYOUTS, POST_NORMS, ArchitectureLayout
from tunewise.engine.shards import scattered

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_ATTENTION = ("q", "k", "v", "o", "qkv")  # roles of a block's linears; the others are its feed-forward's


class Anatomy:
    """The named parts of one loaded model.

    Raises:
        ModelError: no layout fits; the message names what the nearest one misses.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        missing = {layout: _missing(model, layout) for layout in LAYOUTS}
        self.layout = min(LAYOUTS, key=lambda layout: len(missing[layout]))
        if missing[self.layout]:
            raise ModelError(
                f"{type(model).__name__} is not built like any model known here: nearest is {self.layout.name}, but "
                f"it has no {', '.join(missing[self.layout])}; known are {', '.join(x.name for x in LAYOUTS)}"
            )

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """Transformer blocks, bottom first."""
        return list(self.model.get_submodule(self.layout.blocks).children())

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.model.get_submodule(self.layout.final_norm)

    @property
    def inner(self) -> nn.Module:
        """The model without its head, as the whole model calls it: ids to last hidden states."""
        return self.model.get_submodule(self.layout.inner)

    @property
    def embedding(self) -> Any:
        """Input embeddings (V, d)."""
        return self.model.get_input_embeddings()

    @property
    def head(self) -> Any:
        """Output embeddings: hidden states (N, d) to logits (N, V)."""
        return self.model.get_output_embeddings()

    @property
    def embedding_path(self) -> str:
        """Full name of the input embeddings."""
        return self._path_of(self.embedding)

    @property
    def head_path(self) -> str:
        """Full name of the head."""
        return self._path_of(self.head)

    def _path_of(self, target: nn.Module) -> str:
        return next(path for path, module in self.model.named_modules() if module is target)

    @property
    def tied(self) -> bool:
        """Whether head and input embeddings are one tensor."""
        return self.head.weight is self.embedding.weight

    @property
    def width(self) -> int:
        """Hidden size d."""
        return self.embedding.weight.shape[1]

    @property
    def vocabulary(self) -> int:
        """Rows of the input embeddings V (may exceed the tokenizer's)."""
        return self.embedding.weight.shape[0]

    @property
    def context(self) -> int:
        """Largest number of positions the model was built for."""
        return context_of(self.model.config)

    @property
    def rotary(self) -> bool:
        """Whether positions enter by rotating queries and keys."""
        return any("rotary" in name for name, _ in self.model.named_modules())

    def rotation(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines (count, c') that rotate keys at the first positions, or None without rotation."""
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] == "rotary_emb":
                positions = torch.arange(count, device=self.embedding.weight.device)[None]
                cos, sin = module(torch.zeros(1, 1, device=positions.device), positions)
                return cos[0], sin[0]
        return None

    @property
    def heads(self) -> tuple[int, int, int]:
        """(query heads, key/value heads, size of a head)."""
        config = self.model.config
        heads = int(config.num_attention_heads)
        size = getattr(config, "head_dim", None) or self.width // heads
        return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(size)

    def columns(self, size: int = 0) -> dict[str, tuple[str, Tensor]]:
        """Return, for "q", "k" and "v", the role of the linear that computes it and the columns of its output.

        The columns are (heads, c), with c the size of a head, or `size` for a model like this with smaller heads.
        """
        heads, groups, head_size = self.heads
        c = size or head_size

        def rows(count: int, start: int = 0, stride: int = 1) -> Tensor:
            return start + stride * c * torch.arange(count)[:, None] + torch.arange(c)

        if "qkv" not in self.roles:
            return {"q": ("q", rows(heads)), "k": ("k", rows(groups)), "v": ("v", rows(groups))}
        if self.layout.interleaved:
            return {name: ("qkv", rows(heads, place * c, 3)) for place, name in enumerate("qkv")}
        columns = {"q": rows(heads), "k": rows(groups, heads * c), "v": rows(groups, (heads + groups) * c)}
        return {name: ("qkv", places) for name, places in columns.items()}

    def linear(self, index: int, role: str) -> Any:
        """Return the linear of this role in a block."""
        return self.blocks[index].get_submodule(dict(self.layout.roles)[role])

    def sublayer(self, index: int, role: str) -> tuple[str, nn.Module]:
        """Return (full path, module) of what a block adds to its residual: `o` for attention, `down` for feed-forward.

        It is the linear of this role, or the norm that stands between that linear and the residual.
        """
        block, path = self.blocks[index], dict(self.layout.roles)[role]
        for norms in POST_NORMS:
            if all(hasattr(block, norm) for norm in norms.values()):
                path = norms[role]
        return f"{self.block_path(index)}.{path}", block.get_submodule(path)

    def block_path(self, index: int) -> str:
        """Return the full name of a block, e.g. `model.layers.3`."""
        return f"{self.layout.blocks}.{index}"

    def linears(self, roles: tuple[str, ...] = ()) -> Iterator[tuple[str, str, nn.Module]]:
        """Yield (full path, role, module) of the blocks' linears, bottom first; of all roles when none is named.

        Raises:
            TechniqueError: a role that no linear has here, perhaps because it is part of a fused one; see `outputs`.
        """
        for role in roles:
            if role not in self.roles:
                raise TechniqueError(self._unknown_role_message(role))
        return (
            (f"{self.block_path(index)}.{path}", role, block.get_submodule(path))
            for index, block in enumerate(self.blocks)
            for role, path in self.layout.roles
            if not roles or role in roles
        )

    def outputs(self, roles: tuple[str, ...]) -> Iterator[tuple[str, Any, Tensor]]:
        """Yield (full path, linear, columns) per block and role: which columns of its output are the role's.

        It gives the same on all layouts: where `q`, `k` and `v`, or `gate` and `up`, come from one fused linear, that
        linear comes once for each role, with other columns: ascending integers in a tensor on the model's device.

        Raises:
            TechniqueError: a role that nothing has here: `gate` where the feed-forward has none, `qkv` where separate.
        """
        for role in roles:
            if role not in self.output_roles:
                raise TechniqueError(self._unknown_role_message(role))
        device = self.embedding.weight.device
        return (
            (f"{self.block_path(index)}.{dict(self.layout.roles)[linear]}", self.linear(index, linear), columns)
            for index in range(len(self.blocks))
            for role in roles
            for linear, columns in [self._columns_of(index, role, device)]
        )

    def _columns_of(self, index: int, role: str, device: torch.device) -> tuple[str, Tensor]:
        """Return the role of the linear that computes `role` in a block, and the columns of its output, (n,)."""
        linear = self._fused.get(role, role)
        if linear == "qkv" != role:
            columns = self.columns()[role][1].flatten()
        else:
            columns = torch.arange(features(self.linear(index, linear))[1])
            if linear == "gate_up" != role:  # the gate's half first
                columns = columns.view(2, -1)[("gate", "up").index(role)]
        return linear, columns.to(device)

    @property
    def output_roles(self) -> tuple[str, ...]:
        """Roles that `outputs` takes here: the linears', and those that are part of a fused linear."""
        return (*self.roles, *self._fused)

    @property
    def _fused(self) -> dict[str, str]:
        """The role of the fused linear, by the role that is part of it: "qkv" by "q"."""
        parts = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
        return {part: whole for whole in parts if whole in self.roles for part in parts[whole]}

    def _unknown_role_message(self, role: str) -> str:
        """Return the error message for a role that no linear has here."""
        message = f'no linear has the role "{role}" in the layout of {self.layout.name}, whose roles are '
        message += ", ".join(self.roles)
        if role in self._fused:
            whole = self._fused[role]
            return f'{message}; "{whole}" makes it with others, so name that, or take anatomy.outputs(("{role}",))'
        parts = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}.get(role, ())
        if parts and set(parts) <= set(self.roles):
            return f"{message}; name {', '.join(parts)}"
        return f"{message}; leave it out"

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that the linears of a block have here."""
        return tuple(role for role, _ in self.layout.roles)

    def require_roles(self, setting: str, roles: tuple[str, ...]) -> None:
        """Refuse roles that no linear has here.

        Raises:
            SettingError: names the setting and the first such role.
        """
        unknown = set(roles) - set(self.roles)
        if unknown:
            role = min(unknown)
            whole = f'; "{self._fused[role]}" makes it with others' if role in self._fused else ""
            raise SettingError(f'{setting} names "{role}", but the roles here are {", ".join(self.roles)}{whole}')

    def shrunk(self, factor: float, layers: int) -> nn.Module:
        """Build a random inner model of this architecture, narrower by `factor` and with `layers` blocks, in float32.

        It has as many heads, each of at least two dimensions, and takes embeddings (`inputs_embeds`) only.
        """
        from transformers import AutoModel

        config = copy.deepcopy(self.model.config)
        heads, _, size = self.heads
        head_size = max(2, 2 * round(size / factor / 2))
        config.hidden_size = heads * head_size
        for name in ("head_dim", "word_embed_proj_dim"):
            if getattr(config, name, None):
                setattr(config, name, head_size if name == "head_dim" else config.hidden_size)
        for name in ("intermediate_size", "ffn_dim", "n_inner"):
            if getattr(config, name, None):
                setattr(config, name, max(1, round(getattr(config, name) / factor)))
        for name in ("layer_types", "attention_layers"):
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name)[:layers])
        for rope in (getattr(config, "rope_parameters", None) or {}, vars(config)):
            if rope.get("partial_rotary_factor"):
                rope["partial_rotary_factor"] = 1.0  # a part of a small head is too small to be rotated
        config.num_hidden_layers, config.vocab_size, config.pad_token_id = layers, 1, None
        small: Any = AutoModel.from_config(config, dtype=torch.float32).eval()
        small.get_input_embeddings().requires_grad_(False)
        return cast(nn.Module, small.get_submodule(self.layout.inner.partition(".")[2]))

    def biases(self) -> dict[str, nn.Parameter]:
        """Return the existing bias vectors of linears and norms, by full name."""
        return biases_of(self.model)

    def bias_settings(self) -> Iterator[tuple[str, list[nn.Module]]]:
        """Yield each field of the configuration that gives biases to linears, with these linears."""
        for name, in_attention in (("attention_bias", True), ("mlp_bias", False)):
            if hasattr(self.model.config, name):
                yield name, [module for _, role, module in self.linears() if (role in _ATTENTION) == in_attention]

    def norms(self) -> dict[str, nn.Parameter]:
        """Return weights and biases of the blocks' norms and of the final one, by full name."""
        linear_ids = {id(p) for _, _, linear in self.linears() for p in linear.parameters()}
        prefixes = (f"{self.layout.blocks}.", f"{self.layout.final_norm}.")
        named = self.model.named_parameters()
        return {name: p for name, p in named if name.startswith(prefixes) and id(p) not in linear_ids}

    def owner(self, parameter: str) -> tuple[nn.Module, str]:
        """Return the module that holds a parameter of this full name, and its attribute there."""
        path, _, attribute = parameter.rpartition(".")
        return self.model.get_submodule(path), attribute


def _missing(model: PreTrainedModel, layout: ArchitectureLayout) -> list[str]:
    blocks = _find(model, layout.blocks)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return [layout.blocks, *(path for _, path in layout.roles), layout.final_norm]
    # OPT without pre-normalisation has no final norm; everything else must be there, and be linear.
    paths = [f"{layout.blocks}.0.{path}" for _, path in layout.roles]
    missing = [path for path in paths if not _is_linear(_find(model, path))]
    return missing + ([] if _find(model, layout.final_norm) is not None else [layout.final_norm])


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def biases_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the bias vectors of any model's linears and norms, by full name."""
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"}


def features(linear: nn.Module) -> tuple[int, int]:
    """Return the (in, out) features of a linear; GPT-2's Conv1D stores its weight as (in, out)."""
    rows, columns = linear.weight.shape  # type: ignore[misc]
    return (rows, columns) if is_transposed(linear) else (columns, rows)


def oriented(linear: nn.Module) -> Tensor:
    """Return the weight of a linear, or of embeddings, as (out, in)."""
    weight = cast(Tensor, linear.weight)
    return weight.T if is_transposed(linear) else weight


def add_to_weight(linear: nn.Module, delta: Tensor) -> None:
    """Add delta (out, in), in at least fp32, to the weight; the sum is rounded once."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    oriented = scattered(delta.T if is_transposed(linear) else delta, weight)
    with torch.no_grad():
        weight.copy_((weight.to(delta.dtype) + oriented).to(weight.dtype))


def is_transposed(linear: nn.Module | None) -> bool:
    """Return whether this is a linear whose weight is stored as (in, out)."""
    return isinstance(linear, _transposed_type())


def _is_linear(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


@cache
def _transposed_type() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D
