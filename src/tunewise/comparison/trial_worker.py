"""Runs trials as one of several worker processes: it loads the base once, and then takes one trial after the other.

It reads lines of JSON from stdin. The first says what is compared and where this process runs; each of the others is a
trial (`tunewise.comparison.trial_order`). It writes lines of JSON to its original stdout:

    {"progress": [row, what, done, total]}   {"trial": folder or null}   {"done": true}
    {"error": text, "code": 1 or 2}          {"crash": text}

When stdin closes, the parent is gone, and so is this process.
"""

from __future__ import annotations

import json
import sys

from tunewise.comparison.worker_lines import Lines, reports
from tunewise.core.json_record import JsonObject
from tunewise.core.operating_system import end_at_once, keep_to_cores


def main() -> None:
    """Run the trials that are read from stdin."""
    first = json.loads(sys.stdin.readline())
    keep_to_cores(first.get("cores", ()))  # before libraries count them
    lines = Lines(end_at_once)
    with lines.errors_sent():
        _serve(first, lines)


def _serve(first: JsonObject, lines: Lines) -> None:
    from tunewise.comparison.bench import Bench, BenchPlan

    bench = Bench(
        BenchPlan.from_json(first),
        on_trial=lambda folder, identity: lines.send(trial=folder),
        progress=reports(lines.send),
    )
    while True:
        bench.carry_out(json.loads(lines.next()))
        lines.send(done=True)


if __name__ == "__main__":
    main()
