"""Attachments that train what makes their tensors, and store the tensors alone: a prompt encoder, an MLP, scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment, strict


class GeneratedAttachment(Attachment):
    """The artifact holds `make()`'s tensors; the parameters that make them are needed only to train on."""

    stored: dict[str, Tensor] | None = None  # as loaded, in place of what the parameters would make

    @abstractmethod
    def make(self) -> dict[str, Tensor]:
        """The tensors, made of the parameters."""

    def made(self) -> dict[str, Tensor]:
        """The tensors that count now."""
        return self.stored if self.stored is not None else self.make()

    def before_step(self, step: int, total: int) -> None:
        """Training goes on from the parameters, of which the stored tensors were made."""
        self.stored = None

    def state(self) -> dict[str, Tensor]:
        """The tensors, without their makers."""
        with torch.no_grad():
            return {name: tensor.detach().clone() for name, tensor in self.made().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Let stored tensors stand for what the parameters make."""
        strict(self.state(), state)
        self.stored = {name: tensor.to(self.base.device) for name, tensor in state.items()}

    def training_state(self) -> dict[str, Tensor]:
        """The makers."""
        return {name: parameter.detach() for name, parameter in self.params().items()}
