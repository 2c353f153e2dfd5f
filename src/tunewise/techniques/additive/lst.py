"""Ladder side-tuning: a narrow network beside the frozen one reads its states (Sung, Cho, Bansal 2022).

    s_0 = D_0 E(x),   u_i = mu_i s_{i-1} + (1 - mu_i) (D_i b_i + c_i),   s_i = side_block_i(u_i)
    mu_i = sigmoid(alpha_i / 0.1),   hidden = U norm(s_last)

b_i is the output of the base's block i. No gradient enters the base: its activations are never kept. The side blocks
are the base's own kind, `reduction_factor` times narrower, and start from the base's own weights, structurally pruned
(`tunewise.techniques.building.structured_pruning`). `output="side"` predicts from the side network alone, as published;
`output="mix"` adds it to the base, hidden = gamma b_L + (1 - gamma) U norm(s_last) with gamma = 1 at the start (QST,
Zhang et al. 2024), so that a language model starts as itself; the label says so.

In shapes: B rows, T tokens a row, d the base's width, s the side network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import SettingError
from tunewise.techniques.building.structured_pruning import importance, prune

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_TEMPERATURE = 0.1


@dataclass(frozen=True, kw_only=True)
class LST(Technique):
    """A narrow network beside the frozen model."""

    name = "lst"
    family = "additive"
    summary = "a narrow network beside the frozen model that reads its states"
    citation = Citation(
        "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning",
        "Sung, Cho, Bansal",
        2022,
        "https://arxiv.org/abs/2206.06522",
        "section 3",
    )
    equation = "s_i = side_i(mu_i s_{i-1} + (1 - mu_i) D_i b_i), hidden = gamma b_L + (1 - gamma) U norm(s)"
    sides = frozenset({"side network"})
    reference_rate = 3e-3

    reduction_factor: float = setting(
        8.0, "Width of the base over width of the side network.", low=1.0, high=256.0, search=(4.0, 16.0)
    )
    layers: tuple[str, ...] = setting((), "Numbers of the base's blocks that have a side block; default: all.")
    output: str = setting(
        "mix", "Predict from base and side together, or from the side alone.", choices=("mix", "side")
    )
    init: str = setting(
        "fisher",
        "Side blocks start from the base's weights, pruned by Fisher information or by size, or from noise.",
        choices=("fisher", "magnitude", "random"),
    )
    num_samples: int = setting(128, "Training examples of init=fisher.", low=1, high=100_000)
    learning_rate: float | None = learning_rate()

    @fact(default=True)
    def identity_at_start(self) -> bool:
        """Say whether the base's own output is mixed in, which is all of it at first."""
        return self.output == "mix"

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put the ladder beside the base.

        Raises:
            SettingError: `layers` names a block that the model does not have.
        """
        return _Ladder(base, self, generator)


class _Ladder(Attachment):
    def __init__(self, base: Base, recipe: LST, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: LST = recipe
        blocks, width = base.anatomy.blocks, base.anatomy.width
        try:
            self.read_blocks = sorted({int(layer) for layer in recipe.layers}) or list(range(len(blocks)))
        except ValueError:
            self.read_blocks = [-1]
        if not 0 <= self.read_blocks[0] <= self.read_blocks[-1] < len(blocks):
            raise SettingError(f"lst.layers must be numbers of blocks, 0 to {len(blocks) - 1}")
        if recipe.output == "mix":
            self.label = "lst-mix (adaptation: side added to the base's output)"
        factor, count = recipe.reduction_factor, len(self.read_blocks)
        side: Any = self.adopt("side", lambda: base.anatomy.shrunk(factor, count), generator)
        self.side = side
        narrow = side.config.hidden_size
        self.entry = self.adopt("entry", lambda: nn.Linear(width, narrow), generator)
        self.rungs = self.adopt(
            "rungs", lambda: nn.ModuleList(nn.Linear(width, narrow) for _ in self.read_blocks), generator
        )
        self.exit = self.adopt("exit", lambda: nn.Linear(narrow, width), generator)
        self.alpha = self.add("alpha", torch.zeros(len(self.read_blocks)))
        self.gamma = self.add("gamma", torch.ones(())) if recipe.output == "mix" else None
        self.embedded, self.states = torch.empty(0), [torch.empty(0)] * len(self.read_blocks)
        self._connect()

    def prepare(self, study: Study) -> None:
        if self.recipe.init == "random":
            return
        from tunewise.fitting.scoring import encoder_for

        rows = None
        if self.recipe.init == "fisher":
            examples = [self.render(example) for example in study.task.train[: self.recipe.num_samples]]
            encoded = encoder_for(self, study.task).encode(examples)
            rows = study.counted("taking the Fisher information", encoded)
        prune(self.base, self.side, self.read_blocks, importance(self.base, rows))

    def prepare_shapes(self, study: Study) -> None:
        """Do nothing: the size does not depend on the initial values."""

    def trunk(self) -> list[int]:
        """Return all blocks that the ladder reads, and the last one, which the mix reads."""
        return sorted({*self.read_blocks, len(self.base.anatomy.blocks) - 1})

    def _connect(self) -> None:
        anatomy = self.base.anatomy
        self.hook(anatomy.embedding.register_forward_hook(self._embed))
        for step, index in enumerate(self.read_blocks):
            self.hook(anatomy.blocks[index].register_forward_hook(self._keep(step)))
        for step, block in enumerate(_blocks(self.side)):
            block.register_forward_pre_hook(self._climb(step), with_kwargs=True)
        self.hook(anatomy.inner.register_forward_hook(self._finish, with_kwargs=True))

    def _embed(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.embedded = output.detach()

    def _keep(self, step: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self.states[step] = (output[0] if isinstance(output, tuple) else output).detach()

        return keep

    def _climb(self, step: int) -> Callable[..., Any]:
        """Return the hook that gives side block i its input: u_i = mu_i s_{i-1} + (1 - mu_i) (D_i b_i + c_i)."""
        rung: Any = self.rungs[step]

        def climb(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            mu = torch.sigmoid(self.alpha[step] / _TEMPERATURE).to(hidden.dtype)  # ()
            read = rung(self.states[step].to(rung.weight.dtype))  # (B, T, d) to (B, T, s)
            hidden = mu * hidden + (1 - mu) * read.to(hidden.dtype)  # (B, T, s)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return climb

    def _finish(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        """Run the side network on the base's states and write its output into the last hidden states."""
        self.side.config._attn_implementation = self.base.model.config._attn_implementation
        side_arguments = {
            name: kwargs[name] for name in ("attention_mask", "position_ids") if kwargs.get(name) is not None
        }
        cache = kwargs.get("past_key_values")
        if cache is not None:  # the ladder's key/value cache lives as long as the base's
            if not hasattr(cache, "ladder"):
                cache.ladder = DynamicCache(config=self.side.config)
            side_arguments["past_key_values"] = cache.ladder
        side_input = self.entry(self.embedded.to(self.entry.weight.dtype))  # (B, T, d) to (B, T, s)
        side = self.side(inputs_embeds=side_input, use_cache=cache is not None, **side_arguments)
        side_states = self.exit(side.last_hidden_state.to(self.exit.weight.dtype))  # (B, T, s) to (B, T, d)
        base_states = output.last_hidden_state  # (B, T, d)
        mixed = side_states if self.gamma is None else self.gamma * base_states + (1 - self.gamma) * side_states
        output.last_hidden_state = mixed.to(base_states.dtype)
        return output


def _blocks(side: nn.Module) -> list[nn.Module]:
    return list(next(module for module in side.modules() if isinstance(module, nn.ModuleList)))
