"""FISH mask: the k weights with the largest Fisher information are trained (Sung, Nair, Raffel 2021).

    F_i = 1/n sum_x (d log p(y|x) / d theta_i)^2      one example at a time, labels as given

The mask is made once, before training, and stays. The score of an example is the sum over its answer's tokens. It is
taken on 128 examples, which cost about as much as 60 steps; the paper takes 1,024.
Differs from the paper: there the task's head is always trained; a language model's own head stays frozen here, as do
norms, biases and embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique
from tunewise.core.seeds import generator as stream
from tunewise.engine.memory import release_pages, spill_to_disk
from tunewise.techniques.building.fisher import fisher
from tunewise.techniques.building.sparse_entries import Sparse, largest, weights_of

if TYPE_CHECKING:
    from tunewise.engine.model import Base


@dataclass(frozen=True, kw_only=True)
class FishMask(Technique):
    """The entries with the largest Fisher information, trained alone."""

    name = "fish_mask"
    family = "partial"
    summary = "the weights with the largest Fisher information trained"
    citation = Citation(
        "Training Neural Networks with Fixed Sparse Masks",
        "Sung, Nair, Raffel",
        2021,
        "https://arxiv.org/abs/2111.09839",
        "section 3",
    )
    equation = "F_i = mean over x of (d log p(y|x) / d theta_i)^2; the k largest are trained"
    sides = frozenset({"weights"})
    needs = "training examples"
    mergeable = True
    needs_whole_weights = "it chooses the entries with the largest gradients among all of them"
    needs_whole_rows = "it takes the gradient of every row alone before training"
    reference_rate = 6e-5  # three times full fine-tuning's: the model depends on these entries most
    width_exponent = 1.0
    unread_settings = frozenset({"learning_rate", "density"})
    differs = "linears alone"

    density: float = setting(
        0.005, "Share of the eligible entries that is trained.", low=1e-6, high=1.0, search=(0.001, 0.05)
    )
    num_samples: int = setting(128, "Training examples that the Fisher information is taken on.", low=1, high=100_000)
    target_modules: tuple[str, ...] = setting((), "Roles of the eligible linears (q, k, v, ...); default: all.")
    learning_rate: float | None = learning_rate()

    def rows_before_training(self, available: int) -> float:
        """Count the examples that the Fisher information is taken on."""
        return min(self.num_samples, available)

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach without entries; `prepare` chooses them on a task."""
        return _Fish(base, self)


class _Fish(Sparse):
    def __init__(self, base: Base, recipe: FishMask) -> None:
        super().__init__(base, recipe, weights_of(base, recipe, recipe.target_modules))
        self.recipe: FishMask = recipe

    def prepare(self, study: Study) -> None:
        information = study.once("Fisher information", lambda: self._information(study))
        self._choose({name: information[name].to(self.base.device) for name in self.eligible})
        for values in information.values():
            release_pages(values)

    def _information(self, study: Study) -> dict[str, Tensor]:
        """Return the Fisher information of the eligible weights; large tensors of it are on disk."""
        from tunewise.fitting.scoring import encoder_for

        order = torch.randperm(len(study.task.train), generator=stream(study.seed, "fish_mask")).tolist()
        examples = [self.render(study.task.train[index]) for index in order[: self.recipe.num_samples]]
        encoded = encoder_for(self, study.task).encode(examples)
        study.allowance.count(sum(len(sequence.ids) for sequence in encoded))
        rows = study.counted("taking the Fisher information", encoded)
        information = fisher(self.base, self.eligible, rows)
        return {name: spill_to_disk(information.pop(name).cpu()) for name in self.eligible}

    def prepare_shapes(self, study: Study) -> None:
        """Choose as many entries, by their magnitude."""
        self._choose({name: parameter.detach().abs() for name, parameter in self.eligible.items()})

    def _choose(self, scores: dict[str, Tensor]) -> None:
        self.choose(largest(scores, self.budget(self.recipe.density)))
