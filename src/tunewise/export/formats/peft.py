"""An adapter of the PEFT library, read by PEFT, transformers, vLLM and others, on the base that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.export.format import ExportOptions, Format, Written
from tunewise.export.readers import Reader, adapter_reader

if TYPE_CHECKING:
    from torch import Tensor

    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base


class PeftFormat(Format):
    """Writes PEFT's own files."""

    name = "peft"
    summary = "an adapter of the PEFT library"
    on_base = True

    def why_not(self, attachment: Attachment) -> str | None:
        """Refuse what PEFT has no form of."""
        return None if attachment.peft() is not None else "PEFT has no form of it"

    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Write the configuration and the tensors."""
        adapter = loaded.attachment.peft()
        assert adapter is not None
        write_adapter(*adapter, folder, options)
        return Written()

    def read(self, folder: Path, base: Base) -> Reader:
        """Read with PEFT, on the base."""
        return adapter_reader(folder, base)


def write_adapter(
    config: Mapping[str, object], tensors: Mapping[str, Tensor], folder: Path, options: ExportOptions
) -> None:
    """Write PEFT's two files, the tensors in the type of the export."""
    from safetensors.torch import save_file

    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    stored = {name: tensor.detach().to(options.dtype).cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


FORMAT = PeftFormat()
