"""What libraries may say on the screen: warnings and worse, on stderr."""

from __future__ import annotations

import logging
import os
import sys


def quiet() -> None:
    """Keep libraries' own chatter off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a package of kernels when it is imported
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def logs() -> None:
    """Warnings and worse on stderr, without decoration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)  # on the handler, because some libraries set their own loggers to debug
    logging.basicConfig(format="%(message)s", handlers=[handler])
