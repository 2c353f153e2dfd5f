"""Ladder side-tuning: a narrow network beside the frozen one reads its states (Sung, Cho, Bansal 2022).

    s_0 = D_0 E(x),   u_i = mu_i s_{i-1} + (1 - mu_i) (D_i b_i + c_i),   s_i = side_block_i(u_i)
    mu_i = sigmoid(alpha_i / 0.1),   hidden = U norm(s_last)

b_i is the output of the base's block i. No gradient enters the base: of its activations only what D_i reads is kept,
and only for a step, since the outputs of all blocks for all rows would be larger than all else. The side blocks are the
base's own kind, `reduction_factor` times narrower, and start from the base's own weights, structurally pruned
(`tunewise.techniques.building.structured_pruning`). `output` says what is predicted from:

    side    hidden = U norm(s_last)                              as published: a language model starts from nothing
    sum     hidden = b_L + U norm(s_last),  U = 0 at first       the start is the base itself; the default
    mix     hidden = gamma b_L + (1 - gamma) U norm(s_last)      gamma = 1 at first (QST, Zhang et al. 2024)

In `mix` the side network's gradient carries 1 - gamma, which is 0 at first, so that it learns little in short runs.
Differs from the paper by default: the side network's output is added to the base's.

Its purpose is to train in little memory. It learns more slowly than what changes the base: on SmolLM2-135M-Instruct,
60 steps of 8 examples leave three quarters of the base's loss on answers to data (e2e_nlg), where `lora` leaves six
tenths, and 11 % on a classification (sst2). Nothing holds it on other text, of which it loses much on a classification:
the easiest way to the labels is to make them likelier everywhere. Reading the states through the base's norms, or other
learning rates, did not change that.

In shapes: B rows, T tokens a row, d the base's width, s the side network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import SettingError
from tunewise.techniques.building.structured_pruning import importance, prune

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_TEMPERATURE = 0.1
_LABELS = {
    "sum": "lst-sum (adaptation: side added to the base's output)",
    "mix": "lst-mix (adaptation: side mixed into the base's output)",
}


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
    equation = "s_i = side_i(mu_i s_{i-1} + (1 - mu_i) D_i b_i), hidden = b_L + U norm(s)"
    sides = frozenset({"side network"})
    reference_rate = 1.4e-4  # 3e-3, as in the paper, at width 192; 1e-3 at 576, where 3e-3 loses all other text
    width_exponent = 1.0

    reduction_factor: float = setting(
        8.0, "Width of the base over width of the side network.", low=1.0, high=256.0, search=(4.0, 16.0)
    )
    layers: tuple[str, ...] = setting((), "Numbers of the base's blocks that have a side block; default: all.")
    output: str = setting(
        "sum",
        "Predict from the side network alone, as published, from the sum of base and side, or from a learned mix.",
        choices=("sum", "side", "mix"),
    )
    init: str = setting(
        "magnitude",
        "Side blocks start from the base's weights, pruned by size or by Fisher information, or from noise.",
        choices=("magnitude", "fisher", "random"),
    )
    num_samples: int = setting(128, "Training examples of init=fisher.", low=1, high=100_000)
    learning_rate: float | None = learning_rate()

    @fact(default=True)
    def identity_at_start(self) -> bool:
        """Say whether the base's own output is added, which is all of it at first."""
        return self.output != "side"

    @fact(default="")
    def needs_whole_weights(self) -> str:
        """Name the start that reads gradients of all weights."""
        return "init=fisher reads their gradients; init=magnitude does not" if self.init == "fisher" else ""

    @fact(default="")
    def needs_whole_rows(self) -> str:
        """Name the start that reads the gradients of single rows."""
        if self.init == "fisher":
            return "init=fisher takes the gradient of every row alone; init=magnitude does not"
        return ""

    def rows_before_training(self, available: int) -> float:
        """Count the examples that the Fisher information is taken on."""
        return min(self.num_samples, available) if self.init == "fisher" else 0.0

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
        self.label = _LABELS.get(recipe.output, "")
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
        if recipe.output == "sum":
            nn.init.zeros_(self.exit.weight)
            nn.init.zeros_(self.exit.bias)
        self.entered, self.reads = torch.empty(0), [torch.empty(0)] * len(self.read_blocks)  # of the last pass
        self._connect()

    def prepare(self, study: Study) -> None:
        if self.recipe.init == "random":
            return
        start = study.once("side network", lambda: self._pruned(study))
        with torch.no_grad():
            for name, parameter in self.side.named_parameters():
                parameter.copy_(start[name])

    def _pruned(self, study: Study) -> dict[str, Tensor]:
        """Fill the side network with weights of the base, and return a copy of what it holds."""
        from tunewise.fitting.scoring import encoder_for

        rows = None
        if self.recipe.init == "fisher":
            examples = [self.render(example) for example in study.task.train[: self.recipe.num_samples]]
            encoded = encoder_for(self, study.task).encode(examples)
            study.allowance.count(sum(len(sequence.ids) for sequence in encoded))
            rows = study.counted("taking the Fisher information", encoded)
        prune(self.base, self.side, self.read_blocks, importance(self.base, rows))
        return {name: parameter.detach().clone() for name, parameter in self.side.named_parameters()}

    def prepare_shapes(self, study: Study) -> None:
        """Do nothing: the size does not depend on the initial values."""

    def _connect(self) -> None:
        anatomy = self.base.anatomy
        self.hook(anatomy.embedding.register_forward_hook(self._embed))
        for step, index in enumerate(self.read_blocks):
            self.hook(anatomy.blocks[index].register_forward_hook(self._read(step)))
        for step, block in enumerate(_blocks(self.side)):
            block.register_forward_pre_hook(self._climb(step), with_kwargs=True)
        self.hook(anatomy.inner.register_forward_hook(self._finish, with_kwargs=True))

    def _embed(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Read the embeddings: s_0 = D_0 E(x)."""
        self.entered = self.entry(output.detach().to(self.entry.weight.dtype))  # (B, T, d) to (B, T, s)

    def _read(self, step: int) -> Callable[..., None]:
        """Return the hook that reads block i's output as soon as it is there, so that only D_i b_i + c_i is kept."""
        rung: Any = self.rungs[step]

        def read(module: nn.Module, args: Any, output: Any) -> None:
            state: Tensor = (output[0] if isinstance(output, tuple) else output).detach()
            self.reads[step] = rung(state.to(rung.weight.dtype))  # (B, T, d) to (B, T, s)

        return read

    def _climb(self, step: int) -> Callable[..., Any]:
        """Return the hook that gives side block i its input: u_i = mu_i s_{i-1} + (1 - mu_i) (D_i b_i + c_i)."""

        def climb(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            mu = torch.sigmoid(self.alpha[step] / _TEMPERATURE).to(hidden.dtype)  # ()
            hidden = torch.lerp(self._taken(step).to(hidden.dtype), hidden, mu)  # (B, T, s)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return climb

    def _taken(self, step: int) -> Tensor:
        """Return what was read from block i in this pass, and keep it no longer than the side network needs it."""
        read, self.reads[step] = self.reads[step], torch.empty(0)
        return read

    def _finish(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        """Run the side network on the base's states and write its output into the last hidden states."""
        self.side.config._attn_implementation = self.base.model.config._attn_implementation
        side_arguments = {
            name: kwargs[name] for name in ("attention_mask", "position_ids") if kwargs.get(name) is not None
        }
        cache = kwargs.get("past_key_values")
        if cache is not None:  # the ladder's key/value cache lives as long as the base's
            if not hasattr(cache, "ladder"):
                from transformers import DynamicCache

                cache.ladder = DynamicCache(config=self.side.config)
            side_arguments["past_key_values"] = cache.ladder
        side_input, self.entered = self.entered, torch.empty(0)
        side = self.side(inputs_embeds=side_input, use_cache=cache is not None, **side_arguments)
        side_states = self.exit(side.last_hidden_state.to(self.exit.weight.dtype))  # (B, T, s) to (B, T, d)
        base_states = output.last_hidden_state  # (B, T, d)
        output.last_hidden_state = self._joined(base_states, side_states).to(base_states.dtype)
        return output

    def _joined(self, base_states: Tensor, side_states: Tensor) -> Tensor:
        """Return the hidden states (B, T, d) that the head reads."""
        if self.recipe.output == "side":
            return side_states
        if self.gamma is None:
            return base_states + side_states
        return self.gamma * base_states + (1 - self.gamma) * side_states


def _blocks(side: nn.Module) -> list[nn.Module]:
    return list(next(module for module in side.modules() if isinstance(module, nn.ModuleList)))
