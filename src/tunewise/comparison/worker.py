"""Runs trials as a worker process, which loads the base once, reports to its parent and exits when the parent does.

It reads one line of JSON, the request, from stdin and writes lines of JSON to its original stdout. After an estimate it
waits for another line on stdin before it goes on:

    {"progress": [row, what, done, total]}   {"trial": folder or null, "identity": {...}}   {"rows": count}
    {"estimate": {...}}
    {"row_start": {"technique": name, "number": place, "rows": count or null, "trials": count}}
    {"message": text}
    {"done": true}                           {"error": text, "code": 1 or 2}                {"crash": text}

Everything else that is printed here goes to stderr. When stdin closes, the parent is gone.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tunewise.core.errors import TunewiseError
from tunewise.core.logs import configure_logging
from tunewise.core.operating_system import end_at_once
from tunewise.core.progress import stage_of

_PROGRESS_INTERVAL = 0.1  # seconds between two progress events


def main() -> None:
    """Carry out the request read from stdin."""
    message = json.loads(sys.stdin.readline())
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_answers, args=(answers,), daemon=True).start()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configure_logging()

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        _run_request(message, send, answers)
        send(done=True)
    except TunewiseError as error:
        send(error=str(error), code=error.exit_code)
    except OSError as error:  # a full or missing disk fails the whole comparison
        send(error=f"{type(error).__name__}: {error}", code=1)
    except Exception as error:
        traceback.print_exc()
        send(crash=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _read_answers(answers: queue.SimpleQueue[str]) -> None:
    """Pass on the parent's lines, and die with the parent."""
    for line in sys.stdin:
        answers.put(line)
    end_at_once()  # safe at any moment: files are written atomically


def _run_request(message: Mapping[str, Any], send: Callable[..., None], answers: queue.SimpleQueue[str]) -> None:
    from tunewise.comparison.invocation import Invocation
    from tunewise.comparison.request import Request
    from tunewise.results.estimate import Estimate

    last_sent, last_stage = 0.0, ("", "")

    def progress(row: str, what: str, done: int, total: int) -> None:
        nonlocal last_sent, last_stage
        now, stage = time.monotonic(), (row, stage_of(what))
        if now - last_sent > _PROGRESS_INTERVAL or done == total or stage != last_stage:
            last_sent, last_stage = now, stage
            send(progress=[row, what, done, total])

    def on_estimate(estimate: Estimate) -> None:
        send(estimate=estimate.to_json())
        answers.get()

    known = message["estimate"]
    invocation = Invocation(
        on_estimate=on_estimate if message["estimating"] else None,
        estimate=Estimate.from_json(known) if known is not None else None,
        on_trial=lambda folder, identity: send(trial=folder, identity=identity.to_json() if identity else None),
        on_row_start=lambda start: send(row_start=asdict(start)),
        on_row=lambda result: send(rows=len(result.rows)),
        on_message=lambda text: send(message=text),
        attempt_id=message["attempt_id"],
        locked=True,
    )
    Request.from_json(message["request"]).run(progress, invocation)


if __name__ == "__main__":
    main()
