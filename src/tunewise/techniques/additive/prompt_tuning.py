"""Prompt tuning: m trainable embeddings before the input, the model frozen (Lester, Al-Rfou, Constant 2021).

    input = [P; E(x)],   max_P log p(y | [P; E(x)]),   P in R^{m x d}

The encoder puts m placeholder ids, m beyond the vocabulary, at the head of every sequence; the embedding layer looks
them up in P. Positions count them: real tokens start at position m. P = E(text) gives the logits of that text.
Initial values: ordinary tokens drawn from the first 5,000 of the vocabulary (frequent ones, in most tokenizers), the
embeddings of the labels' words, those of a given text, or uniform noise in [-0.5, 0.5].
Differs from the paper: AdamW instead of Adafactor at rate 0.3, m = 20 instead of 100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewise.errors import ArtifactError, SettingError, TechniqueError
from tunewise.seeds import generator as stream
from tunewise.technique import Attachment, Citation, Technique, learning_rate, setting, strict

if TYPE_CHECKING:
    from tunewise.model import Base
    from tunewise.task import Task

_FREQUENT = 5000


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Technique):
    """Trainable embeddings before the input."""

    name = "prompt_tuning"
    family = "additive"
    summary = "trainable embeddings before the input"
    citation = Citation(
        "The Power of Scale for Parameter-Efficient Prompt Tuning",
        "Lester, Al-Rfou, Constant",
        2021,
        "https://arxiv.org/abs/2104.08691",
        "section 2",
    )
    equation = "p(y | [P; E(x)]), P trained"
    sides = frozenset({"virtual tokens"})
    needs = "room for the virtual tokens in the window"
    identity_at_start = False
    reference_rate = 1e-2

    num_virtual_tokens: int = setting(20, "Number of trainable embeddings m.", low=1, high=2048)
    init: str = setting(
        "vocab",
        "Initial values: frequent tokens, the labels' words, a text, or noise.",
        choices=("vocab", "label", "text", "random"),
    )
    init_text: str = setting("", "The text of init=text; repeated or cut to the number of virtual tokens.")
    learning_rate: float | None = learning_rate()

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.init_text) != (self.init == "text"):
            raise SettingError("prompt_tuning.init_text and prompt_tuning.init=text go together; give both or none")

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put the embeddings before the input.

        Raises:
            TechniqueError: the virtual tokens leave no room in the model's context.
        """
        return _Prompt(base, self, generator)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PromptTuning | None:
        """The recipe of a PEFT prompt-tuning adapter."""
        if config.get("peft_type") != "PROMPT_TUNING" or "prompt_embeddings" not in tensors:
            return None
        return cls(num_virtual_tokens=tensors["prompt_embeddings"].shape[0])


class _Prompt(Attachment):
    def __init__(self, base: Base, recipe: PromptTuning, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: PromptTuning = recipe
        self.virtual_tokens = recipe.num_virtual_tokens
        if self.virtual_tokens > base.window // 2:
            raise TechniqueError(
                f"prompt_tuning.num_virtual_tokens is {self.virtual_tokens}, more than half of the window of "
                f"{base.window} tokens; use fewer"
            )
        self.prompt = self.add("prompt", self._initial(generator))
        self.hook(base.anatomy.embedding.register_forward_pre_hook(self._clamp))
        self.hook(base.anatomy.embedding.register_forward_hook(self._insert))

    def _initial(self, generator: torch.Generator) -> Tensor:
        base, count = self.base, self.virtual_tokens
        if self.recipe.init == "random":
            return torch.rand(count, base.anatomy.width, generator=generator) - 0.5
        if self.recipe.init == "text":
            ids = base.tokenizer(self.recipe.init_text, add_special_tokens=False)["input_ids"]
            return self._embed((ids * count)[:count])
        special = set(base.tokenizer.all_special_ids)
        known = min(_FREQUENT, base.anatomy.vocabulary, len(base.tokenizer))
        ordinary = [index for index in range(known) if index not in special]
        drawn = torch.randint(len(ordinary), (count,), generator=generator).tolist()
        return self._embed([ordinary[index] for index in drawn])

    @torch.no_grad()
    def _embed(self, ids: list[int]) -> Tensor:
        """Embeddings as the model's layer gives them, scaling included; (len(ids), d)."""
        output: Tensor = self.base.anatomy.embedding(torch.tensor([ids], device=self.base.device))
        return output[0].float()

    def learn(self, task: Task, seed: int, validation_loss: Callable[[], float]) -> None:
        if self.recipe.init != "label":
            return
        if not task.labels:
            raise TechniqueError("prompt_tuning.init=label needs a classification task; use vocab or text")
        order = torch.randperm(len(task.labels), generator=stream(seed, "prompt_tuning", "labels")).tolist()
        with torch.no_grad():
            for row, index in enumerate(order[: self.virtual_tokens]):
                ids = self.base.tokenizer(task.labels[index], add_special_tokens=False)["input_ids"]
                self.prompt[row] = self._embed(ids).mean(0)

    def _clamp(self, module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = self.base.anatomy.vocabulary
        self._virtual = args[0] >= first
        self._index = args[0][self._virtual] - first
        return (args[0].masked_fill(self._virtual, 0), *args[1:])

    def _insert(self, module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not len(self._index):
            return output
        return output.masked_scatter(self._virtual[..., None], self.prompt[self._index].to(output.dtype))

    def peft(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config = {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base.name,
            "num_virtual_tokens": self.virtual_tokens,
            "token_dim": self.base.anatomy.width,
            "num_transformer_submodules": 1,
            "num_attention_heads": self.base.model.config.num_attention_heads,
            "num_layers": len(self.base.anatomy.blocks),
            "prompt_tuning_init": "RANDOM",
            "inference_mode": True,
        }
        return config, {"prompt_embeddings": self.prompt.detach()}

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        if set(tensors) != {"prompt_embeddings"}:
            raise ArtifactError(f"a prompt-tuning adapter holds prompt_embeddings alone, not {', '.join(tensors)}")
        strict({"prompt": self.prompt}, {"prompt": tensors["prompt_embeddings"].float()})
        with torch.no_grad():
            self.prompt.copy_(tensors["prompt_embeddings"])
