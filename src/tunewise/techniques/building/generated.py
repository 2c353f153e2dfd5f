"""Attachments that train the network that makes their tensors, and store the tensors alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment, strict


class GeneratedAttachment(Attachment):
    """Stores the tensors that `make()` returns; the parameters that make them are needed only to train further."""

    stored: dict[str, Tensor] | None = None  # as loaded, in place of what the parameters would make

    @abstractmethod
    def make(self) -> dict[str, Tensor]:
        """Compute the tensors from the parameters."""

    def made(self) -> dict[str, Tensor]:
        """Return the tensors in use: as loaded, or else made now."""
        return self.stored if self.stored is not None else self.make()

    def before_step(self, step: int, total: int) -> None:
        """Drop the loaded tensors: training goes on from the parameters."""
        self.stored = None

    def state(self) -> dict[str, Tensor]:
        """Return the tensors, without the parameters that make them."""
        with torch.no_grad():
            return {name: tensor.detach().clone() for name, tensor in self.made().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Use stored tensors in place of what the parameters make."""
        strict(self.state(), state)
        self.stored = {name: tensor.to(self.base.device) for name, tensor in state.items()}

    def training_state(self) -> dict[str, Tensor]:
        """Return the parameters that make the tensors."""
        return {name: parameter.detach() for name, parameter in self.params().items()}
