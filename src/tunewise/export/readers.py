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

_NO_TOKEN = 1 << 30  # an id that no vocabulary has


class Reader(ABC):
    """A model that computes logits and continues token ids."""

    tokenizer: PreTrainedTokenizerBase | None = None  # the export's own, where it has one

    @abstractmethod
    def logits(self, ids: list[int]) -> Tensor:
        """Compute the logits (T, V) of one sequence; those of virtual tokens before it are left out."""

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Continue `ids` by `count` tokens, each the likeliest."""
        continuation: list[int] = []
        for _ in range(count):
            continuation.append(int(self.logits(ids + continuation)[-1].argmax()))
        return continuation

    def close(self) -> None:  # noqa: B027 (most readers have nothing to undo)
        """Undo what reading did to the base."""


class CausalReader(Reader):
    """Reads with a model of transformers, or with one that has the same interface."""

    def __init__(self, model: Any, device: torch.device, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.model, self.device, self.tokenizer = model, device, tokenizer

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        base: Base,
        model_options: Mapping[str, object] = {},
        tokenizer_options: Mapping[str, object] = {},
    ) -> CausalReader:
        """Load weights and tokenizer from a folder, to compute in the base's type and on its device.

        Args:
            folder: what transformers loads.
            base: the base, for its type and device.
            model_options: further arguments of `AutoModelForCausalLM.from_pretrained`.
            tokenizer_options: further arguments of `AutoTokenizer.from_pretrained`.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        local: dict[str, object] = {"trust_remote_code": False, "local_files_only": True}
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=base.model.dtype, **local, **model_options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local, **tokenizer_options)
        return cls(model.to(base.device).eval(), base.device, tokenizer)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Compute the logits (T, V) in one forward pass, in float32 or more."""
        input_ids = torch.tensor([ids], device=self.device)  # (1, T)
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[0]
        logits = logits[-len(ids) :]  # a PEFT prompt's virtual tokens stand before them
        return logits.float() if logits.dtype != torch.float64 else logits

    @torch.no_grad()
    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Continue with Hugging Face's own generation and its key/value cache; `count` tokens, also after an end."""
        from transformers import GenerationConfig

        input_ids = torch.tensor([ids], device=self.device)  # (1, T)
        # None would be replaced by the model's own end-of-sequence token.
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=_NO_TOKEN, pad_token_id=0)
        output = self.model.generate(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config
        )
        return list(output[0, len(ids) :].tolist())


class AdapterReader(CausalReader):
    """Reads with a PEFT adapter on the base in memory; closing takes the adapter off again."""

    def __init__(self, folder: Path, base: Base) -> None:
        from peft import PeftModel

        super().__init__(PeftModel.from_pretrained(base.model, str(folder)).eval(), base.device)

    def close(self) -> None:
        """Take PEFT's layers out of the base."""
        if hasattr(self.model.base_model, "unload"):
            self.model.base_model.unload()
