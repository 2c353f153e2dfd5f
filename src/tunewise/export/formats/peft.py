"""An adapter of the PEFT library: read by PEFT, transformers, vLLM and others, on the base that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.export.format import Asked, Format, Written
from tunewise.export.readers import Adapted, Reader

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base


class Peft(Format):
    """PEFT's own files."""

    name = "peft"
    summary = "an adapter of the PEFT library"
    on_base = True

    def why_not(self, attachment: Attachment) -> str | None:
        """What PEFT has no form for."""
        return None if attachment.peft() is not None else "PEFT has no form of it"

    def write(self, loaded: Adaptation, folder: Path, asked: Asked) -> Written:
        """The configuration and the tensors."""
        found = loaded.attachment.peft()
        assert found is not None
        write_adapter(*found, folder, asked)
        return Written()

    def read(self, folder: Path, base: Base) -> Reader:
        """Through PEFT, on the base."""
        return Adapted(folder, base)


def write_adapter(config, tensors, folder: Path, asked: Asked) -> None:  # type: ignore[no-untyped-def]
    """PEFT's two files."""
    from safetensors.torch import save_file

    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    own = {name: tensor.detach().to(asked.dtype).cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


FORMAT = Peft()
