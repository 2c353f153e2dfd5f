"""What worker processes have in common: lines of JSON to the parent, and an end with the parent."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunewise.core.errors import TunewiseError
from tunewise.core.logs import configure_logging
from tunewise.core.progress import RowProgress, stage_of

_PROGRESS_INTERVAL = 0.1  # seconds between two progress events


class Lines:
    """The lines to and from the parent; everything else that is printed in this process goes to stderr.

    Args:
        end: ends this process at once when the parent is gone; safe at any moment, as files are written atomically.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end, self._lock = end, threading.Lock()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._events = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        configure_logging()

    def _read(self) -> None:
        """Pass on the parent's lines, and die with the parent."""
        for line in sys.stdin:
            self._lines.put(line)
        self._end()

    def next(self) -> str:
        """Wait for the parent's next line."""
        return self._lines.get()

    def send(self, **event: Any) -> None:
        """Write a line."""
        with self._lock:
            self._events.write(json.dumps(event) + "\n")
            self._events.flush()

    @contextmanager
    def errors_sent(self) -> Iterator[None]:
        """Tell the parent of an error that ends what runs inside."""
        try:
            yield
        except TunewiseError as error:
            self.send(error=str(error), code=error.exit_code)
        except OSError as error:  # a full or missing disk fails the whole comparison
            self.send(error=f"{type(error).__name__}: {error}", code=1)
        except Exception as error:
            traceback.print_exc()
            self.send(crash=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def reports(send: Callable[..., None]) -> RowProgress:
    """Return a callback that sends progress, ten times a second at most where nothing begins or ends."""
    last_sent, last_stage = 0.0, ("", "")

    def progress(row: str, what: str, done: int, total: int, /) -> None:
        nonlocal last_sent, last_stage
        now, stage = time.monotonic(), (row, stage_of(what))
        if now - last_sent > _PROGRESS_INTERVAL or done == total or stage != last_stage:
            last_sent, last_stage = now, stage
            send(progress=[row, what, done, total])

    return progress
