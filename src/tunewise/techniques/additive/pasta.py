"""PASTA: a trained vector is added to the hidden state of every special token at each block (Yang et al. 2022).

    h'_i = h_i + e^l_p   if token i is the p-th special token, else h_i;   l = 0 .. L-1

In a decoder the special tokens are those of the tokenizer that stand in the task's sequences: the start mark, and the
turn marks of a chat template; only marks before the answer can change it. With the start mark alone the technique is
exactly a learned key and value at one position, as the label says.
Differs from the paper: a vector belongs to a token, however often it occurs (the paper's BERT counts occurrences);
vectors start at zero (the paper: noise of 0.02), so the start is the base itself; there is no dropout.
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
from tunewise.core.errors import SettingError, TechniqueError
from tunewise.engine.encoding import Encoder

if TYPE_CHECKING:
    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base


_NONE = (
    "pasta needs special tokens, and this task's prompts hold none with this tokenizer; name tokens that occur in "
    "pasta.tokens, or use prompt_tuning or prefix_tuning"
)


def tokens_of(encoder: Encoder, task: Task, render: Callable[[Example], Example]) -> set[int]:
    """Return the ids that occur in the prompts of a task's first examples."""
    examples = [render(example) for example in (*task.train[:256], *task.validation[:64])]
    return {i for sequence in encoder.encode(examples) for i in sequence.ids[: sequence.prompt]}


@dataclass(frozen=True, kw_only=True)
class Pasta(Technique):
    """Vectors added at special tokens."""

    name = "pasta"
    family = "additive"
    summary = "vectors added to the hidden states of special tokens"
    citation = Citation(
        "Parameter-Efficient Tuning with Special Token Adaptation",
        "Yang, Huang, Zhou, Chen",
        2022,
        "https://arxiv.org/abs/2210.04382",
        "section 2",
    )
    equation = "h'_i = h_i + e^l_p where token i is special token p"
    sides = frozenset({"special tokens"})
    needs = "special tokens in the sequences, such as a start mark or a chat template's marks"
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 3e-2
    differs = "a vector for each token id"

    tokens: tuple[str, ...] = setting(
        (), "The special tokens; default: the tokenizer's own that the task's prompts hold."
    )
    init: str = setting("zero", "Vectors at the start: zero, or noise of 0.02 (the paper).", choices=("zero", "normal"))
    learning_rate: float | None = learning_rate()

    @fact(default=True)
    def identity_at_start(self) -> bool:
        """Say whether the vectors start at zero."""
        return self.init == "zero"

    def lacks(self, base: Base, task: Task) -> str:
        """Say that the task's prompts hold no special tokens, if they hold none."""
        vocabulary = base.tokenizer.get_vocab()
        ids = {vocabulary[token] for token in self.tokens if token in vocabulary} or set(base.tokenizer.all_special_ids)
        return "" if ids & tokens_of(Encoder(base, task), task, lambda example: example) else _NONE

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Add a vector for every special token of the tokenizer; `prepare` keeps those that the task has.

        Raises:
            TechniqueError: the tokenizer has no special tokens.
            SettingError: a named token is none of the tokenizer's.
        """
        return _Special(base, self, generator)


class _Special(Attachment):
    def __init__(self, base: Base, recipe: Pasta, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: Pasta = recipe
        tokenizer = base.tokenizer
        vocabulary = tokenizer.get_vocab()
        unknown = [token for token in recipe.tokens if token not in vocabulary]
        if unknown:
            raise SettingError(f'pasta.tokens names "{unknown[0]}", which is no token of this tokenizer')
        ids = [vocabulary[token] for token in recipe.tokens] or sorted(set(tokenizer.all_special_ids))
        if not ids:
            raise TechniqueError("pasta needs special tokens, and this tokenizer has none; name some in pasta.tokens")
        self.place: Tensor | None = None
        self._keep(ids)
        shape = (len(base.anatomy.blocks), len(ids), base.anatomy.width)
        noise = torch.randn(shape, generator=generator) * 0.02
        self._put(noise if recipe.init == "normal" else torch.zeros(shape))
        self.hook(base.anatomy.embedding.register_forward_pre_hook(self._find))
        for index, block in enumerate(base.anatomy.blocks):
            self.hook(block.register_forward_pre_hook(self._adder(index), with_kwargs=True))

    def _put(self, values: Tensor) -> None:
        """Train these vectors, (L, special tokens, d), in place of those before."""
        self._params.clear()
        self.vectors = self.add("vectors", values)

    def _keep(self, ids: list[int]) -> None:
        """Remember which ids have vectors: `slot[id]` is the row of an id, -1 for all others."""
        self.ids = torch.tensor(ids)
        self.slot = torch.full((self.base.anatomy.vocabulary,), -1)
        self.slot[self.ids] = torch.arange(len(ids))
        self.slot = self.slot.to(self.base.device)

    def prepare(self, study: Study) -> None:
        from tunewise.fitting.scoring import encoder_for

        present = tokens_of(encoder_for(self, study.task), study.task, self.render)
        rows = [row for row, token in enumerate(self.ids.tolist()) if token in present]
        if not rows:
            raise TechniqueError(_NONE)
        values = self.vectors.detach()[:, rows].clone()
        self._keep([self.ids.tolist()[row] for row in rows])
        self._put(values)
        if self.ids.tolist() == [self.base.tokenizer.bos_token_id]:
            self.label = "pasta (start mark only: a learned key and value at one position)"

    def _find(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        ids = args[0]
        # (B, T): the row of each token's vector, -1 where it has none
        slots = self.slot[ids.clamp(max=len(self.slot) - 1)].masked_fill(ids >= len(self.slot), -1)
        self.place = slots if self.base.ranks.builds_alike or bool((slots >= 0).any()) else None

    def _adder(self, index: int) -> Callable[..., Any]:
        def add(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if self.place is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            vectors = torch.cat([self.vectors[index], torch.zeros_like(self.vectors[index, :1])])  # (slots + 1, d)
            changed = hidden + vectors[self.place].to(hidden.dtype)  # (B, T, d); slot -1 is the row of zeros
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return add

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "tokens": self.ids}

    def load(self, state: Mapping[str, Tensor]) -> None:
        from tunewise.contract.attachment import strict

        ids = state.get("tokens", self.ids)
        fits = ids.dim() == 1 and ids.dtype == torch.int64 and len(ids.unique()) == len(ids) > 0
        fits = fits and 0 <= int(ids.min()) <= int(ids.max()) < len(self.slot)
        count = len(ids) if fits else len(self.ids)
        blocks, width = self.vectors.shape[0], self.vectors.shape[2]
        strict({"vectors": torch.empty(blocks, count, width), "tokens": torch.empty(count, dtype=torch.int64)}, state)
        self._keep(ids.tolist())
        self._put(state["vectors"])
