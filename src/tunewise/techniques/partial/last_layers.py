"""Last layers: the top k blocks, the final norm and the head are trained, all below is frozen (Lee et al. 2019).

    h = stop_gradient(blocks_{<L-k}(x));   logits = head(norm(blocks_{>=L-k}(h)))

Nothing below the lowest trained block needs a graph, so backward and activation memory shrink to about k / L.
Differs from the paper where the head is tied to the input embeddings: training it would train the embeddings and bring
the whole graph back, so it stays frozen, and the label says so; `head` chooses something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import SettingError

if TYPE_CHECKING:
    import torch

    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class LastLayers(Technique):
    """Top blocks, final norm and head trained."""

    name = "last_layers"
    family = "partial"
    summary = "the top blocks, the final norm and the head trained"
    citation = Citation(
        "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning",
        "Lee, Tang, Lin",
        2019,
        "https://arxiv.org/abs/1911.03090",
        "section 3",
    )
    equation = "logits = head(norm(blocks_{>=L-k}(stop_gradient(blocks_{<L-k}(x)))))"
    sides = frozenset({"weights", "biases", "norms"})
    mergeable = True
    needs_whole_rows = ""
    reference_rate = 2e-5
    width_exponent = 1.0

    k: float = setting(
        0.25,
        "Blocks trained: a number, or below 1 a fraction of all (rounded up).",
        low=0,
        high=1000,
        search=(0.5, 0.1),
    )
    head: str = setting(
        "auto",
        "Head: trained; frozen; untie (trained as a copy of tied embeddings); tied (trains the embeddings with it); "
        "auto trains it unless it is tied.",
        choices=("auto", "trained", "frozen", "untie", "tied"),
    )
    layers: tuple[str, ...] = setting((), "Numbers of the blocks trained, from 0 at the bottom, in place of the top k.")
    learning_rate: float | None = learning_rate()

    @fact(default="")
    def needs_whole_weights(self) -> str:
        """Name the form that puts a further head into the model."""
        return "head=untie copies the embeddings; another head does not" if self.head == "untie" else ""

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Unfreeze the top.

        Raises:
            SettingError: k exceeds the number of blocks, or `head` does not fit tied or untied embeddings.
        """
        return _Top(base, self)


class _Top(Attachment):
    def __init__(self, base: Base, recipe: LastLayers) -> None:
        super().__init__(base, recipe)
        anatomy, blocks = base.anatomy, len(base.anatomy.blocks)
        chosen = _chosen(recipe, blocks)
        mode = recipe.head if recipe.head != "auto" else ("frozen" if anatomy.tied else "trained")
        if (mode == "trained" and anatomy.tied) or (mode in ("untie", "tied") and not anatomy.tied):
            state = "tied to" if anatomy.tied else "separate from"
            raise SettingError(
                f'last_layers.head is "{mode}", but the head of this model is {state} its embeddings; '
                f"use {'frozen, untie or tied' if anatomy.tied else 'trained or frozen'}"
            )
        if mode == "frozen":
            self.label = "last_layers (head frozen)"
        elif mode in ("untie", "tied"):
            self.label = f"last_layers (head {'untied' if mode == 'untie' else 'trained with the embeddings'})"
        self.lowest = 0 if mode == "tied" else min(chosen, default=blocks)
        for index in chosen:
            for name, parameter in anatomy.blocks[index].named_parameters():
                self.train_existing(f"{anatomy.block_path(index)}.{name}", parameter)
        for name, parameter in anatomy.final_norm.named_parameters():
            self.train_existing(f"{anatomy.layout.final_norm}.{name}", parameter)
        if mode == "untie":
            self.replace(base.model.config, "tie_word_embeddings", False)
            self.replace(anatomy.head, "weight", nn.Parameter(anatomy.head.weight.detach().clone()))
            self.train_existing("head.weight", anatomy.head.weight)
        elif mode != "frozen":
            for name, parameter in anatomy.head.named_parameters():
                self.train_existing(f"head.{name}", parameter)

    def trunk(self) -> list[int]:
        """Return the block below the lowest trained one."""
        return [self.lowest - 1] if self.lowest else []


def _chosen(recipe: LastLayers, blocks: int) -> list[int]:
    """Return the numbers of the blocks to train, ascending."""
    if recipe.layers:
        numbers = {str(number): number for number in range(blocks)}
        if any(layer not in numbers for layer in recipe.layers):
            raise SettingError(f"last_layers.layers must be numbers of blocks, 0 to {blocks - 1}")
        return sorted({numbers[layer] for layer in recipe.layers})
    count = -(-blocks * recipe.k // 1) if recipe.k < 1 else recipe.k
    if count > blocks or count != int(count):
        raise SettingError(f"last_layers.k is {recipe.k:g}, but the model has {blocks} blocks")
    return list(range(blocks - int(count), blocks))
