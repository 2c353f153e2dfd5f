"""The process that trials run in: it loads the base once, tells its parent what it does, and dies with it.

It reads one line of JSON from stdin, the request, and writes lines of JSON to what was its stdout:

    {"progress": [row, what, done, total]}   {"trial": folder or null, "identity": {...}}   {"rows": count}
    {"done": true}                           {"error": text, "code": 1 or 2}                {"crash": text}

Whatever else is printed here goes to stderr. That stdin stays open says that the parent lives.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from tunewise.core.errors import TunewiseError
from tunewise.core.logs import configure_logging

_APART = 0.1  # seconds between reports of progress


def main() -> None:
    """Carry out the request on stdin."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configure_logging()

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        _carry_out(order, tell)
        tell(done=True)
    except TunewiseError as error:
        tell(error=str(error), code=error.exit_code)
    except OSError as error:  # a full or vanished disk fails the comparison
        tell(error=f"{type(error).__name__}: {error}", code=1)
    except Exception as error:
        traceback.print_exc()
        tell(crash=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _die_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)  # any moment is as good as another: what is on disk is whole


def _carry_out(order: dict[str, Any], tell: Any) -> None:
    from tunewise.comparison.invocation import Invocation
    from tunewise.comparison.request import Request

    told = 0.0

    def progress(row: str, what: str, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > _APART or done == total:
            told = now
            tell(progress=[row, what, done, total])

    invocation = Invocation(
        on_trial=lambda folder, identity: tell(trial=folder, identity=identity.to_json() if identity else None),
        on_row=lambda result: tell(rows=len(result.rows)),
        life=order["life"],
        locked=True,
    )
    Request.from_json(order["request"]).run(progress, invocation)


if __name__ == "__main__":
    main()
