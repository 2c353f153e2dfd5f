"""Exports loaded back, each by its own format's reader: token ids to logits, and greedy answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewise.engine.model import Base


class Reader(ABC):
    """A model that answers."""

    tokenizer: PreTrainedTokenizerBase | None = None  # the export's own, where it has one

    @abstractmethod
    def logits(self, ids: list[int]) -> Tensor:
        """Logits (T, V) of one sequence; what stands before it by the export's own doing is left out."""

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after the other."""
        found: list[int] = []
        for _ in range(count):
            found.append(int(self.logits(ids + found)[-1].argmax()))
        return found

    def close(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Give back what reading took of the base."""


class Causal(Reader):
    """A model of transformers, or one that is used like one."""

    def __init__(self, model: Any, device: torch.device, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.model, self.device, self.tokenizer = model, device, tokenizer

    @classmethod
    def from_folder(
        cls, folder: Path, base: Base, model: Mapping[str, Any] = {}, tokenizer: Mapping[str, Any] = {}
    ) -> Causal:
        """Load weights and tokenizer from a folder, and compute in the base's own type; with further arguments."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=base.model.dtype, **common, **model)
        own = AutoTokenizer.from_pretrained(folder, **common, **tokenizer)
        return cls(found.to(base.device).eval(), base.device, own)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """One forward pass."""
        given = torch.tensor([ids], device=self.device)
        found: Tensor = self.model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0]
        return found[-len(ids) :].float() if found.dtype != torch.float64 else found[-len(ids) :]

    @torch.no_grad()
    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Hugging Face's own generation, cache included; an end mark does not end it, so that all tokens count."""
        from transformers import GenerationConfig

        given = torch.tensor([ids], device=self.device)
        # None would be filled with the model's own end mark
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=1 << 30, pad_token_id=0)
        output = self.model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=config)
        return list(output[0, len(ids) :].tolist())


class Adapted(Causal):
    """A PEFT adapter on the base in memory; closing takes it off again."""

    def __init__(self, folder: Path, base: Base) -> None:
        from peft import PeftModel

        super().__init__(PeftModel.from_pretrained(base.model, str(folder)).eval(), base.device)

    def close(self) -> None:
        """Take PEFT's layers out of the base."""
        if hasattr(self.model.base_model, "unload"):
            self.model.base_model.unload()
