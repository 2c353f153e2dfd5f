"""Limits what libraries print: warnings and errors only, on stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from tunewise.core.text import visible


def quiet() -> None:
    """Turn off the progress bars and informational messages of libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # What one library says to another of its future is nothing that a user can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(peft|torch|transformers)\b")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it suggests a package of kernels
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def configure_logging() -> None:
    """Send warnings and errors to stderr, as plain messages."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)  # on the handler: some libraries set their own loggers to DEBUG
    handler.setFormatter(_Visible("%(message)s"))
    logging.basicConfig(handlers=[handler])


class _Visible(logging.Formatter):
    """Writes messages that cannot act on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))
