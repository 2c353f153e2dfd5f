"""Runs trials as a worker process, which loads the base once, reports to its parent and exits when the parent does.

It reads one line of JSON, the request, from stdin and writes lines of JSON to its original stdout:

    {"progress": [row, what, done, total]}   {"trial": folder or null, "identity": {...}}   {"rows": count}
    {"done": true}                           {"error": text, "code": 1 or 2}                {"crash": text}

Everything else that is printed here goes to stderr. When stdin closes, the parent is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from tunewise.core.errors import TunewiseError
from tunewise.core.logs import configure_logging

_PROGRESS_INTERVAL = 0.1  # seconds between two progress events


def main() -> None:
    """Carry out the request read from stdin."""
    message = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configure_logging()

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        _run_request(message, send)
        send(done=True)
    except TunewiseError as error:
        send(error=str(error), code=error.exit_code)
    except OSError as error:  # a full or missing disk fails the whole comparison
        send(error=f"{type(error).__name__}: {error}", code=1)
    except Exception as error:
        traceback.print_exc()
        send(crash=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _die_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)  # safe at any moment: files are written atomically


def _run_request(message: Mapping[str, Any], send: Callable[..., None]) -> None:
    from tunewise.comparison.invocation import Invocation
    from tunewise.comparison.request import Request

    last_sent = 0.0

    def progress(row: str, what: str, done: int, total: int) -> None:
        nonlocal last_sent
        now = time.monotonic()
        if now - last_sent > _PROGRESS_INTERVAL or done == total:
            last_sent = now
            send(progress=[row, what, done, total])

    invocation = Invocation(
        on_trial=lambda folder, identity: send(trial=folder, identity=identity.to_json() if identity else None),
        on_row=lambda result: send(rows=len(result.rows)),
        attempt_id=message["attempt_id"],
        locked=True,
    )
    Request.from_json(message["request"]).run(progress, invocation)


if __name__ == "__main__":
    main()
