"""Runs a comparison as a worker process, which loads the base once, reports to its parent and exits when it does.

It reads one line of JSON, the request, from stdin and writes lines of JSON to its original stdout. After an estimate it
waits for another line on stdin before it goes on:

    {"progress": [row, what, done, total]}   {"trial": folder or null, "identity": {...}}   {"rows": count}
    {"estimate": {...}}                      {"alive": true}
    {"row_start": {"technique": name, "number": place, "rows": count or null, "trials": count}}
    {"message": text}
    {"done": true}                           {"error": text, "code": 1 or 2}                {"crash": text}

Everything else that is printed here goes to stderr. When stdin closes, the parent is gone. Trials run in this process,
or in several workers that it leads; then it says that it is alive as long as one of them is at work.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from tunewise.comparison.worker_lines import Lines, reports
from tunewise.comparison.worker_plan import WorkerPlan
from tunewise.core.operating_system import end_group_at_once

if TYPE_CHECKING:
    from tunewise.comparison.pool import Pool
    from tunewise.comparison.pool_opening import Opening
    from tunewise.comparison.request import Request
    from tunewise.comparison.workers import Workers

_BEAT = 5.0  # seconds between two signs of life
_GRACE = 2.0  # seconds in which workers elsewhere are told to end


def main() -> None:
    """Carry out the request read from stdin."""
    plan = WorkerPlan.from_json(json.loads(sys.stdin.readline()), "stdin")
    pools: list[Pool] = []
    lines = Lines(lambda: _end(pools))
    with lines.errors_sent():
        _run_request(plan, lines, pools)
        lines.send(done=True)


def _end(pools: Sequence[Pool]) -> None:
    """End what runs elsewhere, for which no process group speaks, then this process and those that it started."""
    for pool in pools:
        threading.Thread(target=pool.close, daemon=True).start()
    if pools:
        threading.Event().wait(_GRACE)
    end_group_at_once()


def _run_request(plan: WorkerPlan, lines: Lines, pools: list[Pool]) -> None:
    from tunewise.comparison.invocation import Invocation
    from tunewise.comparison.request import Request
    from tunewise.results.estimate import Estimate

    send = lines.send

    def on_estimate(estimate: Estimate) -> None:
        send(estimate=estimate.to_json())
        lines.next()

    known, request = plan.estimate, Request.from_json(plan.request)
    opening = _pool_opening(plan.led, plan, request) if plan.led is not None else None

    def opened(opening: Opening) -> Pool:
        pool = opening.open()
        if plan.elsewhere:
            pools.append(pool)
        threading.Thread(target=_beat, args=(pool, send), daemon=True).start()
        return pool

    invocation = Invocation(
        on_estimate=on_estimate if plan.estimating else None,
        estimate=Estimate.from_json(known) if known is not None else None,
        on_trial=lambda folder, identity: send(trial=folder, identity=identity.to_json() if identity else None),
        on_row_start=lambda start: send(row_start=asdict(start)),
        on_row=lambda result: send(rows=len(result.rows)),
        on_message=lambda text: send(message=text),
        attempt_id=plan.attempt_id,
        locked=True,
        open_pool=partial(opened, opening) if opening is not None else None,
        workers=opening.size if opening is not None else 1,
    )
    request.run(reports(send), invocation)


def _pool_opening(workers: Workers, plan: WorkerPlan, request: Request) -> Opening:
    """Check that there is room for the workers; where nothing was run yet, they begin to load."""
    from tunewise.comparison.pool_opening import opening_of

    opening = opening_of(
        workers, request.for_workers(), attempt_id=plan.attempt_id, patience=plan.patience, mixed=plan.mixed
    )
    if not (request.options.out / "compare.json").exists():
        opening.prepare()
    return opening


def _beat(pool: Pool, send: Callable[..., None]) -> None:
    while not pool.closed.wait(_BEAT):
        if pool.busy:
            send(alive=True)


if __name__ == "__main__":
    main()
