"""A graph for ONNX Runtime: token ids and attention mask to logits, for any batch size and length, with the weights.

    logits (batch, sequence, vocabulary) = model(input_ids, attention_mask)        both (batch, sequence) int64

It has no key/value cache, so each new token runs the whole sequence again: for scoring and short answers.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunewise.core.errors import SettingError
from tunewise.core.extras import require
from tunewise.export.format import ExportOptions, Format, Written, not_in_weights
from tunewise.export.formats.merged import write_ends
from tunewise.export.readers import Reader

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base

FILE = "model.onnx"


class OnnxFormat(Format):
    """Writes an ONNX graph."""

    name = "onnx"
    summary = "a graph for ONNX Runtime, from token ids to logits"

    def why_not(self, attachment: Attachment) -> str | None:
        """Refuse what does not merge."""
        return not_in_weights(attachment)

    def default_dtype(self, base: Base) -> torch.dtype:
        """Return the only type that there is."""
        return torch.float32

    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Merge, trace, and write the graph.

        Raises:
            SettingError: the type is not float32; ONNX Runtime lacks operators in half precision on some CPUs.
        """
        require("the format onnx", "onnx", "onnxscript", "onnxruntime")
        if options.dtype != torch.float32 or loaded.attachment.base.model.dtype != torch.float32:
            raise SettingError("an ONNX graph is written in float32 only; use --dtype float32, on a base in float32")
        base = loaded.attachment.base
        trace(loaded.attachment.merge(), base, folder / FILE)
        base.tokenizer.save_pretrained(folder)
        base.model.config.save_pretrained(folder)
        return Written(write_ends(loaded, folder))

    def read(self, folder: Path, base: Base) -> Reader:
        """Read with ONNX Runtime."""
        return _OnnxReader(folder)


class _LogitsOnly(nn.Module):
    """A model whose forward pass returns the logits alone, as the graph does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return output.logits


def trace(model: nn.Module, base: Base, path: Path) -> None:
    """Write the graph of a model; weights of more than a kilobyte go to a file beside it."""
    ids = torch.zeros(2, 7, dtype=torch.long, device=base.device)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    names = ("input_ids", "attention_mask")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _LogitsOnly(model),
                (ids, torch.ones_like(ids)),
                str(path),
                dynamo=True,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(names, dynamic),
                verbose=False,
            )
    finally:
        logger.setLevel(level)


class _OnnxReader(Reader):
    """Reads with an ONNX Runtime session on the CPU."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from transformers import AutoTokenizer

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session: Any = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    def logits(self, ids: list[int]) -> Tensor:
        input_ids = torch.tensor([ids])  # (1, T)
        feed = {"input_ids": input_ids.numpy(), "attention_mask": torch.ones_like(input_ids).numpy()}
        return torch.from_numpy(self.session.run(None, feed)[0])[0]


FORMAT = OnnxFormat()
