"""Prompt tuning: m trainable embeddings before the input, the model frozen (Lester, Al-Rfou, Constant 2021).

    input = [P; E(x)],   max_P log p(y | [P; E(x)]),   P in R^{m x d}

The encoder puts m placeholder ids, m beyond the vocabulary, at the head of every sequence; the embedding layer looks
them up in P. Positions count them: real tokens start at position m. P = E(text) gives the logits of that text.
Initial values: ordinary tokens drawn from the first 5,000 of the vocabulary (frequent ones, in most tokenizers), the
embeddings of the labels' words, those of a given text, or uniform noise in [-0.5, 0.5].
Differs from the paper by default: AdamW (`optimizer=adafactor` is the paper's), m = 20 instead of 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment, ParamGroup, PeftConfig
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique, fact
from tunewise.core.errors import SettingError, TechniqueError
from tunewise.core.seeds import generator as stream
from tunewise.engine.optimizers import build
from tunewise.techniques.building.peft_lora import head
from tunewise.techniques.building.peft_tensors import prompt_length, take_over
from tunewise.techniques.building.virtual_tokens import Placeholders, embed, ordinary_tokens, text_tokens

if TYPE_CHECKING:
    from tunewise.engine.model import Base

_ADAFACTOR_RATE = 0.3
_PAPERS_LENGTH = 100


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
    needs_whole_weights = ""
    needs_whole_rows = ""
    reference_rate = 3e-2

    num_virtual_tokens: int = setting(20, "Number of trainable embeddings m.", low=1, high=2048, search=(5, 50))
    init: str = setting(
        "vocab",
        "Initial values: frequent tokens, the labels' words, a text, or noise.",
        choices=("vocab", "label", "text", "random"),
    )
    init_text: str = setting("", "The text of init=text; repeated or truncated to the number of virtual tokens.")
    optimizer: str = setting(
        "adamw", "Optimiser; the paper's is Adafactor, at rate 0.3.", choices=("adamw", "adafactor")
    )
    learning_rate: float | None = learning_rate()

    @fact(default="AdamW, m=20")
    def differs(self) -> str:
        """Name the optimiser and the length where they are not the paper's, Adafactor and 100."""
        optimizer = "AdamW" if self.optimizer == "adamw" else ""
        length = f"m={self.num_virtual_tokens}" if self.num_virtual_tokens != _PAPERS_LENGTH else ""
        return ", ".join(filter(None, (optimizer, length)))

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

    def resolved(self, base: Base) -> Self:
        """Return the same recipe with the default rate of its optimiser filled in."""
        takes_adafactor_default = self.learning_rate is None and self.optimizer == "adafactor"
        return self.with_rate(_ADAFACTOR_RATE) if takes_adafactor_default else super().resolved(base)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PromptTuning | None:
        """Return the recipe of a PEFT prompt-tuning adapter."""
        if config.get("peft_type") != "PROMPT_TUNING":
            return None
        return cls(num_virtual_tokens=prompt_length(tensors))


class _Prompt(Attachment):
    def __init__(self, base: Base, recipe: PromptTuning, generator: torch.Generator) -> None:
        super().__init__(base, recipe)
        self.recipe: PromptTuning = recipe
        self.virtual_tokens = recipe.num_virtual_tokens
        Placeholders(self, self.virtual_tokens, lambda: self.prompt)
        self.prompt = self.add("prompt", self._initial(generator))

    def _initial(self, generator: torch.Generator) -> Tensor:
        base, count = self.base, self.virtual_tokens
        if self.recipe.init == "random":
            return torch.rand(count, base.anatomy.width, generator=generator) - 0.5
        if self.recipe.init == "text":
            return embed(base, text_tokens(base, self.recipe.init_text, count))
        return embed(base, ordinary_tokens(base, count, generator))

    def prepare(self, study: Study) -> None:
        if self.recipe.init != "label":
            return
        labels = study.task.labels
        if not labels:
            raise TechniqueError("prompt_tuning.init=label needs a classification task; use vocab or text")
        order = torch.randperm(len(labels), generator=stream(study.seed, "prompt_tuning", "labels")).tolist()
        with torch.no_grad():
            for row, index in enumerate(order[: self.virtual_tokens]):
                ids = self.base.tokenizer(labels[index], add_special_tokens=False)["input_ids"]
                self.prompt[row] = embed(self.base, ids).mean(0)

    def optimizer(self, groups: list[ParamGroup], betas: tuple[float, float]) -> torch.optim.Optimizer:
        return build(self.recipe.optimizer, groups, betas)

    def peft(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        config = head(self.base, "PROMPT_TUNING") | {
            "num_virtual_tokens": self.virtual_tokens,
            "token_dim": self.base.anatomy.width,
            "num_transformer_submodules": 1,
            "num_attention_heads": self.base.model.config.num_attention_heads,
            "num_layers": len(self.base.anatomy.blocks),
            "prompt_tuning_init": "RANDOM",
        }
        return config, {"prompt_embeddings": self.prompt.detach()}

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        take_over({"prompt_embeddings": self.prompt.detach()}, tensors)
