"""Prefix tuning: m trained keys and values before those of the input, in every layer (Li, Liang 2021).

    K' = [P_K^l; K],   V' = [P_V^l; V],   [P_K, P_V]_{1..L} = start + MLP(P'),   MLP: d -> k -> 2 L G c, tanh

G key/value heads of size c. The prefix takes positions 0..m-1. Virtual tokens stand for it in the sequence; what the
layers' key and value projections make of them is replaced by P, so that grouped heads, rotary positions, packing,
checkpointing and the cache see ordinary keys. After training the MLP is dropped and P alone is stored. Without
`prefix_projection` P is trained itself (P-tuning v2, Liu et al. 2022). In a layer with a sliding window the prefix
falls out of it as any token does.
Differs from the paper by default: `start` are keys and values that the model computes for real tokens, and the last
layer of the MLP starts at zero. This is the paper's advice for little data, exactly instead of by a fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, PeftConfig
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import ArtifactError
from tunewise.techniques.building.generated import GeneratedAttachment
from tunewise.techniques.building.peft_prefix import cached_prefix, prefix_config, prefix_of_cache
from tunewise.techniques.building.peft_tensors import fitted, prompt_length
from tunewise.techniques.building.virtual_tokens import Placeholders, ordinary_tokens, text_tokens

if TYPE_CHECKING:
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Technique):
    """Trained keys and values in every layer."""

    name = "prefix_tuning"
    family = "additive"
    summary = "trained keys and values before the input's, in every layer"
    citation = Citation(
        "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        "Li, Liang",
        2021,
        "https://arxiv.org/abs/2101.00190",
        "section 4",
    )
    equation = "K' = [P_K; K], V' = [P_V; V], [P_K, P_V] = start + MLP(P')"
    sides = frozenset({"virtual tokens"})
    needs = "room for the virtual tokens in the window"
    identity_at_start = False
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 3e-4

    num_virtual_tokens: int = setting(20, "Length m of the prefix.", low=1, high=2048, search=(5, 50))
    prefix_projection: bool = setting(True, "Train an MLP that makes the prefix, and drop it after training.")
    encoder_hidden_size: int = setting(512, "Width k of that MLP.", low=1, high=65536)
    init: str = setting(
        "tokens",
        "Start: keys and values of frequent tokens, of a text, or nothing but the MLP's own.",
        choices=("tokens", "text", "random"),
    )
    init_text: str = setting("", "The text of init=text; repeated or truncated to the length of the prefix.")
    learning_rate: float | None = learning_rate()

    @fact(default="starts at real tokens")
    def differs(self) -> str:
        """Name the start, unless it is the MLP's own or there is no MLP, and the technique without one."""
        if not self.prefix_projection:
            return "without an MLP"
        return "" if self.init == "random" else "starts at real tokens"

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put the prefix into every layer.

        Raises:
            TechniqueError: the virtual tokens leave no room in the model's context.
        """
        return _Prefix(base, self, generator)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PrefixTuning | None:
        """Return the recipe of a PEFT prefix-tuning adapter, which holds no MLP."""
        if config.get("peft_type") != "PREFIX_TUNING":
            return None
        return cls(num_virtual_tokens=prompt_length(tensors), prefix_projection=False, init="random")


class _Prefix(GeneratedAttachment):
    def __init__(self, base: Base, recipe: PrefixTuning, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: PrefixTuning = recipe
        self.virtual_tokens = m = recipe.num_virtual_tokens
        projections = [base.anatomy.columns()[name] for name in ("k", "v")]
        self.places = [
            [(base.anatomy.linear(index, role), columns.flatten()) for role, columns in projections]
            for index in range(len(base.anatomy.blocks))
        ]
        self.blank = torch.zeros(m, base.anatomy.width, device=base.device)
        self.rows = self.start = self._initial(generator)
        if recipe.prefix_projection:
            self.prompt = self.add("projection.prompt", torch.randn(m, base.anatomy.width, generator=generator))
            self.network = self.adopt("projection", self._network, generator)
            if recipe.init != "random":
                for parameter in self.network[2].parameters():
                    nn.init.zeros_(parameter)
        else:
            self.prefix = self.add("prefix", self.start)
        self.placeholders = Placeholders(self, m, self._table)
        for block, pair in enumerate(self.places):
            for half, (linear, columns) in enumerate(pair):
                self.hook(linear.register_forward_hook(self._replacer(block, half, columns.to(base.device))))

    def _network(self) -> nn.Sequential:
        out = len(self.places) * 2 * len(self.places[0][0][1])
        width = self.recipe.encoder_hidden_size
        return nn.Sequential(nn.Linear(self.base.anatomy.width, width), nn.Tanh(), nn.Linear(width, out))

    @torch.no_grad()
    def _initial(self, generator: torch.Generator) -> Tensor:
        """Return initial keys and values (L, 2, m, G * c) as the projections make them for m real tokens, or zero."""
        base, m = self.base, self.virtual_tokens
        if self.recipe.init == "random" or m > base.window:
            return torch.zeros(len(self.places), 2, m, len(self.places[0][0][1]), device=base.device)
        text = self.recipe.init_text
        ids = text_tokens(base, text, m) if self.recipe.init == "text" else ordinary_tokens(base, m, generator)
        projected: dict[tuple[int, int], Tensor] = {}

        def keep(key: tuple[int, int], columns: Tensor) -> Callable[..., None]:
            return lambda module, args, output: projected.update({key: output[0, :, columns.to(output.device)].float()})

        handles = [
            linear.register_forward_hook(keep((block, half), columns))
            for block, pair in enumerate(self.places)
            for half, (linear, columns) in enumerate(pair)
        ]
        inputs = torch.tensor([ids], device=base.device)
        base.within(lambda: base.anatomy.inner(input_ids=inputs, use_cache=False).last_hidden_state)
        for handle in handles:
            handle.remove()
        return torch.stack(
            [torch.stack([projected[block, half] for half in (0, 1)]) for block in range(len(self.places))]
        )

    def make(self) -> dict[str, Tensor]:
        """Return the prefix, (L, 2, m, G * c)."""
        if not self.recipe.prefix_projection:
            return {"prefix": self.prefix}
        flat: Tensor = self.network(self.prompt)
        prefix = self.start + flat.view(self.virtual_tokens, len(self.places), 2, -1).permute(1, 2, 0, 3)
        return {"prefix": prefix}

    def _table(self) -> Tensor:
        self.rows = self.made()["prefix"]  # once per pass; each layer's hooks read their part of it
        return self.blank

    def _replacer(self, block: int, half: int, columns: Tensor) -> Callable[..., Tensor]:
        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            placeholders = self.placeholders
            if not len(placeholders.index) and not self.base.ranks.builds_alike:
                return output
            # (P, G c) of the P virtual tokens in this pass
            prefix_rows = self.rows[block, half][placeholders.index].to(output.dtype)
            # of output (B, T, out) the P rows, in which the key's or value's columns (G c,) are replaced
            return output.masked_scatter(
                placeholders.mask[..., None], output[placeholders.mask].index_copy(1, columns, prefix_rows)
            )

        return replace

    def peft(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        cached = cached_prefix(self.base, self.virtual_tokens)
        return prefix_config(self.base, self.virtual_tokens), {"prompt_embeddings": cached}

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        current = cached_prefix(self.base, self.virtual_tokens)
        stored = fitted({"prompt_embeddings": current}, tensors)["prompt_embeddings"].to(current.device)
        self.load({"prefix": prefix_of_cache(self.base, stored)})
        again = cached_prefix(self.base, self.virtual_tokens)
        if not torch.allclose(again, stored, atol=1e-3 * float(stored.abs().max())):
            raise ArtifactError(
                "this model changes keys in a way that cannot be undone; the prefix cannot be taken over"
            )
